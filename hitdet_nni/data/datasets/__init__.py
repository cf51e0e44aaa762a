"""What an index into a set becomes: :mod:`.detection`, mmdet's data sets; :mod:`.classification`, class folders."""
