"""Kernels of the fused mixed layer for CUDA devices, written in Triton; nothing of the rest of the package is imported.

Maps are matrices ``[P, C]``: one row a pixel, ordered map by map (channels-last), one column a channel. Sums are taken
in single precision at least, in an order that depends on shapes alone, so results are the same in every run.
"""
