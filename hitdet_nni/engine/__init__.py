"""What search and training run on: processes, precision, checkpoints, weights files."""
