"""Where NNI runs the project: trials, its other strategies, experiments."""
