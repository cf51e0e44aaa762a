"""Experiment loggers: TensorBoard, MLflow and Weights & Biases, fed from a run directory as the run goes on."""
