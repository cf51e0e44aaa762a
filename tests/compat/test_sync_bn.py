import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.distributed as dist
from group import run_group
from mmcv import ops
from mmdet.registry import MODELS
from torch import nn

IMAGES = torch.randn(6, 3, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 2


def normalise(norm, images):
    x = images.clone().requires_grad_()
    y = norm(x)
    (y * torch.linspace(0, 1, y.shape[1:].numel(), dtype=y.dtype).view(y.shape[1:])).square().sum().backward()
    return {"y": y.detach(), "x": x.grad, "of weight": norm.weight.grad, "of bias": norm.bias.grad, **norm.state_dict()}


def same_scale(norm):
    norm = norm.double()
    nn.init.uniform_(norm.weight, generator=torch.Generator().manual_seed(1))
    return norm


def share():
    """What one of two processes finds: equal and unequal shares of the images, and none."""
    results = {}
    for name, mode, first in (("equal", "default", 3), ("unequal", "N", 2), ("none", "N", 0), ("mean", "default", 2)):
        norm = same_scale(ops.SyncBatchNorm(3, eps=1e-4, momentum=0.3, stats_mode=mode))
        results[name] = normalise(norm, IMAGES[:first] if dist.get_rank() == 0 else IMAGES[first:])
    return results | {"size": norm.group_size}


def run_threads(function):
    """What `function()` returns in each of two threads, whose sums meet as those of two processes."""
    barrier, local, given = threading.Barrier(2, timeout=30), threading.local(), {}

    def all_reduce(tensor, group=None):
        given[local.rank] = tensor.clone()
        barrier.wait()
        tensor.copy_(given[0] + given[1])
        barrier.wait()

    def member(rank):
        local.rank = rank
        return function()

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(2) as pool:
        patch.setattr(dist, "all_reduce", all_reduce)
        patch.setattr(dist, "is_initialized", lambda: True)
        patch.setattr(dist, "get_world_size", lambda group: 2)
        patch.setattr(dist, "get_rank", lambda: local.rank)
        return list(pool.map(member, range(2)))


@pytest.fixture(scope="module", params=["threads", pytest.param("processes", marks=pytest.mark.slow)])
def shares(request, tmp_path_factory):
    return run_threads(share) if request.param == "threads" else run_group(share, tmp_path_factory.mktemp("group"))


@pytest.mark.parametrize("name", ["equal", "unequal", "none"])
def test_statistics_are_those_of_all_processes(shares, name):
    expected = normalise(same_scale(nn.BatchNorm2d(3, eps=1e-4, momentum=0.3)), IMAGES)
    found = [result[name] for result in shares]
    assert shares[0]["size"] == 2
    for key in ("y", "x"):
        torch.testing.assert_close(torch.cat([part[key] for part in found]), expected[key])
    for key in ("of weight", "of bias"):
        torch.testing.assert_close(sum(part[key] for part in found), expected[key])
    for part in found:
        torch.testing.assert_close(part["running_mean"], expected["running_mean"])
        # As in mmcv the unbiased variance counts each process's own pixels twice.
        pixels = 2 * part["y"][:, 0].numel()
        variance = IMAGES.var(dim=(0, 2, 3), unbiased=False) * (pixels / (pixels - 1) if pixels else 1)
        torch.testing.assert_close(part["running_var"], 0.7 + 0.3 * variance)
        assert part["num_batches_tracked"] == 1


def test_default_statistics_count_each_process_alike(shares):
    mean = (IMAGES[:2].mean(dim=(0, 2, 3)) + IMAGES[2:].mean(dim=(0, 2, 3))) / 2
    assert not torch.allclose(mean, IMAGES.mean(dim=(0, 2, 3)))
    variance = sum((part - mean[:, None, None]).square().mean(dim=(0, 2, 3)) for part in (IMAGES[:2], IMAGES[2:])) / 2
    weight = same_scale(ops.SyncBatchNorm(3)).weight.detach()
    scale = (weight / (variance + 1e-4).sqrt())[:, None, None]
    expected = (IMAGES - mean[:, None, None]) * scale
    torch.testing.assert_close(torch.cat([result["mean"]["y"] for result in shares]), expected)


@pytest.mark.parametrize("mode", ["default", "N"])
@pytest.mark.parametrize("momentum", [0.3, None])
def test_a_process_alone_is_plain_batch_normalisation(mode, momentum):
    ours = same_scale(MODELS.build({"type": "MMSyncBN", "num_features": 3, "momentum": momentum, "stats_mode": mode}))
    plain = same_scale(nn.BatchNorm2d(3, momentum=momentum))
    assert list(ours.state_dict()) == list(plain.state_dict())
    for images in (IMAGES[:2], IMAGES[2:]):
        torch.testing.assert_close(normalise(ours, images), normalise(plain, images))
    ours.load_state_dict(plain.state_dict())
    torch.testing.assert_close(ours.eval()(IMAGES), plain.eval()(IMAGES))


def test_sync_bn_gradients_and_shapes():
    norm = same_scale(ops.SyncBatchNorm(3, affine=True))
    assert torch.autograd.gradcheck(norm, IMAGES[:2, :, :2, :2].clone().requires_grad_())
    points = torch.randn(5, 3, dtype=torch.double)
    plain = nn.BatchNorm1d(3, affine=False, track_running_stats=False)
    ours = ops.SyncBatchNorm(3, affine=False, track_running_stats=False).eval()
    assert not ours.state_dict()
    torch.testing.assert_close(ours(points), plain(points))
    half = ops.SyncBatchNorm(3)(IMAGES.bfloat16())
    assert half.dtype == torch.bfloat16
    turned = IMAGES.to(memory_format=torch.channels_last)  # not contiguous
    torch.testing.assert_close(norm(turned), norm(IMAGES))
    assert norm(turned).stride() == turned.stride()


def test_sync_bn_starts_as_mmcvs():
    norm = ops.SyncBatchNorm(200)
    assert 0 <= norm.weight.min() < 0.1
    assert 0.9 < norm.weight.max() <= 1
    assert not norm.bias.any()
    empty = ops.SyncBatchNorm(3, stats_mode="N")
    assert empty(torch.zeros(0, 3, 2, 2)).shape == (0, 3, 2, 2)
    assert empty.running_var.tolist() == [1, 1, 1]
    assert empty.num_batches_tracked == 1
    empty.reset_parameters()
    assert empty.num_batches_tracked == 0


def test_sync_bn_refuses_bad_input():
    with pytest.raises(ValueError, match="stats_mode='mean'; allowed: default, N"):
        ops.SyncBatchNorm(3, stats_mode="mean")
    with pytest.raises(ValueError, match=r"input \(3,\); allowed: \(N, 3, ...\)"):
        ops.SyncBatchNorm(3)(torch.zeros(3))
