"""A run directory as one page, and several side by side: self-contained HTML."""
