"""Annotation files in COCO format: read, taken as meant, checked against themselves and against their images.

:mod:`.coco` reads and checks a file, with :mod:`.coco_document` for its text and :mod:`.normalization` for what is
written otherwise than in COCO's own; what comes out is a :class:`.coco_annotations.CocoAnnotations`. :mod:`.pixels`
compares that with the images, and :mod:`.merging` makes one file of several.
"""
