"""What several of these tests compare with: mmcv's own source, and boxes in plain Python."""

import ast
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch


def mmcv_source(submodule):
    """Return the Python half of a submodule of mmcv.ops, which mmcv-lite ships though it cannot be imported there."""
    source = Path(importlib.util.find_spec("mmcv").origin).parent / "ops" / f"{submodule}.py"
    if not source.exists():
        pytest.skip(f"this mmcv does not ship {source}")
    return source


def mmcv_python(submodule):
    """Return a submodule of mmcv.ops without its extension, registering nothing: what calls the extension fails."""
    tree = ast.parse(mmcv_source(submodule).read_text())
    tree.body = [
        node
        for node in tree.body
        if not (isinstance(node, ast.ImportFrom) and node.level) and "ext_loader" not in ast.unparse(node)
    ]
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            node.decorator_list = []
    module = ModuleType(f"mmcv.reference.{submodule}")
    exec(compile(tree, submodule, "exec"), vars(module))
    return module


def plain_iou(a, b, offset=0):
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]) + offset)
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]) + offset)
    area_a, area_b = ((box[2] - box[0] + offset) * (box[3] - box[1] + offset) for box in (a, b))
    union = area_a + area_b - width * height
    return width * height / union if union else 0.0


def random_boxes(count, size=30.0):
    corner = torch.rand(count, 2, dtype=torch.double) * size
    return torch.cat([corner, corner + 1 + torch.rand(count, 2, dtype=torch.double) * size / 2], dim=1)


def sample_edge(feature_map, y, x):
    """Interpolate (C, H, W) at a point; within a pixel outside its edge is read, further outside zero."""
    height, width = feature_map.shape[1:]
    if not (-1 <= y <= height and -1 <= x <= width):
        return feature_map.new_zeros(len(feature_map))
    y, x = min(max(y, 0.0), height - 1), min(max(x, 0.0), width - 1)
    y0, x0 = int(y), int(x)
    y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
    top = feature_map[:, y0, x0] * (1 - (x - x0)) + feature_map[:, y0, x1] * (x - x0)
    bottom = feature_map[:, y1, x0] * (1 - (x - x0)) + feature_map[:, y1, x1] * (x - x0)
    return top * (1 - (y - y0)) + bottom * (y - y0)
