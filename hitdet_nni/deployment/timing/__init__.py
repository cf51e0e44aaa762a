"""How long a detector and its layers take, run as users run them."""
