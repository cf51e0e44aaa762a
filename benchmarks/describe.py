"""Print what the figures of a machine depend on, as JSON: device, versions, date.

python benchmarks/describe.py cuda
"""

from __future__ import annotations

import json
import sys

import torch
from measure import echo, installed_version, surroundings


def main() -> None:
    """Print it."""
    device = torch.device(sys.argv[1])
    found = surroundings(device) | {"nni": installed_version("nni")}
    if device.type == "cuda":
        found["memory_gb"] = torch.cuda.get_device_properties(device).total_memory / 1e9
    echo(json.dumps(found))


if __name__ == "__main__":
    main()
