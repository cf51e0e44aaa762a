"""How layers are computed: convolutions and products on a CPU, programs for a GPU; no other wing is imported."""
