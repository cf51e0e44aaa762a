"""What a detector costs: parameters and FLOPs, by layer and as a whole."""
