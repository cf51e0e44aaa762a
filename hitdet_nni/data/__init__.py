"""Images and annotations: from the settings to batches.

An image's way from disk to the loss:

1. :mod:`.sources` finds the annotation files that the settings name and has them read and checked
   (:mod:`.annotations`; folders of labelling tools become such files in :mod:`.layouts`).
2. :mod:`.sampling` says which image comes next, and by which random numbers it is augmented.
3. :mod:`.datasets` has it read (:mod:`.images`), resizes and augments it, and keeps in memory what does not vary.
4. :mod:`.loaders` puts images together to batches, for search, retraining, evaluation and pretraining.

Beside that way are :mod:`.halves`, which split the training images of a search; :mod:`.class_folders`, where
pretraining starts; :mod:`.checks`, which is ``check-data``; and :mod:`.digits`, the embedded set.
"""
