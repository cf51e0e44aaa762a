"""What ``check-data`` tells of a set (:mod:`.inspection`), and what ``check-data --fix`` writes (:mod:`.repair`)."""
