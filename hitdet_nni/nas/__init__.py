"""The search: mixed layers, the strategy, its cost terms, screening and the signs of health."""
