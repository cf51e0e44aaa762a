"""Training of detectors that hold no choices: retraining, its resumption and evaluation, pretraining, inheritance."""
