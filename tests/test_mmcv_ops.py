import ast
import importlib.util
import inspect
import itertools
import math
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hitdet_nni import mmcv_ops

mmcv_ops.install()

import mmcv.ops as ops  # noqa: E402
import mmdet  # noqa: E402
import mmdet.models  # noqa: E402
from mmdet.registry import MODELS  # noqa: E402
from mmdet.structures import DetDataSample  # noqa: E402
from mmengine.config import ConfigDict  # noqa: E402
from mmengine.registry import DefaultScope  # noqa: E402
from mmengine.structures import InstanceData  # noqa: E402

MODULE_FILE = Path(mmcv_ops.__file__)
MMCV_SOURCE = Path(ops.__spec__.parent and importlib.util.find_spec("mmcv").origin).parent / "ops"


@pytest.fixture(autouse=True)
def _one_thread_one_seed():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


# ---------------------------------------------------------------------------------------------------- the finder


def run_fresh(code, *paths):
    """Run code in a new interpreter; `mmcv_ops` there is loaded from its file, without hitdet_nni/__init__."""
    prelude = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('mmcv_ops', {str(MODULE_FILE)!r})\n"
        "mmcv_ops = importlib.util.module_from_spec(spec)\nspec.loader.exec_module(mmcv_ops)\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    return subprocess.run([sys.executable, "-c", prelude + code], env=env, capture_output=True, text=True, timeout=60)


def fake_mmcv(folder, compiled):
    (folder / "mmcv" / "ops").mkdir(parents=True)
    (folder / "mmcv" / "__init__.py").write_text("")
    (folder / "mmcv" / "ops" / "__init__.py").write_text("nms = 'the compiled one'")
    if compiled:
        (folder / "mmcv" / "_ext.py").write_text("")
    return folder


def test_the_compiler_is_not_available():
    assert ops.get_compiler_version() == ops.get_compiling_cuda_version() == "n/a"


def test_install_is_light_and_idempotent():
    done = run_fresh(
        "before = len(sys.meta_path)\n"
        "assert mmcv_ops.install() is True and mmcv_ops.install() is True\n"
        "assert len(sys.meta_path) == before + 1\n"
        "assert not {'torch', 'mmcv', 'numpy'} & sys.modules.keys()\n"
    )
    assert done.returncode == 0, done.stderr


def test_a_compiled_mmcv_is_left_alone(tmp_path):
    code = (
        "before = list(sys.meta_path)\nassert mmcv_ops.install() is False\nassert sys.meta_path == before\n"
        "import mmcv.ops\nassert mmcv.ops.nms == 'the compiled one'\nassert mmcv_ops.install() is False\n"
    )
    done = run_fresh(code, fake_mmcv(tmp_path, compiled=True))
    assert done.returncode == 0, done.stderr


def test_the_same_mmcv_without_its_extension_is_replaced(tmp_path):
    code = (
        "assert mmcv_ops.install() is True\nimport mmcv\n"
        "assert importlib.util.find_spec('mmcv.ops').origin == 'hitdet_nni.torchvision_ops'\n"
    )
    done = run_fresh(code, fake_mmcv(tmp_path, compiled=False))
    assert done.returncode == 0, done.stderr


def test_without_mmcv_the_error_says_what_to_install():
    done = run_fresh("sys.modules['mmcv'] = None\nmmcv_ops.install()")
    assert done.returncode != 0
    assert "ModuleNotFoundError: mmcv.ops cannot be served: mmcv is not installed; install mmcv-lite" in done.stderr


def test_a_foreign_mmcv_ops_is_not_replaced_silently(monkeypatch):
    foreign = ModuleType("mmcv.ops")
    foreign.__file__ = "/somewhere/mmcv/ops/__init__.py"
    monkeypatch.setitem(sys.modules, "mmcv.ops", foreign)
    with pytest.raises(RuntimeError, match=r"already imported from /somewhere/mmcv/ops/__init__\.py"):
        mmcv_ops.install()


def test_every_name_that_mmdet_imports_exists():
    wanted = set()
    for file in Path(mmdet.__file__).parent.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        if "mmcv.ops" in text:
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mmcv.ops"):
                    wanted |= {(node.module, alias.name) for alias in node.names}
    assert len(wanted) > 15
    for module, name in wanted:
        assert isinstance(getattr(importlib.import_module(module), name), type) or name.islower()
        assert getattr(ops, name) is getattr(importlib.import_module(module), name)


def test_unknown_names_and_submodules_fail_as_usual():
    with pytest.raises(ImportError, match="cannot import name 'Nope'"):
        from mmcv.ops import Nope  # noqa: F401
    with pytest.raises(ModuleNotFoundError, match=r"mmcv\.ops\.voxelize"):
        import mmcv.ops.voxelize  # noqa: F401
    assert not hasattr(ops, "Nope")


def test_functions_are_not_hidden_by_submodules_of_the_same_name():
    for name in ("nms", "roi_align", "roi_pool", "point_sample", "carafe"):
        assert callable(getattr(ops, name))
        assert isinstance(sys.modules[f"mmcv.ops.{name}"], ModuleType)


@pytest.mark.parametrize("name", sorted(itertools.chain(*mmcv_ops.REFUSED.values())))
def test_refused_ops_can_be_subclassed_and_say_why_they_fail(name):
    class Child(getattr(ops, name)):
        def __init__(self):
            pass

    for make in (getattr(ops, name), Child):
        with pytest.raises(NotImplementedError, match=rf"mmcv\.ops\.{name} is not available.*compiled mmcv"):
            make()


def test_the_registry_knows_served_and_refused_layers():
    assert isinstance(MODELS.build({"type": "DCN", "in_channels": 2, "out_channels": 2, "kernel_size": 3}), nn.Module)
    with pytest.raises(NotImplementedError, match=r"mmcv\.ops\.CARAFEPack"):
        MODELS.build({"type": "carafe"})


def mmcv_arguments(tree, name):
    """Names and defaults of a function, class or autograd function in the source of mmcv 2.1."""
    aliases = {
        node.targets[0].id: node.value.value.id
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Attribute) and node.value.attr == "apply"
    }
    node = next(node for node in tree.body if getattr(node, "name", None) == aliases.get(name, name))
    if isinstance(node, ast.ClassDef):
        method = "forward" if name in aliases else "__init__"
        node = next(item for item in node.body if getattr(item, "name", None) == method)
    names = [argument.arg for argument in node.args.args if argument.arg not in ("self", "ctx")]
    return names, [ast.unparse(default) for default in node.args.defaults]


@pytest.mark.parametrize(
    ("submodule", "name"),
    [
        (submodule, name)
        for submodule, names in mmcv_ops.SERVED.items()
        for name in names
        if submodule != "info" and not name.endswith("Pack")
    ],
)
def test_arguments_are_those_of_mmcv(submodule, name):
    source = MMCV_SOURCE / f"{submodule}.py"
    if not source.exists():
        pytest.skip("this mmcv-lite does not ship the Python half of mmcv.ops")
    names, defaults = mmcv_arguments(ast.parse(source.read_text()), name)
    ours = [p for p in inspect.signature(getattr(ops, name)).parameters.values() if p.kind != p.VAR_KEYWORD]
    assert [p.name for p in ours] == names
    our_defaults = [p.default for p in ours if p.default is not inspect.Parameter.empty]
    for default, text in zip(our_defaults, defaults, strict=True):
        assert text.startswith("dict(") if name == "BaseMergeCell" and text[:4] == "dict" else default == eval(text)


# ---------------------------------------------------------------------------------------------------- suppression


def plain_iou(a, b, offset=0):
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]) + offset)
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]) + offset)
    area_a, area_b = ((box[2] - box[0] + offset) * (box[3] - box[1] + offset) for box in (a, b))
    return width * height / (area_a + area_b - width * height)


def plain_nms(boxes, scores, threshold, offset=0):
    kept = []
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        if all(plain_iou(boxes[i], boxes[j], offset) <= threshold for j in kept):
            kept.append(i)
    return kept


def random_boxes(count, size=30.0):
    corner = torch.rand(count, 2, dtype=torch.double) * size
    return torch.cat([corner, corner + 1 + torch.rand(count, 2, dtype=torch.double) * size / 2], dim=1)


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize(("score_threshold", "max_num"), [(0, -1), (0.4, -1), (0, 5), (0.4, 3)])
def test_nms_equals_the_plain_loop(offset, score_threshold, max_num):
    boxes, scores = random_boxes(60), torch.rand(60, dtype=torch.double)
    above = [i for i in range(60) if not score_threshold or scores[i] > score_threshold]
    plain = plain_nms(boxes[above].tolist(), scores[above].tolist(), 0.3, offset)
    expected = [above[i] for i in plain][: max_num if max_num > 0 else None]
    dets, keep = ops.nms(boxes, scores, 0.3, offset=offset, score_threshold=score_threshold, max_num=max_num)
    assert keep.tolist() == expected
    assert 3 <= len(expected) < len(above)
    assert torch.equal(dets, torch.cat([boxes[keep], scores[keep, None]], dim=1))


def test_nms_offset_matters():
    boxes, scores = torch.tensor([[0.0, 0, 1, 1], [1, 0, 2, 1]]), torch.tensor([0.9, 0.8])
    assert len(ops.nms(boxes, scores, 0.3)[1]) == 2  # they only touch
    assert len(ops.nms(boxes, scores, 0.3, offset=1)[1]) == 1  # 2 of 6 pixels are common


def test_nms_takes_numpy_and_mmcvs_old_argument_name():
    boxes, scores = random_boxes(30).numpy().astype(np.float32), np.random.default_rng(0).random(30, dtype=np.float32)
    dets, keep = ops.nms(boxes, scores, 0.3)
    assert isinstance(dets, np.ndarray)
    assert isinstance(keep, np.ndarray)
    assert keep.tolist() == plain_nms(boxes.tolist(), scores.tolist(), 0.3)
    assert np.array_equal(dets, np.concatenate([boxes[keep], scores[keep, None]], axis=1))
    with pytest.warns(DeprecationWarning, match="iou_thr"):
        assert np.array_equal(ops.nms(boxes, scores, iou_thr=0.3)[1], keep)


def test_nms_scores_keep_their_gradient():
    scores = torch.rand(9, dtype=torch.double, requires_grad=True)
    dets, keep = ops.nms(random_boxes(9), scores, 0.3)
    dets[:, 4].sum().backward()
    assert scores.grad.nonzero()[:, 0].tolist() == sorted(keep.tolist())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(2, 5), torch.zeros(2), 0.5), r"\(2, 5\)"),
        ((torch.zeros(2, 4), torch.zeros(3), 0.5), r"\(3,\)"),
        ((torch.zeros(2, 4), torch.zeros(2), 0.5, 2), "offset=2; allowed: 0, 1"),
    ],
)
def test_nms_refuses_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        ops.nms(*arguments)


def plain_soft_nms(boxes, scores, threshold, sigma, min_score, method, offset):
    left, result = list(range(len(boxes))), []
    scores = list(scores)
    while left:
        best = max(left, key=lambda i: scores[i])
        result.append((best, scores[best]))
        left.remove(best)
        for i in list(left):
            iou = plain_iou(boxes[best], boxes[i], offset)
            if method == "gaussian":
                scores[i] *= math.exp(-iou * iou / sigma)
            elif iou >= threshold:
                scores[i] *= 1 - iou if method == "linear" else 0
            if scores[i] < min_score:
                left.remove(i)
    return result


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("method", ["linear", "gaussian", "naive"])
def test_soft_nms_equals_the_plain_loop(method, offset):
    boxes, scores = random_boxes(40), torch.rand(40, dtype=torch.double)
    expected = plain_soft_nms(boxes.tolist(), scores.tolist(), 0.25, 0.4, 0.1, method, offset)
    dets, keep = ops.soft_nms(boxes, scores, 0.25, sigma=0.4, min_score=0.1, method=method, offset=offset)
    assert keep.tolist() == [index for index, _ in expected]
    torch.testing.assert_close(dets[:, 4], torch.tensor([score for _, score in expected], dtype=torch.double))
    assert torch.equal(dets[:, :4], boxes[keep])
    assert len(expected) < 40
    assert (dets[:, 4] < scores[keep]).any() == (method != "naive")


def test_soft_nms_edges():
    assert [len(part) for part in ops.soft_nms(torch.zeros(0, 4), torch.zeros(0))] == [0, 0]
    dets, keep = ops.soft_nms(np.zeros((2, 4), np.float32), np.array([0.1, 0.9], np.float32))  # no area: 0 / 0
    assert isinstance(dets, np.ndarray)
    assert keep.tolist() == [1, 0]
    with pytest.raises(ValueError, match="method='cubic'; allowed: naive, linear, gaussian"):
        ops.soft_nms(torch.zeros(1, 4), torch.zeros(1), method="cubic")


def test_nms_match_groups_as_the_plain_loop():
    boxes, scores = random_boxes(40), torch.rand(40, dtype=torch.double)
    groups, left = [], scores.argsort(descending=True).tolist()
    while left:
        group = [left[0]] + [i for i in left[1:] if plain_iou(boxes[left[0]], boxes[i]) >= 0.3]
        groups.append(group)
        left = [i for i in left if i not in group]
    dets = torch.cat([boxes, scores[:, None]], dim=1)
    assert [group.tolist() for group in ops.nms_match(dets, 0.3)] == groups
    assert all(isinstance(group, np.ndarray) for group in ops.nms_match(dets.numpy(), 0.3))
    assert max(map(len, groups)) > 1
    assert ops.nms_match(torch.zeros(0, 5), 0.3) == []


def plain_batched(boxes, scores, groups, threshold):
    kept = []
    for group in set(groups):
        members = [i for i in range(len(boxes)) if groups[i] == group]
        kept += [members[i] for i in plain_nms([boxes[i] for i in members], [scores[i] for i in members], threshold)]
    return sorted(kept, key=lambda i: -scores[i])


@pytest.mark.parametrize("split_thr", [10000, 20])
def test_batched_nms_is_per_class(split_thr):
    boxes, scores, classes = random_boxes(60), torch.rand(60, dtype=torch.double), torch.randint(0, 3, (60,))
    expected = plain_batched(boxes.tolist(), scores.tolist(), classes.tolist(), 0.3)
    for max_num in (-1, 7):
        cfg = {"type": "nms", "iou_threshold": 0.3, "split_thr": split_thr, "max_num": max_num}
        dets, keep = ops.batched_nms(boxes, scores, classes, cfg)
        assert keep.tolist() == expected[: max_num if max_num > 0 else None]
        assert torch.equal(dets, torch.cat([boxes[keep], scores[keep, None]], dim=1))
        assert cfg["type"] == "nms", "the caller's configuration must stay as it was"
    assert len(expected) > len(plain_nms(boxes.tolist(), scores.tolist(), 0.3))


def test_batched_nms_class_agnostic():
    boxes, scores, classes = random_boxes(60), torch.rand(60, dtype=torch.double), torch.randint(0, 3, (60,))
    expected = plain_nms(boxes.tolist(), scores.tolist(), 0.3)
    assert ops.batched_nms(boxes, scores, classes, {"iou_threshold": 0.3}, class_agnostic=True)[1].tolist() == expected
    cfg = {"iou_threshold": 0.3, "class_agnostic": True}
    assert ops.batched_nms(boxes, scores, classes, cfg)[1].tolist() == expected
    # mmcv goes through the classes one by one from split_thr boxes on, class-agnostic or not
    per_class = plain_batched(boxes.tolist(), scores.tolist(), classes.tolist(), 0.3)
    assert ops.batched_nms(boxes, scores, classes, cfg | {"split_thr": 60})[1].tolist() == per_class != expected
    assert ops.batched_nms(boxes, scores, classes, cfg | {"split_thr": 61})[1].tolist() == expected


@pytest.mark.parametrize("split_thr", [10000, 20])
def test_batched_soft_nms_lowers_scores_within_a_class(split_thr):
    boxes, scores, classes = random_boxes(40), torch.rand(40, dtype=torch.double), torch.randint(0, 2, (40,))
    expected = {}
    for group in (0, 1):
        members = (classes == group).nonzero()[:, 0].tolist()
        plain = plain_soft_nms(boxes[members].tolist(), scores[members].tolist(), 0.3, 0.5, 0.05, "linear", 0)
        expected |= {members[i]: score for i, score in plain}
    cfg = {"type": "soft_nms", "iou_threshold": 0.3, "min_score": 0.05, "split_thr": split_thr}
    dets, keep = ops.batched_nms(boxes, scores, classes, cfg)
    assert set(keep.tolist()) == expected.keys()
    torch.testing.assert_close(dets[:, 4], torch.tensor([expected[i] for i in keep.tolist()], dtype=torch.double))
    assert dets[:, 4].diff().max() <= 0


def test_batched_nms_edges():
    boxes, scores = random_boxes(5), torch.tensor([0.1, 0.5, 0.3, 0.9, 0.2], dtype=torch.double)
    dets, keep = ops.batched_nms(boxes, scores, torch.zeros(5, dtype=torch.long), None)
    assert keep.tolist() == [3, 1, 2, 4, 0]
    assert torch.equal(dets, torch.cat([boxes, scores[:, None]], dim=1)[keep])
    for cfg in ({"type": "nms", "iou_threshold": 0.5}, {"type": "soft_nms"}, None):
        dets, keep = ops.batched_nms(boxes[:0], scores[:0], torch.zeros(0, dtype=torch.long), cfg)
        assert dets.shape == (0, 5)
        assert keep.shape == (0,)
        assert keep.dtype == torch.long
    with pytest.raises(ValueError, match=r"nms type 'nms_rotated'; allowed: nms, soft_nms \(a compiled mmcv"):
        ops.batched_nms(boxes, scores, torch.zeros(5), {"type": "nms_rotated"})


# ---------------------------------------------------------------------------------------------------- RoI pooling


def plain_roi_align(features, rois, size, scale, ratio, aligned):
    def sample(picture, y, x):
        height, width = picture.shape[1:]
        if not (-1 <= y <= height and -1 <= x <= width):
            return picture.new_zeros(len(picture))
        y, x = min(max(y, 0.0), height - 1), min(max(x, 0.0), width - 1)
        y0, x0 = int(y), int(x)
        y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
        top = picture[:, y0, x0] * (1 - (x - x0)) + picture[:, y0, x1] * (x - x0)
        bottom = picture[:, y1, x0] * (1 - (x - x0)) + picture[:, y1, x1] * (x - x0)
        return top * (1 - (y - y0)) + bottom * (y - y0)

    pooled = []
    for image, *box in rois.tolist():
        x1, y1, x2, y2 = (value * scale - (0.5 if aligned else 0.0) for value in box)
        width, height = (x2 - x1, y2 - y1) if aligned else (max(x2 - x1, 1.0), max(y2 - y1, 1.0))
        bin_h, bin_w = height / size[0], width / size[1]
        grid_h, grid_w = ratio or math.ceil(bin_h), ratio or math.ceil(bin_w)
        for i, j in itertools.product(range(size[0]), range(size[1])):
            samples = [
                sample(
                    features[int(image)], y1 + (i + (p + 0.5) / grid_h) * bin_h, x1 + (j + (q + 0.5) / grid_w) * bin_w
                )
                for p, q in itertools.product(range(grid_h), range(grid_w))
            ]
            pooled.append(sum(samples) / len(samples))
    return torch.stack(pooled).view(len(rois), *size, -1).permute(0, 3, 1, 2)


ROIS = torch.tensor([[0, 3.3, 2.1, 19.7, 25.2], [1, -6, 4, 9, 30], [1, 10, 12, 41, 40.5], [0, 8, 8, 8.6, 9.1]]).double()


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [0, 2])
def test_roi_align_values_and_gradient_equal_the_plain_loop(aligned, ratio):
    features = torch.randn(2, 2, 9, 10, dtype=torch.double, requires_grad=True)
    layer = ops.RoIAlign((2, 3), spatial_scale=0.25, sampling_ratio=ratio, aligned=aligned)
    pooled, expected = layer(features, ROIS), plain_roi_align(features, ROIS, (2, 3), 0.25, ratio, aligned)
    torch.testing.assert_close(pooled, expected)
    cotangent = torch.randn_like(pooled)
    grads = [torch.autograd.grad((out * cotangent).sum(), features)[0] for out in (pooled, expected)]
    torch.testing.assert_close(*grads)
    assert grads[0].abs().sum() > 0


def test_roi_align_attributes_and_refusal():
    layer = ops.RoIAlign(output_size=7, spatial_scale=1 / 4, use_torchvision=True)
    state = (layer.output_size, layer.spatial_scale, layer.sampling_ratio, layer.pool_mode, layer.aligned)
    assert state == ((7, 7), 0.25, 0, "avg", True)
    assert layer.use_torchvision
    with pytest.raises(NotImplementedError, match=r"pool_mode='max'; allowed: 'avg' \(a compiled mmcv"):
        ops.RoIAlign(7, pool_mode="max")(torch.zeros(1, 1, 4, 4), ROIS.float()[:1])


def plain_roi_pool(features, rois, size, scale):
    pooled = features.new_zeros(len(rois), features.size(1), *size)
    height, width = features.shape[2:]
    for k, (image, x1, y1, x2, y2) in enumerate(rois.tolist()):
        x1, y1, x2, y2 = x1 * scale, y1 * scale, (x2 + 1) * scale, (y2 + 1) * scale
        for i, j in itertools.product(range(size[0]), range(size[1])):
            rows = range(
                max(math.floor(y1 + i * (y2 - y1) / size[0]), 0),
                min(math.ceil(y1 + (i + 1) * (y2 - y1) / size[0]), height),
            )
            columns = range(
                max(math.floor(x1 + j * (x2 - x1) / size[1]), 0),
                min(math.ceil(x1 + (j + 1) * (x2 - x1) / size[1]), width),
            )
            for c in range(features.size(1)) if x2 > x1 and y2 > y1 else ():
                values = [features[int(image), c, y, x] for y in rows for x in columns]
                pooled[k, c, i, j] = max(values) if values else 0
    return pooled


def test_roi_pool_values_and_gradient_equal_the_plain_loop():
    rois = torch.cat([ROIS, torch.tensor([[0.0, 60, 60, 70, 70], [1, 9, 9, 3, 20]]).double()])  # outside, malformed
    features = torch.randn(2, 2, 9, 10, dtype=torch.double, requires_grad=True)
    pooled, expected = ops.RoIPool((2, 3), 0.25)(features, rois), plain_roi_pool(features, rois, (2, 3), 0.25)
    assert torch.equal(pooled, expected)
    assert not pooled[4:].any()
    cotangent = torch.randn_like(pooled)
    grads = [torch.autograd.grad((out * cotangent).sum(), features)[0] for out in (pooled, expected)]
    torch.testing.assert_close(*grads)
    assert ops.roi_pool(features, rois[:0], 2).shape == (0, 2, 2, 2)


# ---------------------------------------------------------------------------------------------------- focal loss


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("weighted", [False, True])
def test_focal_loss_equals_the_formula(reduction, weighted):
    logits = (3 * torch.randn(6, 3, dtype=torch.double)).requires_grad_()
    target, gamma, alpha = torch.tensor([0, 1, 2, 3, 0, -1]), 1.5, 0.3  # 3 and -1 are background
    weight = torch.tensor([0.5, 2.0, 3.0], dtype=torch.double) if weighted else None
    rows = []
    for n, c in itertools.product(range(6), range(3)):
        p = 1 / (1 + torch.exp(-logits[n, c]))
        positive = -alpha * (1 - p) ** gamma * torch.log(p)
        negative = -(1 - alpha) * p**gamma * torch.log(1 - p)
        factor = weight[target[n]] if weighted and 0 <= target[n] < 3 else 1
        rows.append(factor * (positive if target[n] == c else negative))
    expected = torch.stack(rows).view(6, 3)
    expected = {"none": expected, "sum": expected.sum(), "mean": expected.sum() / 6}[reduction]
    loss = ops.SigmoidFocalLoss(gamma, alpha, weight, reduction)(logits, target)
    torch.testing.assert_close(loss, expected)
    grads = [torch.autograd.grad(value.sum(), logits, retain_graph=True)[0] for value in (loss, expected)]
    torch.testing.assert_close(*grads)
    torch.testing.assert_close(ops.sigmoid_focal_loss(logits, target, gamma, alpha, weight, reduction), loss)


def test_focal_loss_refuses_bad_input():
    with pytest.raises(ValueError, match="reduction='median'; allowed: none, mean, sum"):
        ops.sigmoid_focal_loss(torch.zeros(2, 3), torch.zeros(2, dtype=torch.long), 2.0, 0.25, None, "median")
    with pytest.raises(ValueError, match=r"torch\.float32 \(2, 3\); allowed: int64 \(2,\)"):
        ops.sigmoid_focal_loss(torch.zeros(2, 3), torch.zeros(2, 3))


# ---------------------------------------------------------------------------------------------------- deformable conv


def plain_deform_conv(x, offset, mask, weight, bias, stride, padding, dilation, groups, deform_groups):
    def at(picture, y, x):
        total = 0.0
        for yy, xx in itertools.product((math.floor(y), math.floor(y) + 1), (math.floor(x), math.floor(x) + 1)):
            if 0 <= yy < picture.size(0) and 0 <= xx < picture.size(1):
                total = total + picture[yy, xx] * (1 - abs(y - yy)) * (1 - abs(x - xx))
        return total

    (batch, channels), (out_channels, group_in, kh, kw) = x.shape[:2], weight.shape
    out = x.new_zeros(batch, out_channels, *offset.shape[2:])
    for n, o, i, j in itertools.product(*map(range, out.shape)):
        total = bias[o]
        for c, u, v in itertools.product(range(group_in), range(kh), range(kw)):
            channel = o // (out_channels // groups) * group_in + c
            tap = (channel // (channels // deform_groups) * kh + u) * kw + v
            y = i * stride - padding + u * dilation + float(offset[n, 2 * tap, i, j])
            z = j * stride - padding + v * dilation + float(offset[n, 2 * tap + 1, i, j])
            total = total + weight[o, c, u, v] * mask[n, tap, i, j] * at(x[n, channel], y, z)
        out[n, o, i, j] = total
    return out


@pytest.mark.parametrize(("stride", "padding", "dilation"), [(1, 1, 1), (2, 2, 2)])
def test_modulated_deform_conv_equals_the_plain_loop(stride, padding, dilation):
    x, weight, bias = (torch.randn(*s, dtype=torch.double) for s in ((2, 4, 4, 5), (2, 2, 3, 3), (2,)))
    height, width = F.conv2d(x, weight, None, stride, padding, dilation, 2).shape[2:]
    offset = 2 * torch.randn(2, 2 * 2 * 9, height, width, dtype=torch.double)
    mask = torch.rand(2, 2 * 9, height, width, dtype=torch.double)
    arguments = (stride, padding, dilation, 2, 2)
    out = ops.modulated_deform_conv2d(x, offset, mask, weight, bias, *arguments)
    torch.testing.assert_close(out, plain_deform_conv(x, offset, mask, weight, bias, *arguments))
    ones, zeros = torch.ones_like(mask), torch.zeros_like(bias)
    torch.testing.assert_close(
        ops.deform_conv2d(x, offset, weight, *arguments),
        plain_deform_conv(x, offset, ones, weight, zeros, *arguments),
    )


def test_deform_conv_zero_and_integer_offsets():
    x, conv = torch.randn(2, 4, 7, 8), ops.DeformConv2d(4, 6, 3, padding=1, groups=2, deform_groups=2)
    offset = torch.zeros(2, 2 * 2 * 9, 7, 8)
    torch.testing.assert_close(conv(x, offset), F.conv2d(x, conv.weight, padding=1, groups=2))
    offset[:, 0::2] = 2.0  # two pixels down
    offset[:, 1::2] = -1.0  # one to the left
    shifted = F.pad(x, (1, 0, 0, 2))[:, :, 2:, :8]
    inner = (slice(None), slice(None), slice(1, 4), slice(2, 7))  # clear of both pictures' borders
    torch.testing.assert_close(conv(x, offset)[inner], F.conv2d(shifted, conv.weight, padding=1, groups=2)[inner])


def test_deform_conv_gradients():
    x, offset = torch.randn(1, 2, 4, 4).double().requires_grad_(), torch.randn(1, 18, 4, 4).double().requires_grad_()
    mask, weight = torch.rand(1, 9, 4, 4).double().requires_grad_(), torch.randn(2, 2, 3, 3).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda *a: ops.modulated_deform_conv2d(*a, None, 1, 1), (x, offset, mask, weight))


def test_deform_conv_pads_inputs_smaller_than_the_kernel():
    conv = ops.DeformConv2d(2, 3, 3, padding=1)
    x = torch.randn(1, 2, 2, 5)
    torch.testing.assert_close(conv(x, torch.zeros(1, 18, 2, 5)), F.conv2d(x, conv.weight, padding=1))


@pytest.mark.parametrize(("kind", "per_tap", "share"), [("DCN", 2, 1.0), ("DCNv2", 3, 0.5)])
def test_packs_start_as_plain_convolutions_and_learn_offsets(kind, per_tap, share):
    layer = MODELS.build(
        {"type": kind, "in_channels": 4, "out_channels": 6, "kernel_size": 3, "stride": 2, "padding": 1, "bias": False}
    )
    assert list(layer.state_dict()) == ["weight", "conv_offset.weight", "conv_offset.bias"]
    assert layer.conv_offset.weight.shape == (per_tap * 9, 4, 3, 3)
    x = torch.randn(2, 4, 7, 8)
    torch.testing.assert_close(layer(x), share * F.conv2d(x, layer.weight, stride=2, padding=1))
    layer(x).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in layer.parameters())


def test_dcnv2_splits_its_prediction_into_offsets_then_masks():
    with pytest.warns(DeprecationWarning, match="deformable_groups"):  # the name in several of mmdet's configurations
        layer = ops.ModulatedDeformConv2dPack(2, 2, 3, padding=1, deformable_groups=1)
    nn.init.normal_(layer.conv_offset.bias)
    nn.init.normal_(layer.bias)
    x, values = torch.randn(1, 2, 4, 4), layer.conv_offset.bias.detach()
    grid = values[:, None, None].expand(27, 4, 4)[None]
    expected = plain_deform_conv(
        x, grid[:, :18], grid[:, 18:].sigmoid(), layer.weight.detach(), layer.bias.detach(), 1, 1, 1, 1, 1
    )
    torch.testing.assert_close(layer(x).detach(), expected)
    layer.init_weights()
    assert not layer.conv_offset.bias.any()
    assert not layer.bias.any()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.DeformConv2d(2, 2, 3, bias=True), "bias=True; allowed: False"),
        (lambda: ops.DeformConv2d(3, 2, 3, groups=2), "groups=2; allowed: a divisor of 3 and of 2"),
        (
            lambda: ops.deform_conv2d(
                torch.zeros(1, 2, 4, 4), torch.zeros(1, 18, 2, 2), torch.zeros(2, 2, 3, 3), 1, 0, 1, 1, 2
            ),
            "offset has 18 channels.*deform_groups=2, groups=1: 36, 2",
        ),
    ],
)
def test_deform_conv_refuses_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# ---------------------------------------------------------------------------------------------------- points, cells


def test_point_sample_reads_pixel_centres():
    features = torch.randn(2, 3, 4, 5)
    rows, columns = torch.tensor([0, 3, 2]), torch.tensor([4, 0, 1])
    points = torch.stack([(columns + 0.5) / 5, (rows + 0.5) / 4], dim=1).expand(2, 3, 2)
    expected = features[:, :, rows, columns]
    torch.testing.assert_close(ops.point_sample(features, points), expected)
    torch.testing.assert_close(ops.point_sample(features, points[:, :, None]), expected[..., None])
    corners = torch.tensor([[0.0, 0.0], [1.0, 1.0]]).expand(2, 2, 2)
    expected = features[:, :, [0, -1], [0, -1]]
    torch.testing.assert_close(ops.point_sample(features, corners, align_corners=True), expected)


def test_rel_roi_point_to_rel_img_point():
    rois, points = torch.tensor([[1.0, 10, 20, 30, 60]]), torch.tensor([[[0.0, 0.0], [0.5, 0.25], [1.0, 1.0]]])
    expected = torch.tensor([[[10.0, 20], [20, 30], [30, 60]]]) / 2 / torch.tensor([50.0, 40.0])
    for boxes, img in itertools.product((rois, rois[:, 1:]), ((40, 50), torch.zeros(1, 3, 40, 50))):
        torch.testing.assert_close(ops.rel_roi_point_to_rel_img_point(boxes, points, img, 0.5), expected)


@pytest.fixture(scope="module")
def mmcv_cells():
    """mmcv's own merge cells: they are plain Python, and mmcv-lite ships the file."""
    source = MMCV_SOURCE / "merge_cells.py"
    if not source.exists():
        pytest.skip("this mmcv-lite does not ship merge_cells.py")
    spec = importlib.util.spec_from_file_location("mmcv.reference.merge_cells", source)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("cell", ["SumCell", "ConcatCell", "GlobalPoolingCell"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"with_out_conv": False},
        {
            "with_input1_conv": True,
            "with_input2_conv": True,
            "out_norm_cfg": {"type": "BN"},
            "upsample_mode": "bilinear",
        },
    ],
)
def test_merge_cells_equal_mmcvs(mmcv_cells, cell, options):
    theirs, ours = (getattr(module, cell)(4, 4, **options).eval() for module in (mmcv_cells, ops))
    ours.load_state_dict(theirs.state_dict(), strict=True)
    shapes = [(8, 8), (4, 4), (7, 5), (3, 8), (10, 2)]
    for first, second, size in itertools.product(shapes, shapes, [None, (4, 4), (5, 3), (9, 9)]):
        x1, x2 = torch.randn(1, 4, *first), torch.randn(1, 4, *second)
        torch.testing.assert_close(ours(x1, x2, out_size=size), theirs(x1, x2, out_size=size))


def test_merge_cells_by_hand():
    x1, x2 = torch.randn(1, 2, 2, 2), torch.randn(1, 2, 4, 4)
    big = x1.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(ops.SumCell(2, 2, with_out_conv=False)(x1, x2), big + x2)
    gate = x2.mean(dim=(2, 3), keepdim=True).sigmoid()
    torch.testing.assert_close(ops.GlobalPoolingCell(with_out_conv=False)(x1, x2), x2 + gate * big)
    assert [name for name, _ in ops.ConcatCell(2, 3).named_parameters()] == [
        "out_conv.conv.weight",
        "out_conv.conv.bias",
    ]
    with pytest.raises(ValueError, match="upsample_mode='area'; allowed: nearest, bilinear"):
        ops.SumCell(2, 2, upsample_mode="area")


def test_nas_fpn_is_built_and_trained():
    neck = MODELS.build(
        {"type": "NASFPN", "in_channels": [4, 8, 16], "out_channels": 8, "num_outs": 5, "stack_times": 2}
    )
    levels = neck([torch.randn(1, c, s, s) for c, s in ((4, 32), (8, 16), (16, 8))])
    assert [tuple(level.shape) for level in levels] == [(1, 8, s, s) for s in (32, 16, 8, 4, 2)]
    sum(level.square().sum() for level in levels).backward()
    assert all(p.grad.abs().sum() > 0 for p in neck.parameters())


# ---------------------------------------------------------------------------------------------------- mmdet


def detector(name, nms):
    anchors = {"type": "AnchorGenerator", "ratios": [0.5, 1.0, 2.0], "strides": [4, 8, 16, 32, 64]}
    coder = {"type": "DeltaXYWHBBoxCoder", "target_means": [0.0] * 4, "target_stds": [1.0] * 4}
    assigner = {"type": "MaxIoUAssigner", "pos_iou_thr": 0.5, "neg_iou_thr": 0.4, "min_pos_iou": 0}
    sampler = {"type": "RandomSampler", "num": 32, "pos_fraction": 0.5}
    box_loss, classes = {"type": "L1Loss"}, {"type": "CrossEntropyLoss"}
    config = {
        "data_preprocessor": {"type": "DetDataPreprocessor", "pad_size_divisor": 32},
        "backbone": {"type": "ResNet", "depth": 50, "stem_channels": 8, "base_channels": 8, "style": "pytorch"},
        "neck": {"type": "FPN", "in_channels": [32, 64, 128, 256], "out_channels": 16, "num_outs": 5},
    }
    if name == "RetinaNet":
        head = {"type": "RetinaHead", "num_classes": 4, "in_channels": 16, "feat_channels": 16, "stacked_convs": 1}
        head |= {"anchor_generator": anchors | {"octave_base_scale": 4, "scales_per_octave": 1}, "bbox_coder": coder}
        head |= {"loss_cls": {"type": "FocalLoss"}, "loss_bbox": box_loss}
        train = {"assigner": assigner, "sampler": {"type": "PseudoSampler"}, "allowed_border": -1, "pos_weight": -1}
        test = {"nms_pre": 100, "min_bbox_size": 0, "score_thr": 0.0, "nms": nms, "max_per_img": 20}
        return MODELS.build(
            ConfigDict(config | {"type": name, "bbox_head": head, "train_cfg": train, "test_cfg": test})
        )
    config["backbone"] |= {"dcn": {"type": "DCNv2", "deform_groups": 1}, "stage_with_dcn": (False, False, False, True)}
    rpn = {"type": "RPNHead", "in_channels": 16, "feat_channels": 16, "anchor_generator": anchors | {"scales": [4]}}
    rpn |= {"bbox_coder": coder, "loss_cls": classes | {"use_sigmoid": True}, "loss_bbox": box_loss}
    roi_layer = {"type": "RoIAlign", "output_size": 7, "sampling_ratio": 0}
    extractor = {"type": "SingleRoIExtractor", "roi_layer": roi_layer, "out_channels": 16}
    box_head = {"type": "Shared2FCBBoxHead", "in_channels": 16, "fc_out_channels": 32, "num_classes": 4}
    box_head |= {"bbox_coder": coder, "loss_cls": classes, "loss_bbox": box_loss}
    roi_head = {"type": "StandardRoIHead", "bbox_head": box_head}
    roi_head["bbox_roi_extractor"] = extractor | {"featmap_strides": [4, 8, 16, 32]}
    common = {"assigner": assigner, "sampler": sampler, "pos_weight": -1}
    proposal = {"nms_pre": 100, "max_per_img": 50, "nms": {"type": "nms", "iou_threshold": 0.7}, "min_bbox_size": 0}
    return MODELS.build(
        ConfigDict(
            config
            | {"type": name, "rpn_head": rpn, "roi_head": roi_head}
            | {"train_cfg": {"rpn": common | {"allowed_border": -1}, "rpn_proposal": proposal, "rcnn": common}}
            | {"test_cfg": {"rpn": proposal, "rcnn": {"score_thr": 0.0, "nms": nms, "max_per_img": 20}}}
        )
    )


@pytest.mark.parametrize("nms_type", ["nms", "soft_nms"])
@pytest.mark.parametrize("name", ["FasterRCNN", "RetinaNet"])
def test_mmdet_detectors_train_and_predict(name, nms_type):
    with DefaultScope.overwrite_default_scope("mmdet"):
        model = detector(name, {"type": nms_type, "iou_threshold": 0.5})
    samples = []
    for corner in (5.0, 20.0):
        boxes = torch.tensor([[corner, corner, corner + 20, corner + 30], [0, 0, 16, 16]])
        meta = {"img_shape": (64, 64), "ori_shape": (64, 64), "scale_factor": (1.0, 1.0)}
        samples.append(
            DetDataSample(metainfo=meta, gt_instances=InstanceData(bboxes=boxes, labels=torch.tensor([1, 3])))
        )
    batch = {
        "inputs": [torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8) for _ in samples],
        "data_samples": samples,
    }
    data = model.data_preprocessor(batch, training=True)
    losses = model(**data, mode="loss")
    total = sum(
        value.sum()
        for key, value in losses.items()
        for value in ([value] if torch.is_tensor(value) else value)
        if "loss" in key
    )
    total.backward()
    assert math.isfinite(total.item())
    assert model.backbone.layer4[0].conv2.weight.grad.abs().sum() > 0
    model.eval()
    with torch.no_grad():
        for result in model(**model.data_preprocessor(batch), mode="predict"):
            found = result.pred_instances
            assert 0 < len(found) <= 20
            assert found.scores.diff().max() <= 0
            if nms_type == "nms":
                for label in found.labels.unique():
                    boxes = found.bboxes[found.labels == label].tolist()
                    assert all(plain_iou(a, b) <= 0.5 + 1e-4 for a, b in itertools.combinations(boxes, 2))
