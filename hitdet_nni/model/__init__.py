"""The detector: operators, blocks, the three components, and what stands behind the neck."""
