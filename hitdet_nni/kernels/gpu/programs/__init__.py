"""What the GPU runs: Triton programs, each launched by the module of its name one folder up."""
