"""Starting NNI for one experiment, watching it, and ending everything that was started."""
