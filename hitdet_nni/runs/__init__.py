"""The directory of a run and its tables: one reader and one writer each."""
