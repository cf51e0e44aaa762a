"""The detector: its three components with their searched layers, and what stands behind the neck."""
