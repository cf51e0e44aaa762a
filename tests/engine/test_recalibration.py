"""Running statistics of batch normalisation are the means of those of the batches they are taken anew from."""

import pytest
import torch
from group import run_group
from torch import nn

from hitdet_nni.config.settings import load_settings
from hitdet_nni.data.loaders import search_loaders
from hitdet_nni.engine import distributed
from hitdet_nni.engine.recalibration import recalibrate
from hitdet_nni.engine.synced_batch_norm import FrozenBatchNorm2d, SyncedBatchNorm2d, apply_batch_norm
from hitdet_nni.model.detector import build_detector
from hitdet_nni.model.level_norm import LevelBatchNorm2d, select_level
from hitdet_nni.nas.evaluator import detection_loss


def maps(count=3, generator=None):
    """Maps of several scales and means, each a batch of ours."""
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    return [{"inputs": torch.randn(2, 3, 5, 5, generator=generator) * scale + scale} for scale in range(1, count + 1)]


def moments(batches):
    """Mean over the batches of each batch's mean and unbiased variance, by channel."""
    values = [batch["inputs"].transpose(0, 1).reshape(3, -1) for batch in batches]
    return [torch.stack([getattr(each, name)(1) for each in values]).mean(0) for name in ("mean", "var")]


def spoil(norm):
    """Give a normalisation averages that are of something else."""
    norm.running_mean.fill_(7)
    norm.running_var.fill_(9)
    norm.num_batches_tracked.fill_(1000)


def test_recalibration_is_the_mean_over_batches():
    detector = nn.Sequential(nn.BatchNorm2d(3, momentum=0.3), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    spoil(detector[0])
    batches = maps()
    recalibrate(detector, batches, lambda batch: detector(batch["inputs"]).sum())
    mean, variance = moments(batches)
    torch.testing.assert_close(detector[0].running_mean, mean)
    torch.testing.assert_close(detector[0].running_var, variance)
    assert detector[0].num_batches_tracked == len(batches)
    assert detector[2].running_mean.abs().min() > 0
    assert (detector[0].momentum, detector[2].momentum) == (0.3, 0.1)
    assert all(p.grad is None for p in detector.parameters())


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_put_back(training):
    norm = nn.Sequential(nn.BatchNorm2d(3)).train(training)
    recalibrate(norm, maps(), lambda batch: norm(batch["inputs"]))
    assert [module.training for module in norm.modules()] == [training] * 2


def test_each_level_has_the_mean_over_its_batches():
    norm = LevelBatchNorm2d(3, 3)
    spoil(norm)
    levels = [maps(3), maps(2, torch.Generator().manual_seed(1))]  # the second level has fewer, and the third none

    def run(batch):
        for level, inputs in batch.items():
            select_level(norm, level)
            norm(inputs)

    single = {1: torch.ones(1, 3, 1, 1)}  # has no variance and does not count
    batches = [
        {level: seen[number]["inputs"] for level, seen in enumerate(levels) if number < len(seen)}
        for number in range(3)
    ]
    for _ in range(2):  # begins anew each time
        recalibrate(norm, [*batches, single], run)
        for level, seen in enumerate(levels):
            mean, variance = moments(seen)
            torch.testing.assert_close(norm.running_mean[level], mean)
            torch.testing.assert_close(norm.running_var[level], variance)
        assert (norm.running_mean[2] == 0).all()
        assert (norm.running_var[2] == 1).all()
    assert norm.momentum == 0.1


def test_frozen_statistics_stay_and_are_used():
    """What stands behind a frozen normalisation sees maps that its own statistics have normalised."""
    net = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3))
    frozen = nn.Sequential(net[0])
    spoil(net[0])
    apply_batch_norm(frozen, "frozen")
    net = nn.Sequential(frozen[0], net[1])
    batches = maps()
    recalibrate(net, batches, lambda batch: net(batch["inputs"]))
    assert (net[0].running_mean == 7).all()
    assert (net[0].running_var == 9).all()
    mean, variance = moments(batches)
    torch.testing.assert_close(net[1].running_mean, (mean - 7) / (9 + net[0].eps) ** 0.5)
    torch.testing.assert_close(net[1].running_var, variance / (9 + net[0].eps))


def synced_statistics():
    net = nn.Sequential(nn.BatchNorm2d(3))
    apply_batch_norm(net, "synced")
    assert type(net[0]) is SyncedBatchNorm2d
    spoil(net[0])
    images = slice(0, 1) if distributed.rank() == 0 else slice(1, None)
    recalibrate(net, maps(), lambda batch: net(batch["inputs"][images]))
    return net.state_dict()


def test_synced_statistics_are_of_the_batches_of_all_processes(tmp_path):
    mean, variance = moments(maps())
    for state in run_group(synced_statistics, tmp_path):
        torch.testing.assert_close(state["0.running_mean"], mean)
        torch.testing.assert_close(state["0.running_var"], variance)
        assert state["0.num_batches_tracked"] == 3


@pytest.mark.parametrize("kind", ["faster_rcnn", "retinanet"])
def test_a_detector_gets_the_cumulative_average_bit_for_bit(kind, tiny_data):
    """As momenta of 1, 1/2, 1/3, ... give it."""
    settings = load_settings(
        "tiny", {"skeleton.detector": kind, **({"skeleton.head_blocks": 1} if kind == "retinanet" else {})}
    )
    skeleton = settings.skeleton
    sample = {layer.label: "sep_k3_d1" for layer in skeleton.searched_layers()}
    batches = list(search_loaders(tiny_data, settings.data, skeleton, seed=0)[0])
    states = []
    for by_momentum in (True, False):
        torch.manual_seed(0)
        detector = build_detector(skeleton, sample, len(tiny_data.classes)).train()
        norms = [module for module in detector.modules() if isinstance(module, nn.BatchNorm2d)]
        if by_momentum:
            for number, batch in enumerate(batches, start=1):
                for norm in norms:
                    norm.momentum = 1 / number
                with torch.no_grad():
                    detection_loss(detector, batch)
        else:
            for norm in norms:
                spoil(norm)
            recalibrate(detector, batches, lambda batch, detector=detector: detection_loss(detector, batch))
        states.append(detector.state_dict())
    assert len(batches) > 1
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


@pytest.mark.parametrize(
    ("mode", "kind"), [("local", nn.BatchNorm2d), ("synced", SyncedBatchNorm2d), ("frozen", FrozenBatchNorm2d)]
)
def test_torch_s_synced_norms_of_baselines_are_converted(mode, kind):
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.SyncBatchNorm(4, eps=1e-3, momentum=0.25))
    keys, weight = list(net.state_dict()), net[1].weight
    apply_batch_norm(net, mode)
    assert type(net[1]) is kind
    assert (net[1].eps, net[1].momentum) == (1e-3, 0.25)
    assert net[1].weight is weight
    assert list(net.state_dict()) == keys
    assert net.train()(torch.randn(2, 3, 4, 4)).isfinite().all()
