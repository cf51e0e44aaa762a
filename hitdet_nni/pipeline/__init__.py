"""The pipeline: screening, trinity search and retraining in order, each stage writing into a run directory."""
