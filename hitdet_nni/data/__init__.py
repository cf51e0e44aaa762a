"""Pictures and annotations: the embedded set, COCO and other files, their checks, and the loaders."""
