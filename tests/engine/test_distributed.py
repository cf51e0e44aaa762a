"""Collective operations among two processes, against their closed forms."""

import pytest
import torch
from group import run_group
from torch import nn

from hitdet_nni.engine import distributed
from hitdet_nni.engine.synced_batch_norm import FrozenBatchNorm2d, SyncedBatchNorm2d, apply_batch_norm
from hitdet_nni.errors import InputError
from hitdet_nni.model.level_norm import LevelBatchNorm2d


def collect():
    """Everything of `hitdet_nni.engine.distributed` in one group, to start processes only once."""
    rank = distributed.rank()
    parameters = [nn.Parameter(torch.zeros(3)) for _ in range(3)]
    parameters[0].grad = torch.full((3,), float(rank + 1))
    if rank == 1:
        parameters[1].grad = torch.full((3,), 4.0)
    distributed.average_gradients(parameters)
    module = nn.BatchNorm2d(2)
    nn.init.constant_(module.weight, float(rank))
    distributed.broadcast_state(module)
    distributed.BUCKET_BYTES = 8
    many = [torch.full((5,), float(rank)), torch.arange(2), torch.full((2,), 3.0 * rank, dtype=torch.float64)]
    distributed.average(many)
    equal = torch.tensor([1.0, float("nan")])
    distributed.require_equal([equal], "numbers")
    try:
        distributed.require_equal([torch.tensor([1.0 + rank * 1e-7])], "numbers")
        error = ""
    except RuntimeError as caught:
        error = str(caught)
    return {
        "gradients": [parameter.grad for parameter in parameters],
        "weight": module.weight.detach(),
        "many": many,
        "broadcast_object": distributed.broadcast_object(f"said by {rank}"),
        "gather": distributed.gather(rank),
        "mean": distributed.mean(float(rank)),
        "error": error,
        "main": distributed.is_main(),
        "synced": synced_share(SHARES[rank]),
        "channels last": synced_share(SHARES[rank].to(memory_format=torch.channels_last)),
        "one has no images": synced_share(IMAGES if rank == 1 else IMAGES[:0]),
        "none has images": synced_share(IMAGES[:0]),
        "bf16": synced_share(SHARES[rank].bfloat16(), torch.float32),
        "exchanges": exchanges_of_a_step(SHARES[rank]),
        "rehearsed": rehearsed_share() if rank == 1 else None,  # would wait for ever if anything were exchanged
    }


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What each of two processes found."""
    return run_group(collect, tmp_path_factory.mktemp("group"))


def test_collective_operations(results):
    for rank, result in enumerate(results):
        first, second, third = result["gradients"]
        assert torch.equal(first, torch.full((3,), 1.5))
        assert torch.equal(second, torch.full((3,), 2.0))  # missing in one process: counts as zero there
        assert third is None
        assert torch.equal(result["weight"], torch.zeros(2))
        assert torch.equal(result["many"][0], torch.full((5,), 0.5))
        assert torch.equal(result["many"][1], torch.arange(2))
        assert torch.equal(result["many"][2], torch.full((2,), 1.5, dtype=torch.float64))
        assert result["broadcast_object"] == "said by 0"
        assert result["gather"] == [0, 1]
        assert result["mean"] == 0.5
        assert "process 1 differ" in result["error"]
        assert result["main"] is (rank == 0)


IMAGES = torch.randn(6, 3, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 2
SHARES = IMAGES[:2], IMAGES[2:]


def normalise(norm, images):
    x = images.clone().requires_grad_()
    y = norm(x)
    factors = torch.linspace(0, 1, y.shape[1:].numel(), dtype=y.dtype, device=y.device)
    (y * factors.view(y.shape[1:])).square().sum().backward()
    gradients = {"x": x.grad, "of weight": norm.weight.grad, "of bias": norm.bias.grad}
    return {"y": y.detach(), **gradients, **norm.state_dict()}


def rehearsed_share():
    with distributed.rehearsed():
        numbers = torch.arange(3.0)
        distributed.sum_in_place(numbers)
        gathered = distributed.gather_tensor(numbers)
        return {"sums": numbers, "gathered": gathered, "share": synced_share(SHARES[1])}


def exchanges_of_a_step(images):
    """How often the forward pass of a normalisation, and both passes, speak to the other process."""
    norm = nn.Sequential(nn.BatchNorm2d(3, dtype=torch.float64))
    apply_batch_norm(norm, "synced")
    spoken = []
    with pytest.MonkeyPatch.context() as patch:
        for name in ("all_reduce", distributed.gathering()):
            patch.setattr(torch.distributed, name, counted(getattr(torch.distributed, name), spoken))
        y = norm(images.clone().requires_grad_())
        forward = len(spoken)
        y.sum().backward()
    return [forward, len(spoken)]


def counted(function, calls):
    def call(*arguments, **keywords):
        calls.append(function)
        return function(*arguments, **keywords)

    return call


def synced_share(images, dtype=torch.float64):
    plain = batch_norm().to(images.device, dtype)
    net = nn.Sequential(plain)
    apply_batch_norm(net, "synced")
    norm = net[0]
    assert type(norm) is SyncedBatchNorm2d
    assert norm.weight is plain.weight
    assert norm.running_mean is plain.running_mean
    return normalise(norm, images)


def whole_batch(images):
    return normalise(batch_norm(), images)


def batch_norm():
    norm = nn.BatchNorm2d(3, eps=1e-4, momentum=0.3, dtype=torch.float64)
    nn.init.uniform_(norm.weight, generator=torch.Generator().manual_seed(1))
    return norm


def test_synced_batch_norm_is_that_of_the_whole_batch(results):
    for order in ("synced", "channels last"):
        equals_whole_batch([result[order] for result in results], whole_batch(IMAGES))


def test_a_process_without_images_has_no_share(results):
    equals_whole_batch([result["one has no images"] for result in results], whole_batch(IMAGES))
    for result in results:
        found, before = result["none has images"], batch_norm().state_dict()
        assert not found["of weight"].any()
        assert all(torch.equal(found[name], before[name]) for name in ("running_mean", "running_var"))


def test_maps_of_16_bits_have_exact_statistics(results):
    """What is rounded to 16 bits is maps and their gradients."""
    shares = [result["bf16"] for result in results]
    assert {share["y"].dtype for share in shares} == {share["x"].dtype for share in shares} == {torch.bfloat16}
    expected = whole_batch(IMAGES.bfloat16().double())
    equals_whole_batch(shares, expected, rtol=2e-2, atol=2e-2)
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(shares[0][name].double(), expected[name], rtol=1e-6, atol=0)


def test_processes_wait_for_hours(monkeypatch):
    """While the main one waits for another trial's screening, or times steps; nccl's own limit is ten minutes."""
    given = {}
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda kind, **more: given.update(more))
    monkeypatch.setattr(torch.cuda, "set_device", lambda number: None)
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setattr(distributed, "_joined", False)
    distributed.init()
    assert given["timeout"].total_seconds() >= 12 * 3600


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(distributed, "_joined", False)
    with pytest.raises(InputError, match="LOCAL_RANK: gives this process GPU 1, counted from 0, and it sees 1"):
        distributed.init()


def test_each_pass_exchanges_once(results):
    assert [result["exchanges"] for result in results] == [[1, 2], [1, 2]]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 3e-2), ("float16", 4e-3)])
def test_synced_statistics_on_a_device(device, order, dtype, tolerance, monkeypatch):
    """With this process counted for both, and a mean beside which the deviation is small."""
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    images = (IMAGES + 20).to(getattr(torch, dtype))
    with distributed.rehearsed():
        share = synced_share(images.to(device, memory_format=order), torch.float32)
    share = {name: value.cpu() for name, value in share.items()}
    expected = whole_batch(torch.cat([images, images]).double())
    shared = {name: value / 2 if "of " in name else value for name, value in expected.items()}
    halves = {name: value[: len(IMAGES)] if name in ("x", "y") else value for name, value in shared.items()}
    for name, value in halves.items():
        scale = max(float(value.abs().max()), 1.0)
        torch.testing.assert_close(share[name].double() / scale, value.double() / scale, rtol=0, atol=tolerance)


def equals_whole_batch(shares, expected, **tolerance):
    for name in ("y", "x"):
        found = torch.cat([share[name] for share in shares])
        torch.testing.assert_close(found.to(expected[name].dtype), expected[name], **tolerance)
    for name in ("of weight", "of bias"):
        found = sum(share[name] for share in shares)
        torch.testing.assert_close(found.to(expected[name].dtype), expected[name], **tolerance)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        for share in shares:
            torch.testing.assert_close(share[name].to(expected[name].dtype), expected[name], **tolerance)


def test_a_rehearsal_counts_a_process_for_all(results):
    found = results[1]["rehearsed"]
    assert torch.equal(found["sums"], torch.tensor([0.0, 2.0, 4.0]))
    assert torch.equal(found["gathered"], torch.tensor([[0.0, 2.0, 4.0], [0.0, 2.0, 4.0]]))
    share = found["share"]
    expected = whole_batch(torch.cat([IMAGES[2:], IMAGES[2:]]))
    for name in ("y", "x"):
        torch.testing.assert_close(torch.cat([share[name], share[name]]), expected[name])
    for name in ("of weight", "of bias"):
        torch.testing.assert_close(2 * share[name], expected[name])
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        torch.testing.assert_close(share[name], expected[name])


def test_frozen_statistics_stay_while_scale_and_shift_learn():
    net = nn.Sequential(nn.BatchNorm2d(3), LevelBatchNorm2d(3, 2))
    apply_batch_norm(net, "frozen")
    net.train()
    assert type(net[0]) is FrozenBatchNorm2d
    before = {name: value.clone() for name, value in net.named_buffers()}
    net(torch.randn(2, 3, 4, 4)).square().sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in net.named_buffers())
    assert all(parameter.grad.abs().sum() > 0 for parameter in net.parameters())


def test_levels_cannot_be_synced(refused):
    with refused("batch_norm", "local, frozen"):
        apply_batch_norm(nn.Sequential(LevelBatchNorm2d(3, 2)), "synced")


def test_a_process_alone_is_a_group_of_one():
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
    assert distributed.broadcast_object(7) == 7
    assert distributed.gather(7) == [7]
    distributed.require_equal([torch.ones(2)], "numbers")


@pytest.mark.parametrize("size", ["1", None])
def test_init_does_nothing_alone(monkeypatch, size):
    if size is None:
        monkeypatch.delenv("WORLD_SIZE", raising=False)
    else:
        monkeypatch.setenv("WORLD_SIZE", size)
    distributed.init()
    assert not torch.distributed.is_initialized()
