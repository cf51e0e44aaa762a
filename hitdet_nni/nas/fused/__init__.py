"""A mixed layer whose weighted sum of candidates is computed as one operation, several times faster and smaller."""

from hitdet_nni.nas.fused.fixed import FusedBlock, fuse_fixed_blocks
from hitdet_nni.nas.fused.function import FusedMixture
from hitdet_nni.nas.fused.mixed_layer import forget_mixture, fused_weighted_sum
from hitdet_nni.nas.fused.reading import unknown_candidates
from hitdet_nni.nas.fused.save_policy import FUSED_MODES, FusedMode

__all__ = [
    "FUSED_MODES",
    "FusedBlock",
    "FusedMixture",
    "FusedMode",
    "forget_mixture",
    "fuse_fixed_blocks",
    "fused_weighted_sum",
    "unknown_candidates",
]
