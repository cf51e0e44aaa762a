"""Any mmdet config, the paper's baselines among them: read it, count it on its modules."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import mmdet
from mmengine.config import Config

from hitdet_nni.config.architecture import load_architecture
from hitdet_nni.config.skeleton import COMPONENTS, Component
from hitdet_nni.cost.cost_model import Convention, Cost, Size
from hitdet_nni.cost.detector_cost import detector_cost
from hitdet_nni.cost.module_cost import build_on_meta
from hitdet_nni.cost.profile import PAPER_SHAPE, Profile, find_config
from hitdet_nni.cost.stored_costs import CONVENTION
from hitdet_nni.errors import InputError
from hitdet_nni.model.detector import detector_config

MMDET = Path(mmdet.__file__).parent / ".mim"
"""What mmdet's own configs name files relative to, such as the config of a teacher."""


def load_config(name: str) -> Config:
    """Read an mmdet config.

    Args:
        name: A ``.py`` file, or the bare name of a shipped baseline, e.g. ``"fpn_r50_2fc"``.

    Raises:
        InputError: If the file is missing, is no mmengine config, or has no ``model``.
    """
    path = find_config(name)
    try:
        with warnings.catch_warnings():
            # mmengine looks for mmdet with it, each time it meets "mmdet::".
            warnings.filterwarnings("ignore", message="pkg_resources is deprecated")
            config = Config.fromfile(path)
    except Exception as error:  # the file is a program and may raise anything
        raise InputError(f"not an mmdet config: {type(error).__name__}: {error}", source=path) from error
    if not isinstance(config.get("model"), dict):
        raise InputError("missing", source=path, key="model", allowed="an mmdet detector's config")
    teacher = config.model.get("teacher_config")
    if isinstance(teacher, str) and not Path(teacher).exists():
        config.model.teacher_config = str(MMDET / teacher)
    return config


@lru_cache
def _model(name: str) -> tuple[Any, int]:
    """Build a config's detector on the meta device; return it and how many RoIs its head sees in testing."""
    model = load_config(name).model
    if "teacher_ckpt" in model:
        model.teacher_ckpt = None  # weights that would be fetched, of what has no part in testing
    return build_on_meta(model, name), tested_proposals(model)


def tested_proposals(model: Mapping[str, Any]) -> int:
    """Return how many RoIs the head of an mmdet model sees in testing; 0 of one without RPN."""
    if "roi_head" not in model or "rpn_head" not in model:
        return 0
    rpn = model.get("test_cfg", {}).get("rpn") or {}
    proposals: int = model["rpn_head"].get("num_proposals", rpn.get("max_per_img", 0))
    return proposals


def profile_config(
    name: str, shape: Size | None = None, proposals: int | None = None, convention: Convention = "macs"
) -> Profile:
    """Return the cost of an mmdet config.

    Args:
        name: A ``.py`` file, or the bare name of a shipped baseline.
        shape: Height and width of the image; the paper's by default.
        proposals: RoIs that the head sees; those of the config in testing by default. A one-stage detector sees none,
            and one with learned proposals these, whatever is given.
        convention: How FLOPs are counted.

    Raises:
        InputError: If the config cannot be read, built or counted.
    """
    detector, default = _model(name)
    size = shape or PAPER_SHAPE
    fixed = not hasattr(detector, "roi_head") or hasattr(getattr(detector, "rpn_head", None), "num_proposals")
    count = default if proposals is None or fixed else proposals
    return Profile(Path(name).stem, size, count, convention, detector_cost(detector, size, count, convention, name))


def counted_costs(baseline: str, shape: Size) -> dict[str, Cost]:
    """Count the cost of a baseline by part, and ``total``, on its modules by the paper's convention.

    Args:
        baseline: A ``.py`` file, or the bare name of a shipped baseline.
        shape: Height and width of the image.

    Raises:
        InputError: If the config cannot be read, built or counted.
    """
    return profile_config(baseline, shape, convention=CONVENTION).costs


def searched_part(architecture: str, component: Component) -> dict[str, Any]:
    """Return the mmdet config of one component of an architecture, to put into another detector.

    Args:
        architecture: A file, or the bare name of a shipped architecture.
        component: Which part.
    """
    found = load_architecture(architecture)
    operators = {part: [found.sample[label] for label in found.skeleton.labels(part)] for part in COMPONENTS}
    model = detector_config(found.skeleton, operators, found.num_classes)
    part: dict[str, Any] = model["roi_head"]["bbox_head"] if component == "head" else model[component]
    return part
