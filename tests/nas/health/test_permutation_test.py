"""Parts of a detector that are not computed again where only annotations change."""

import pytest
import torch

from hitdet_nni.config.settings import load_settings
from hitdet_nni.data.loaders import search_loaders
from hitdet_nni.model.detector import build_detector
from hitdet_nni.nas.health.permutation_test import detector_losses, held_out_losses, remembered_parts


@pytest.fixture(scope="module", params=["faster_rcnn", "retinanet"])
def held_out(request, tiny_data):
    overrides = {"skeleton.detector": request.param}
    settings = load_settings("tiny", {**overrides, **({"skeleton.head_blocks": 1} if "ret" in request.param else {})})
    skeleton = settings.skeleton
    operators = {"backbone": "ir_k3_d1_e3", "neck": "sep_k3_d1", "head": "ir_k3_d1_e3"}
    torch.manual_seed(0)
    sample = {layer.label: operators[layer.component] for layer in skeleton.searched_layers()}
    detector = build_detector(skeleton, sample, len(tiny_data.classes)).eval()
    return detector, list(search_loaders(tiny_data, settings.data, skeleton, seed=0)[1])


def losses_of(detector, batches):
    torch.manual_seed(0)
    kinds = ("annotations", "categories")
    return held_out_losses(lambda batch: detector_losses(detector, batch), batches, kinds, seed=3)


@torch.no_grad()
def test_remembering_changes_no_bit_and_saves_passes(held_out):
    detector, batches = held_out
    passes = {"stem": 0, "head": 0}

    def count(name):
        def add(*_):
            passes[name] += 1

        return add

    two_stage = hasattr(detector, "roi_head")
    head = detector.roi_head.bbox_head.blocks[0] if two_stage else detector.backbone.stages[0]
    hooks = [
        module.register_forward_hook(count(name)) for name, module in (("stem", detector.backbone.stem), ("head", head))
    ]
    plain = losses_of(detector, batches)
    assert passes == {"stem": 3 * len(batches), "head": 3 * len(batches)}
    passes.update(stem=0, head=0)
    with remembered_parts(detector):
        remembered = losses_of(detector, batches)
    for hook in hooks:
        hook.remove()
    # RoIs depend on the boxes, so that those of permuted annotations are others.
    assert passes == {"stem": len(batches), "head": (2 if two_stage else 1) * len(batches)}
    assert remembered == plain
    assert any(abs(row["loss"]) > 0 for row in plain[1]["annotations"])


@torch.no_grad()
def test_other_inputs_are_computed_and_nothing_is_left_behind(held_out):
    detector, _ = held_out
    one, other = torch.randn(2, 1, 3, 64, 64)
    with remembered_parts(detector):
        first = detector.backbone(one)
        assert all(map(torch.equal, detector.backbone(one.clone()), first))
        assert not torch.equal(detector.backbone(other)[0], first[0])
        assert torch.equal(detector.backbone(one)[0], first[0])
    assert all("forward" not in vars(module) for module in detector.modules())
