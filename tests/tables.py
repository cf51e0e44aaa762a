"""Tables of latencies made up from a seed, for tests of what reads them."""

import random

from hitdet_nni.config.search_space import layer_candidates, load_search_space
from hitdet_nni.cost.latency_table import TableContent, fixed_names


def made_up_table(skeleton, num_classes=10, *, seed=0, machine="a machine", space=None):
    """Return the content of a table with every operator of a space; by default of the whole."""
    rng = random.Random(seed)
    candidates = layer_candidates(skeleton, space or load_search_space("full"))
    layers = {label: {name: rng.uniform(0.2, 2) for name in names} for label, names in candidates.items()}
    fixed = {name: rng.uniform(0.01, 1) for name in fixed_names(skeleton, num_classes)}
    sample = {label: next(iter(row)) for label, row in layers.items()}
    return TableContent.model_validate(
        {
            "schema_version": 1,
            "conditions": {
                "runtime": "onnxruntime",
                "version": "1.0",
                "device": "cpu",
                "threads": 1,
                "machine": machine,
                "rounds": 3,
                "pause_ms": 0,
                "unrest": 0.01,
            },
            "skeleton": skeleton.model_dump(),
            "num_classes": num_classes,
            "layers_ms": layers,
            "fixed_ms": fixed,
            "detectors": [{"sample": sample, "layers_ms": 3.0, "measured_ms": 5.5}],
            "overhead_ms": 2.5,
        }
    )
