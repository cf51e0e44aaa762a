"""Recorded passes: the same steps with and without, on a CPU with a recorder that runs the function again."""

from __future__ import annotations

import contextlib
import gc
import itertools
import logging
import random
import weakref

import pytest
import torch
from test_fused import FAMILIES, LAYERS, build, fused
from torch import nn

from hitdet_nni.nas.fused import backend, function, save_policy
from hitdet_nni.nas.fused.function import PLANS, FusedMixture
from hitdet_nni.nas.fused.graph_memory import SharedMemory, TapeMemory, capture
from hitdet_nni.nas.fused.recording import RECORDED_SIZES, Pass, Recording, Recordings, _agree

LAYER = LAYERS[0]
STEPS = 10


def again(function, device):
    """Stands in for a graph: replaying runs the function."""
    return function


@pytest.fixture
def record(monkeypatch):
    """Let mixtures record with a recorder; returns the recordings of all of them."""

    def start(recorder):
        made = {}

        def recording(mixture, layer, x, parameters):
            recordings = made.setdefault(mixture, Recordings(recorder))
            size = (layer.shape, tuple(layer.plan.use_batch_stats.values()))
            return recordings.find(size, tuple(p.data_ptr() for p in parameters))

        monkeypatch.setattr(FusedMixture, "recording", recording)
        return made

    return start


def train(activations="fused-low"):
    """Outputs, gradients and the final state of steps of both phases."""
    in_channels, _, _, (count, height, width) = LAYER
    modules = build(FAMILIES, *LAYER[:3], torch.float64)
    mixture = fused(modules, activations)
    alpha = nn.Parameter(torch.zeros(len(FAMILIES), dtype=torch.float64))
    optimizers = (torch.optim.SGD([alpha], 0.1), torch.optim.SGD(modules.parameters(), 0.01))
    torch.manual_seed(5)
    found = []
    for step in range(STEPS):
        modules.requires_grad_(step % 2 == 1)
        alpha.requires_grad_(step % 2 == 0)
        x = torch.randn(count, in_channels, height, width, dtype=torch.float64)
        x = x.to(memory_format=torch.channels_last).requires_grad_()
        y = mixture(x, alpha.softmax(-1))
        y.square().mean().backward()
        optimizers[step % 2].step()
        alpha.grad = None
        modules.zero_grad()
        found += [y.detach().clone(), x.grad.clone()]
    return [*found, alpha.detach(), *modules.state_dict().values()]


def equal(some, others):
    return all(torch.equal(one, other) for one, other in zip(some, others, strict=True))


@pytest.mark.parametrize("large", [save_policy.LARGE, 0], ids=["small maps", "large maps"])
@pytest.mark.parametrize("activations", ["fused", "fused-low", "fused-min"])
def test_replayed_steps_equal_the_others_bit_by_bit(record, activations, large, monkeypatch):
    monkeypatch.setattr(save_policy, "LARGE", large)
    plainly = train(activations)
    made = record(again)
    assert equal(train(activations), plainly)
    (recordings,) = made.values()
    (recording,) = recordings.by_size.values()
    assert recording.memory.generation == STEPS  # one was recorded, eight replayed, the first not
    assert len(recording.backward_passes) == 2


@pytest.mark.parametrize("activations", ["fused", pytest.param("fused-low", marks=pytest.mark.slow)])
def test_replayed_programs_of_a_gpu_equal_themselves(record, activations, monkeypatch):
    """Interpreted; what they leave to the backward pass is computed where it will lie."""
    for module in (backend, function):
        monkeypatch.setattr(module, "uses_triton", lambda x: True)
    monkeypatch.setattr(save_policy, "LARGE", 0)
    weights = torch.full((3,), 1 / 3, dtype=torch.float64)

    def steps():
        modules = build(("ir_k3_d1_e3", "sep_k3_d2", "conv_k3_d1"), 6, 6, 1, torch.float64)
        return sizes(fused(modules, activations), [(1, 6, 4, 5)] * 4, weights)

    plainly = steps()
    made = record(again)
    assert equal(steps(), plainly)
    (recordings,) = made.values()
    assert recordings.memory.generation == 4  # recorded, and replayed twice


def test_a_recorder_that_fails_is_told_of_once_and_done_without(record, caplog):
    plainly = train()

    def refuses(function, device):
        raise RuntimeError("operation not permitted\nwith details")

    record(refuses)
    with caplog.at_level(logging.WARNING):
        assert equal(train(), plainly)
    assert [entry.getMessage() for entry in caplog.records] == [
        "a mixed layer is not recorded as a CUDA graph: operation not permitted"
    ]


def test_what_could_not_be_recorded_holds_no_memory(record, mixture_and_weights):
    mixture, weights = mixture_and_weights

    def refuses(function, device):
        raise RuntimeError("out of memory")

    made = record(refuses)
    sizes(mixture, [SMALL] * 3, weights)
    assert made[mixture].memory._buffer is None
    made[mixture].recorder = again
    sizes(mixture, [LARGE] * 3, weights)
    kept = made[mixture].memory._buffer
    made[mixture].recorder = refuses
    sizes(mixture, [(1, 6, 3, 3)] * 3, weights)
    assert made[mixture].memory._buffer is kept  # the larger size's, which is recorded


def test_gradients_that_are_not_finite_are_not_recorded_yet(record, caplog):
    """As the first ones of a loss that is scaled for 16 bits."""
    made = record(again)
    mixture = fused(build(FAMILIES, *LAYER[:3], torch.float64))
    x = torch.randn(3, 6, 7, 7, dtype=torch.float64).to(memory_format=torch.channels_last)
    weights = torch.full((len(FAMILIES),), 0.25, dtype=torch.float64)
    passes = []
    for factor in (1.0, float("inf"), 1.0):
        (mixture(x.clone().requires_grad_(), weights).sum() * factor).backward()
        (recording,) = made[mixture].by_size.values()
        passes.append(len(recording.backward_passes))
    assert passes == [0, 0, 1]
    assert not recording.failed
    assert not caplog.records


def test_a_replay_that_gives_something_else_is_not_used(record, caplog):
    plainly = train()

    def wrong(function, device):
        def replay():
            function()
            for cell in function.__closure__:
                if isinstance(cell.cell_contents, list):
                    cell.cell_contents[0].add_(1)

        return replay

    record(wrong)
    with caplog.at_level(logging.WARNING):
        assert equal(train(), plainly)
    assert "differs from what was recorded" in caplog.text


def train_chain(layers):
    """Outputs and gradients of steps through layers of one form, one behind the other."""
    torch.manual_seed(7)
    chain = [build(FAMILIES, 6, 6, 1, torch.float64) for _ in range(layers)]
    mixtures = [fused(modules) for modules in chain]
    weights = torch.full((len(FAMILIES),), 0.25, dtype=torch.float64)
    found = []
    for _ in range(5):
        given = torch.randn(2, 6, 5, 5, dtype=torch.float64).to(memory_format=torch.channels_last).requires_grad_()
        y = given
        for mixture in mixtures:
            y = mixture(y, weights)
        y.square().sum().backward()
        found += [y.detach(), given.grad, *(p.grad for modules in chain for p in modules.parameters())]
        for modules in chain:
            modules.zero_grad()
    return found


def bytes_of(tensors):
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def held_by(recordings):
    for one in recordings:
        for each in (one.forward_pass, *one.backward_passes.values()):
            yield from each.inputs
            yield from (tensor for tensor in each.outputs if tensor is not None)


def test_layers_of_one_form_share_all_but_what_their_backward_passes_need(record):
    plainly = train_chain(3)
    made = record(again)
    assert equal(train_chain(3), plainly)
    recorded = [one for recordings in made.values() for one in recordings.by_size.values()]
    assert len(recorded) == 3
    own = [bytes_of([*one.forward_pass.inputs, *one.forward_pass.outputs[1:]]) for one in recorded]
    shared = bytes_of(held_by(recorded[:1])) - own[0]
    assert shared > 0
    assert bytes_of(held_by(recorded)) == sum(own) + shared


def test_the_pass_that_is_recorded_keeps_nothing_beside_the_recording(record):
    record(again)
    mixture = fused(build(FAMILIES, *LAYER[:3], torch.float64))
    x = torch.randn(3, 6, 7, 7, dtype=torch.float64).to(memory_format=torch.channels_last)
    weights = torch.full((len(FAMILIES),), 0.25, dtype=torch.float64)
    saved = []
    for _ in range(3):
        y = mixture(x.clone().requires_grad_(), weights)
        saved.append(len(y.grad_fn.saved_tensors))
        y.sum().backward()
    assert saved[0] > 0
    assert saved[1:] == [0, 0]


def test_places_are_shared_between_calls_and_differ_within_one():
    tensors = [torch.empty(2, 3), torch.empty(2, 3), torch.empty(3, 2).t(), torch.empty(2, 3, dtype=torch.float64)]
    shared = SharedMemory.of(tensors)
    first, second = shared.places(tensors), SharedMemory.of(tensors[:1]).places(tensors[:1])
    assert second[0].data_ptr() == first[0].data_ptr()
    assert len({place.data_ptr() for place in first}) == 4
    assert [(p.shape, p.stride(), p.dtype) for p in first] == [(t.shape, t.stride(), t.dtype) for t in tensors]
    larger = SharedMemory.of([torch.empty(10**4)])
    assert larger is not shared
    assert SharedMemory.of(tensors) is larger
    del larger
    assert SharedMemory.of(tensors) is not shared  # it went with its last user


class Cuda:
    """Stands in for torch's side of recording: what graphs were begun with, and what was done to memories."""

    device = torch.device("cuda:0")

    def __init__(self, monkeypatch):
        self.streams, self.pools, self.ended, self.cleared = [], [], [], []
        self.end_fails = False
        cuda = self

        class Stream:
            def __init__(self, device):
                pass

            def wait_stream(self, stream):
                pass

        class Graph:
            def capture_begin(self, pool, capture_error_mode):
                cuda.pools.append(pool)

            def capture_end(self):
                if cuda.end_fails:
                    raise RuntimeError("the graph is not valid")

            def replay(self):
                pass

        @contextlib.contextmanager
        def stream(one):
            self.streams.append(one)
            yield

        monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
        monkeypatch.setattr(torch.cuda, "Stream", Stream)
        monkeypatch.setattr(torch.cuda, "stream", stream)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream(device))
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
        ended, cleared = (lambda *given: self.ended.append(given)), (lambda: self.cleared.append(True))
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", ended, raising=False)
        monkeypatch.setattr(torch._C, "_cuda_clearCublasWorkspaces", cleared, raising=False)


@pytest.fixture
def cuda(monkeypatch):
    return Cuda(monkeypatch)


def test_graphs_of_a_device_have_one_stream_and_one_memory(cuda):
    """With streams of their own they would share nothing, whatever the memory's name: see ``GraphMemory``."""
    replays = [capture(lambda: None, cuda.device) for _ in range(3)]
    assert (len(cuda.pools), len(set(cuda.pools)), len(set(cuda.streams))) == (3, 1, 1)
    replays[0]()
    del replays[:]
    replays.append(capture(lambda: None, cuda.device))
    assert cuda.streams[3] is cuda.streams[0]  # libraries keep a workspace for each stream that they meet
    assert cuda.pools[3] is not cuda.pools[0]
    replays[0]()


def cannot_be_recorded():
    raise ValueError("cannot be recorded")


def test_graphs_go_on_with_a_memory_in_which_one_could_not_be_recorded(cuda):
    held = capture(lambda: None, cuda.device)
    with pytest.raises(ValueError, match="cannot be recorded"):
        capture(cannot_be_recorded, cuda.device)
    capture(lambda: None, cuda.device)
    assert len(set(cuda.pools)) == 1
    assert cuda.ended == []
    held()


@pytest.mark.parametrize(
    ("function", "told"), [(lambda: None, "is not valid"), (cannot_be_recorded, "cannot be recorded")]
)
def test_a_memory_that_torch_failed_in_is_not_used_again(cuda, function, told):
    held = capture(lambda: None, cuda.device)
    cuda.end_fails = True
    with pytest.raises((RuntimeError, ValueError), match=told):
        capture(function, cuda.device)
    cuda.end_fails = False
    capture(lambda: None, cuda.device)
    assert cuda.pools[0] is cuda.pools[1]
    assert cuda.pools[2] is not cuda.pools[1]
    assert cuda.ended == [(0, cuda.pools[0])]
    assert cuda.streams[2] is not cuda.streams[1]  # with a workspace of its own
    held()


def test_a_workspace_goes_with_the_last_graph_that_could_use_it(cuda):
    """Its address is in the graphs: what is cleared while one of them lives is written to by the next replay."""
    held = [capture(lambda: None, cuda.device)]
    before = len(cuda.cleared)
    cuda.end_fails = True
    with pytest.raises(RuntimeError, match="is not valid"):
        capture(lambda: None, cuda.device)
    cuda.end_fails = False
    held.append(capture(lambda: None, cuda.device))
    assert len(cuda.cleared) == before
    del held[:]
    capture(lambda: None, cuda.device)
    assert len(cuda.cleared) == before + 1


@pytest.mark.parametrize(
    ("kind", "off", "agrees"),
    [
        (torch.float32, 5e-4, True),
        (torch.float32, 2e-3, False),
        (torch.bfloat16, 2**-7, True),
        (torch.bfloat16, 2**-5, False),
        (torch.float16, 2**-9, True),
        (torch.float16, 2**-7, False),
    ],
)
def test_a_replay_may_round_otherwise(kind, off, agrees):
    """By the order of sums in libraries: in 16 bits the next number is further away."""
    found = torch.tensor([1.0, 0.5, -0.25], dtype=kind)
    assert _agree(found + torch.tensor([off, 0, 0]).to(kind), found) == agrees


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (torch.cuda.OutOfMemoryError, "CUDA out of memory."),
        (RuntimeError, "CUDA error: out of memory\nCUDA kernel errors"),
    ],
)
def test_what_did_not_fit_has_gone_when_it_is_tried_again(cuda, kind, message, monkeypatch):
    made, alive = [], []

    def does_not_fit_at_first():
        tensor = torch.empty(3)
        made.append(weakref.ref(tensor))
        if len(made) == 1:
            raise kind(message)

    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: alive.append(made[0]() is not None))
    capture(does_not_fit_at_first, cuda.device)
    assert alive == [False]
    assert len(made) == 2


def layer_of(record):
    record(again)
    modules = build(FAMILIES, *LAYER[:3], torch.float64)
    mixture = fused(modules)
    x = torch.randn(3, 6, 7, 7, dtype=torch.float64).to(memory_format=torch.channels_last)
    weights = torch.full((len(FAMILIES),), 0.25, dtype=torch.float64)
    for _ in range(3):
        mixture(x.clone().requires_grad_(), weights).sum().backward()
    return mixture, x, weights


def test_a_second_pass_before_the_first_one_went_back_is_not_replayed(record):
    mixture, x, weights = layer_of(record)
    inputs = [(x * scale).requires_grad_() for scale in (1.0, 2.0)]
    outputs = [mixture(one, weights) for one in inputs]
    sum((output * output).sum() for output in outputs).backward()
    for one in inputs:
        alone = one.detach().clone().requires_grad_()
        y = mixture(alone, weights)
        (y * y).sum().backward()
        torch.testing.assert_close(one.grad, alone.grad, rtol=1e-12, atol=1e-12)


def test_nothing_is_recorded_or_kept_where_no_gradient_will_be_asked_for(record, mixture_and_weights):
    """Parameters need gradients in validation too."""
    mixture, weights = mixture_and_weights
    made = record(again)
    with torch.no_grad():
        for _ in range(4):
            y = mixture(torch.randn(SMALL, dtype=torch.float64), weights)
    assert y.grad_fn is None
    assert made == {}


def test_a_backward_pass_whose_kept_maps_a_failed_recording_wrote_over_is_refused(record, mixture_and_weights):
    mixture, weights = mixture_and_weights
    made = record(again)
    sizes(mixture, [SMALL] * 3, weights)
    first = mixture(torch.randn(SMALL, dtype=torch.float64).requires_grad_(), weights)
    first.sum().backward(retain_graph=True)

    def refuses(function, device):
        function()
        raise RuntimeError("operation not permitted")

    made[mixture].recorder = refuses
    sizes(mixture, [(1, 6, 3, 3)] * 2, weights)
    with pytest.raises(RuntimeError, match="came after its next forward pass"):
        first.sum().backward()


def test_a_size_that_could_not_be_recorded_puts_out_no_other():
    recordings = Recordings(again)
    for size in "aabbccdd":
        recorded(recordings, size)
    recordings.find("e", ()).failed = True
    for _ in range(100):
        recordings.find("e", ()).calls += 1
    assert all(recordings.by_size[size].forward_pass is not None for size in "abcd")


@pytest.mark.parametrize("between", [False, True], ids=["after both", "between the phases"])
def test_what_recorded_passes_read_stays_although_plans_are_made_anew(record, mixture_and_weights, between):
    """A graph reads a plan's tensors where they were, and holds no object that owns them."""
    mixture, weights = mixture_and_weights
    made = record(lambda write, device: (write(), lambda: None)[1])
    alpha = weights.clone().requires_grad_()
    read, widths = [], itertools.count(6)

    def step(width=5, *, of_alpha=True):
        mixture_of = next(iter(mixture.modules.values()))
        for parameter in mixture_of.parameters():
            parameter.requires_grad_(not of_alpha)
        x = torch.randn(1, 6, 4, width, dtype=torch.float64).to(memory_format=torch.channels_last).requires_grad_()
        mixture(x, alpha if of_alpha else weights).sum().backward()

    def other_sizes():
        read.extend(plan for plan in mixture._plans.values() if plan not in read)
        for _ in range(PLANS):
            step(next(widths))  # once each, so that none is recorded
        assert read[0] not in mixture._plans.values()

    for _ in range(2):
        step()
    if between:
        other_sizes()
    step(of_alpha=False)
    other_sizes()
    (recording,) = (one for size, one in made[mixture].by_size.items() if size[0].width == 5)
    passes = [recording.forward_pass, *recording.backward_passes.values()]
    assert len(passes) == 3
    tensors = [weakref.ref(tensor) for tensor in (read[0].residual, read[0].last_use_batch_stats)]
    read.clear()
    gc.collect()
    assert all(tensor() is not None for tensor in tensors)
    assert all(one.constants.residual.numel() == len(weights) for one in passes)


def test_going_back_after_a_later_pass_is_refused(record):
    mixture, x, weights = layer_of(record)
    first = mixture(x.clone().requires_grad_(), weights)
    first.sum().backward(retain_graph=True)
    mixture(x.clone().requires_grad_(), weights)
    with pytest.raises(RuntimeError, match="came after its next forward pass"):
        first.sum().backward()


def test_outputs_and_gradients_are_not_overwritten_later(record):
    mixture, x, weights = layer_of(record)
    given = x.clone().requires_grad_()
    y = mixture(given, weights)
    y.sum().backward()
    before = [y.detach().clone(), given.grad.clone()]
    mixture((x + 1).requires_grad_(), weights).sum().backward()
    assert equal([y.detach(), given.grad], before)


def recorded(recordings, size):
    found = recordings.find(size, ())
    if found is not None and found.forward_pass is None and found.calls:
        found.forward_pass = Pass([], [], lambda: None)
    elif found is not None:
        found.calls += 1
    return found


def held(recordings):
    return {size for size, one in recordings.by_size.items() if one.forward_pass is not None}


def test_sizes_that_occur_most_are_recorded():
    recordings = Recordings(again)
    for size in "aabbbccccddddee":
        recorded(recordings, size)
    assert held(recordings) == set("abcd")
    for _ in range(2):
        assert recorded(recordings, "e") is None
    assert recorded(recordings, "e").forward_pass is not None  # the fifth time: more than twice as often as "a"
    assert held(recordings) == set("bcde")
    assert "a" not in recordings.by_size


def test_sizes_that_occur_alike_do_not_put_each_other_out():
    """As images of ten shapes in any order: each recording costs as much as several passes."""
    draw, recordings, made = random.Random(0), Recordings(again), 0
    for _ in range(5000):
        before = held(recordings)
        recorded(recordings, draw.randrange(10))
        made += held(recordings) != before
    assert RECORDED_SIZES <= made <= 2 * RECORDED_SIZES
    assert len(held(recordings)) == RECORDED_SIZES


def test_sizes_that_no_longer_occur_make_room():
    recordings = Recordings(again)
    for size in "abcd" * 500:
        recorded(recordings, size)
    for size in "efgh" * 3000:
        recorded(recordings, size)
    assert held(recordings) == set("efgh")
    assert set(recordings.by_size) == set(recordings.counts) == set("efgh")


SMALL, LARGE = (2, 6, 4, 5), (2, 6, 7, 7)


def sizes(mixture, shapes, weights):
    """Outputs and gradients of steps of several sizes."""
    torch.manual_seed(3)
    found = []
    for shape in shapes:
        given = torch.randn(shape, dtype=torch.float64).to(memory_format=torch.channels_last).requires_grad_()
        y = mixture(given, weights)
        y.square().sum().backward()
        found += [y.detach(), given.grad]
    return found


@pytest.fixture
def mixture_and_weights():
    torch.manual_seed(1)
    modules = build(FAMILIES, 6, 6, 1, torch.float64)
    return fused(modules), torch.full((len(FAMILIES),), 0.25, dtype=torch.float64)


def test_sizes_use_the_same_memory_one_after_the_other(record, mixture_and_weights):
    mixture, weights = mixture_and_weights
    shapes = [SMALL] * 3 + [LARGE] * 3 + [SMALL, LARGE] * 4
    plainly = sizes(mixture, shapes, weights)
    made = record(again)
    assert equal(sizes(mixture, shapes, weights), plainly)
    (recordings,) = made.values()
    small, large = recordings.by_size.values()
    if small.forward_pass.inputs[0].shape[2] > large.forward_pass.inputs[0].shape[2]:
        small, large = large, small
    first, second = (one.forward_pass.inputs[0] for one in (small, large))
    assert first.data_ptr() == second.data_ptr()
    assert second.shape == LARGE
    kept = bytes_of([*small.forward_pass.outputs[1:], *large.forward_pass.outputs[1:], first, second])
    assert kept == large.memory._buffer.nbytes  # of one size, not of both


def test_a_larger_size_forgets_what_was_recorded(record, mixture_and_weights):
    mixture, weights = mixture_and_weights
    made = record(again)
    sizes(mixture, [SMALL] * 2, weights)
    (recordings,) = made.values()
    (small,) = recordings.by_size.values()
    assert small.forward_pass is not None
    sizes(mixture, [LARGE] * 2, weights)
    assert small.forward_pass is None
    assert small.backward_passes == {}
    sizes(mixture, [SMALL], weights)
    assert small.forward_pass is not None  # at once


def test_another_size_runs_as_it_is_while_one_waits(record, mixture_and_weights):
    mixture, weights = mixture_and_weights
    shapes = [SMALL, LARGE]
    made = record(again)
    sizes(mixture, [*shapes] * 4, weights)
    (recordings,) = made.values()
    before = recordings.memory.generation
    torch.manual_seed(9)
    inputs = [torch.randn(s, dtype=torch.float64).to(memory_format=torch.channels_last) for s in shapes]
    together = [one.clone().requires_grad_() for one in inputs]
    sum(mixture(one, weights).square().sum() for one in together).backward()
    assert recordings.memory.generation == before + 1
    for one, other in zip(inputs, together, strict=True):
        alone = one.clone().requires_grad_()
        mixture(alone, weights).square().sum().backward()
        torch.testing.assert_close(other.grad, alone.grad, rtol=1e-12, atol=1e-12)


def test_going_back_after_another_size_is_refused(record, mixture_and_weights):
    mixture, weights = mixture_and_weights
    record(again)
    sizes(mixture, [SMALL, LARGE] * 4, weights)
    first = mixture(torch.randn(SMALL, dtype=torch.float64).requires_grad_(), weights)
    first.sum().backward(retain_graph=True)
    mixture(torch.randn(LARGE, dtype=torch.float64).requires_grad_(), weights)
    sizes(mixture, [(2, 6, 9, 9)] * 2, weights)  # larger than all: the memory moves
    with pytest.raises(RuntimeError, match="came after its next forward pass"):
        first.sum().backward()


def test_places_of_tensors_with_gaps_do_not_overlap():
    memory = TapeMemory()
    gaps = torch.arange(24.0).view(4, 6)[:, ::2]
    places = memory.places([gaps, torch.ones(3), gaps.t()], Recording())
    for place, tensor in zip(places, (gaps, torch.ones(3), gaps.t()), strict=True):
        place.copy_(tensor)
    assert equal(places, [gaps, torch.ones(3), gaps.t()])
    assert all(place.data_ptr() % 8 == 0 for place in places)


def test_moved_parameters_are_recorded_anew():
    recordings = Recordings(again)
    first = recordings.find("size", (1, 2))
    assert recordings.find("size", (1, 2)) is first
    assert recordings.find("size", (1, 3)) is not first
