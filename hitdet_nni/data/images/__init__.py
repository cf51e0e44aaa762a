"""Image files: how training reads them (:mod:`.reading`), what their bytes say, and which ones a folder holds."""
