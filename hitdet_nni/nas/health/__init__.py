"""Signs of whether a search learns: what is measured of it, and what that says."""
