"""What a step of a supernet holds in memory, by a simulation without data."""
