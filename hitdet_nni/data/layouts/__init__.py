"""Folders of images and labels as labelling tools leave them: recognised by what lies in them, read as COCO files.

:mod:`.recognise` asks each of :mod:`.coco`, :mod:`.yolo` and :mod:`.voc` what it makes of a folder; :mod:`.documents`
writes a COCO file of labels that are in another format, and :mod:`.split` splits off validation images.
"""
