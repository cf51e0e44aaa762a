"""How a supernet's activation modes are chosen where the settings leave it open: timed once a stage, without a
trace.
"""

import contextlib
import json
from itertools import product

import pytest
import torch
from group import run_group

from hitdet_nni.config.settings import load_settings
from hitdet_nni.config.skeleton import COMPONENTS
from hitdet_nni.data.loaders import search_loaders
from hitdet_nni.data.sources import open_data
from hitdet_nni.engine import distributed
from hitdet_nni.engine.checkpoints import CheckpointFolder
from hitdet_nni.engine.randomness import random_state
from hitdet_nni.engine.synced_batch_norm import apply_batch_norm
from hitdet_nni.model.detector import HitDetectorSpace
from hitdet_nni.nas import activation_choice, step_timing
from hitdet_nni.nas.activation_choice import FILE, choose_activations, choose_modes
from hitdet_nni.nas.fused.fixed import FusedBlock
from hitdet_nni.nas.mixed import ColumnSparseMixedLayer, set_activations
from hitdet_nni.nas.step_timing import StepCost, StepTimer
from hitdet_nni.nas.strategy import ColumnSparseDARTS
from hitdet_nni.nas.supernet import Phase, train_supernet
from hitdet_nni.pipeline.search import search
from hitdet_nni.runs.run_directory import RunDirectory

ALL = dict.fromkeys(COMPONENTS, ("all", "checkpoint", "fused", "fused-low", "fused-min"))
SPACE = {
    "backbone": ["ir_k3_d1_e1", "sep_k3_d1"],
    "neck": ["sep_k3_d1"],
    "head": ["ir_k3_d1_e1", "sep_k3_d1"],
}
WANTED = {"backbone": "fused-low", "neck": "all", "head": "fused"}
VALUES = {"data.train": 16, "data.val": 4, "data.flip": True, "checkpoint.every_steps": 1}
CPU = torch.device("cpu")


class KilledError(Exception):
    """What stands for the end of the process."""


class Costs:
    """A stand-in for a timer: shares of seconds and bytes by component and mode, which add up."""

    def __init__(self, seconds, peaks, limit=10**9, together=0.0):
        self.seconds, self.peaks, self.limit, self.together = seconds, peaks, limit, together
        self.asked = []

    def __call__(self, modes):
        self.asked.append(dict(modes))
        peak = sum(
            self.peaks[mode] if isinstance(self.peaks[mode], int) else self.peaks[mode][c] for c, mode in modes.items()
        )
        seconds = sum(self.seconds.get((c, mode), self.seconds.get(mode, 9.0)) for c, mode in modes.items())
        if len(set(modes.values())) > 1 and len([m for m in modes.values() if m != "fused-min"]) > 1:
            seconds += self.together
        return StepCost(seconds, peak) if peak <= self.limit else None


PEAKS = {"all": 100, "fused": 40, "fused-low": 20, "fused-min": 10, "checkpoint": 12}
SECONDS = {"all": 1.0, "fused": 1.2, "fused-low": 1.3, "fused-min": 1.5, "checkpoint": 1.6}


def test_each_component_gets_its_fastest_mode():
    costs = Costs({**SECONDS, ("backbone", "fused-low"): 0.7, ("head", "fused"): 0.5}, PEAKS)
    choice = choose_modes(ALL, costs, 10**6)
    assert choice.modes == {"backbone": "fused-low", "neck": "all", "head": "fused"}
    assert choice.seconds == pytest.approx(0.7 + 1.0 + 0.5)
    assert choice.tried["head"]["fused"] == pytest.approx(1.5 + 1.5 + 0.5)
    assert choice.modes in costs.asked  # it has run as a whole
    assert "backbone fused-low, neck all, head fused, 2.200 s a step" in choice.sentence()
    assert "\n" not in choice.sentence()


def test_of_modes_as_fast_the_one_of_less_memory():
    costs = Costs({**SECONDS, "all": 1.0, "fused-low": 1.01}, PEAKS)  # a step of all in fused-min takes 4.5
    assert set(choose_modes(ALL, costs, 10**6).modes.values()) == {"fused-low"}


def test_a_mode_that_does_not_fit_is_not_chosen():
    costs = Costs(SECONDS, {**PEAKS, "all": 10**6}, limit=10**5)
    choice = choose_modes(ALL, costs, 10**5)
    assert set(choice.modes.values()) == {"fused"}
    assert all("all" not in row for row in choice.tried.values())


@pytest.mark.parametrize("limit_is_known", [True, False])
def test_what_does_not_fit_together_is_changed_where_that_loses_least(limit_is_known):
    """Each component fits in stock alone; by the sum, or only when it is run, all together do not."""
    seconds = {
        **SECONDS,
        ("backbone", "fused-low"): 1.01,
        ("backbone", "fused"): 1.3,
        ("neck", "fused"): 1.4,
        ("head", "fused"): 1.9,
    }
    seconds |= {
        ("neck", "fused-low"): 1.7,
        ("head", "fused-low"): 2.0,
        ("neck", "fused-min"): 2.0,
        ("head", "fused-min"): 2.0,
    }
    peaks = {**PEAKS, "all": {"backbone": 100, "neck": 101, "head": 102}}
    limit = 250
    options = dict.fromkeys(COMPONENTS, ("all", "fused", "fused-low", "fused-min"))
    costs = Costs(seconds, peaks, limit=limit)
    found = choose_modes(options, costs, limit if limit_is_known else 10**6).modes
    assert found == {"backbone": "fused-low", "neck": "all", "head": "all"}
    assert (dict.fromkeys(COMPONENTS, "all") in costs.asked) is not limit_is_known


def test_changes_go_on_until_it_fits():
    options = dict.fromkeys(COMPONENTS, ("all", "fused", "fused-low", "fused-min"))
    for limit in (320, 250, 180, 125, 100, 61, 45, 31):
        choice = choose_modes(options, Costs(SECONDS, PEAKS, limit=limit), limit)
        assert sum(PEAKS[mode] for mode in choice.modes.values()) <= limit
        feasible = [
            sum(SECONDS[mode] for mode in modes)
            for modes in product(options["neck"], repeat=3)
            if sum(PEAKS[mode] for mode in modes) <= limit
        ]
        assert choice.seconds <= 1.06 * min(feasible)


def test_where_nothing_fits_least_memory_is_taken_untimed():
    choice = choose_modes(ALL, Costs(SECONDS, PEAKS, limit=5), 5)
    assert choice.modes == dict.fromkeys(COMPONENTS, "fused-min")
    assert choice.seconds is None


def test_the_other_small_mode_is_a_start_where_the_first_does_not_fit():
    choice = choose_modes(ALL, Costs(SECONDS, {**PEAKS, "fused-min": 50}, limit=36), 36)
    assert choice.modes == dict.fromkeys(COMPONENTS, "checkpoint")
    assert choice.seconds == pytest.approx(4.8)


def test_no_slower_than_all_though_times_do_not_add_up():
    """Changed one by one two components gain, together they lose what is more."""
    seconds = {**SECONDS, ("backbone", "fused-low"): 0.8, ("head", "fused-low"): 0.8}
    assert choose_modes(ALL, Costs(seconds, PEAKS), 10**6).modes["head"] == "fused-low"
    choice = choose_modes(ALL, Costs(seconds, PEAKS, together=0.5), 10**6)
    assert choice.modes == dict.fromkeys(COMPONENTS, "all")
    assert choice.seconds == pytest.approx(3.0)


@pytest.fixture(scope="module")
def settings():
    return load_settings("tiny", VALUES)


def supernet(settings, space=SPACE, batch_norm="local"):
    torch.manual_seed(0)
    made = HitDetectorSpace(settings.skeleton, space, 10)
    ColumnSparseDARTS().mutate_model(made)
    apply_batch_norm(made, batch_norm)
    return made


def layer_modes(space):
    """Modes of the mixed layers by component, and of layers that are fixed at one operator."""
    found = {}
    for part in space.modules():
        component = getattr(part, "component", None)
        for module in part.modules() if component else ():
            if isinstance(module, ColumnSparseMixedLayer | FusedBlock):
                found.setdefault(component, set()).add(module.activations)
    return found


def test_modes_by_component_reach_their_layers_alone(settings):
    space = supernet(settings)
    set_activations(space, WANTED)
    assert layer_modes(space) == {"backbone": {"fused-low"}, "head": {"fused"}}  # the neck's blocks compute themselves
    set_activations(space, {**WANTED, "neck": "fused-min"})
    assert layer_modes(space) == {"backbone": {"fused-low"}, "neck": {"fused-min"}, "head": {"fused"}}
    set_activations(space, "all")
    assert layer_modes(space) == {"backbone": {"all"}, "head": {"all"}}


@pytest.mark.parametrize(
    ("value", "fragments"),
    [
        ("fuse", ("supernet.activations", "'fuse'", "fused-min")),
        ({**WANTED, "neck": "auto"}, ("supernet.activations.neck", "'auto'", "checkpoint")),
        ({**WANTED, "tail": "fused-low"}, ("supernet.activations.tail", "unknown key", "backbone, neck, head")),
        ({"backbone": "fused-low", "neck": "fused-low"}, ("supernet.activations.head", "missing")),
    ],
)
def test_unknown_modes_and_components_are_refused(value, fragments, refused):
    with refused(*fragments):
        load_settings("tiny", {"supernet.activations": value})


def everything(space, loaders):
    """What a training goes on from."""
    batches = [step_timing.first_batch(loader) for loader in loaders]
    drawn = [list(loader.sampler) for loader in loaders]
    return {
        "state": {
            name: value.clone() if torch.is_tensor(value) else value for name, value in space.state_dict().items()
        },
        "flags": [parameter.requires_grad for parameter in space.parameters()],
        "gradients": [parameter.grad for parameter in space.parameters()],
        "modes": [module.training for module in space.modules()],
        "device": {parameter.device for parameter in space.parameters()},
        "random": random_state(),
        "images": [image for batch in batches for image in batch["inputs"]],
        "drawn": drawn,
        "iterators": [loader._iterator for loader in loaders],
        "processes": distributed.world_size(),
    }


def same(one, two):
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(same, one, two))
    return torch.equal(one, two) if torch.is_tensor(one) else one == two


@pytest.mark.parametrize("fails", [pytest.param(False, marks=pytest.mark.slow), True])
def test_timing_leaves_no_trace(settings, tiny_data, fails, monkeypatch):
    space = supernet(settings)
    next(space.parameters()).requires_grad_(False)
    loaders = search_loaders(tiny_data, settings.data, settings.skeleton, 0)[:2]
    before = everything(space, loaders)
    with contextlib.suppress(ZeroDivisionError), StepTimer(space, settings, settings.skeleton, loaders, CPU) as timer:
        for modes in (dict.fromkeys(COMPONENTS, "all"), WANTED):
            cost = timer(modes)
            assert cost.seconds > 0
        assert timer.available > 0
        within = everything(space, loaders)
        assert not same(within["state"], before["state"])  # running statistics have moved
        assert not same(within["random"], before["random"])
        if fails:
            raise ZeroDivisionError
    assert same(everything(space, loaders), before)


OUT_OF_MEMORY = (
    torch.cuda.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("GET was unable to find an engine to execute this computation"),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported at some other call"),
    RuntimeError("Triton Error [CUDA]: out of memory"),
    RuntimeError("NCCL error: unhandled cuda error\nLast error:\nCuda failure 2 'out of memory'"),
)


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
def test_what_runs_out_of_memory_does_not_fit_and_the_next_step_runs(settings, tiny_data, error, monkeypatch):
    space = supernet(settings)
    loaders = search_loaders(tiny_data, settings.data, settings.skeleton, 0)[:2]
    real, stages = step_timing.detection_loss, []

    def short_of_memory(detector, batch):
        loss = real(detector, batch)
        stages.append(layer_modes(space)["head"])
        if "all" in stages[-1]:
            raise error
        return loss

    monkeypatch.setattr(step_timing, "detection_loss", short_of_memory)
    with StepTimer(space, settings, settings.skeleton, loaders, CPU) as timer:
        assert timer({**WANTED, "head": "all"}) is None
        assert all(parameter.grad is None for parameter in space.parameters())
        assert timer(WANTED) is not None


def test_other_errors_of_a_step_are_not_for_want_of_memory(settings, tiny_data, monkeypatch):
    space = supernet(settings)
    loaders = search_loaders(tiny_data, settings.data, settings.skeleton, 0)[:2]

    def broken(detector, batch):
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(step_timing, "detection_loss", broken)
    with (
        StepTimer(space, settings, settings.skeleton, loaders, CPU) as timer,
        pytest.raises(RuntimeError, match="assert triggered"),
    ):
        timer(WANTED)


def test_what_another_gpu_has_less_to_give_is_left_alone(settings, tiny_data, monkeypatch):
    """With statistics of its own one process times for all, and the others have to hold what it chooses."""
    space = supernet(settings)
    loaders = search_loaders(tiny_data, settings.data, settings.skeleton, 0)[:2]
    free = {"mine": 8 * 10**9}
    monkeypatch.setattr(step_timing, "free_memory", lambda device: free["mine"])
    monkeypatch.setattr(activation_choice, "free_memory", lambda device: free["mine"])
    monkeypatch.setattr(distributed, "gather", lambda value: [value, 3 * 10**9] if value > 10**9 else [value])
    taken = activation_choice._taken_elsewhere(CPU)
    assert taken == 5 * 10**9
    monkeypatch.setattr(distributed, "gather", lambda value: [value])
    available = []
    for less in (0, taken):
        with StepTimer(space, settings, settings.skeleton, loaders, CPU, less) as timer:
            available.append(timer.available)
            free["mine"] = less + 10**6
            assert timer({**dict.fromkeys(COMPONENTS, "fused-min"), "head": "all"}) is None
            free["mine"] = 8 * 10**9
    assert available[0] - available[1] == pytest.approx(0.95 * taken, abs=2)


def test_memory_is_given_back_before_it_is_asked_what_is_free(settings, tiny_data, monkeypatch):
    """What the modes before held, and the weights that have just gone home."""
    space = supernet(settings)
    loaders = search_loaders(tiny_data, settings.data, settings.skeleton, 0)[:2]
    done = []
    with StepTimer(space, settings, settings.skeleton, loaders, CPU) as timer:
        for name in ("_go_home", "_forget"):
            real = getattr(timer, name)
            monkeypatch.setattr(timer, name, lambda name=name, real=real: (done.append(name), real())[1])
        monkeypatch.setattr(step_timing, "free_memory", lambda device: done.append("free_memory") or 10**6)
        assert timer({**dict.fromkeys(COMPONENTS, "fused-min"), "head": "all"}) is None
    assert done[:4] == ["_forget", "_go_home", "_forget", "free_memory"]


def test_in_a_group_a_timing_that_runs_out_of_memory_ends_the_run(settings, tiny_data, monkeypatch):
    """The others wait in the middle of their steps, and end with it."""
    space = supernet(settings)
    loaders = search_loaders(tiny_data, settings.data, settings.skeleton, 0)[:2]

    def short_of_memory():
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    with StepTimer(space, settings, settings.skeleton, loaders, CPU) as timer:
        monkeypatch.setattr(timer, "_seconds", short_of_memory)
        assert timer._timed(0) is None
        monkeypatch.setattr(distributed, "world_size", lambda: 2)
        with pytest.raises(torch.cuda.OutOfMemoryError):
            timer._timed(0)


@pytest.mark.slow
def test_what_surely_does_not_fit_is_not_tried(settings, tiny_data, monkeypatch):
    space = supernet(settings)
    loaders = search_loaders(tiny_data, settings.data, settings.skeleton, 0)[:2]
    with StepTimer(space, settings, settings.skeleton, loaders, CPU) as timer:
        least = dict.fromkeys(COMPONENTS, "fused-min")
        monkeypatch.setattr(step_timing, "free_memory", lambda device: 10**6)
        with monkeypatch.context() as context:
            context.setattr(timer, "_step", None)
            assert timer({**least, "head": "all"}) is None
            assert timer({**least, "head": "fused"}) is None
        assert timer(least) is not None
        monkeypatch.setattr(step_timing, "free_memory", lambda device: 10**12)
        assert timer({**least, "head": "all"}) is not None
        monkeypatch.setattr(step_timing, "estimate_step_memory", None)  # not asked again of a smaller mode, nor of two
        assert timer({**least, "head": "fused"}) is not None
        assert timer({**least, "head": "all", "backbone": "all"}) is not None


def clock_that_prefers_wanted(asked):
    """A clock by which :data:`WANTED` is the fastest; it notes in ``asked`` what it was asked."""

    def clock(step, device):
        step()
        modes = layer_modes(step.__self__.space)
        asked.append(modes)
        return 3.0 - sum(0.5 for component, mode in WANTED.items() if modes.get(component, {"all"}) == {mode})

    return clock


@pytest.fixture
def timed(monkeypatch):
    """Let timing be done on this device by a clock that prefers :data:`WANTED`; the list of what it was asked."""
    asked = []
    monkeypatch.setattr(activation_choice, "TIMED", ("cpu",))
    monkeypatch.setattr(activation_choice, "MIN_STEPS", 0)
    monkeypatch.setattr(step_timing, "wall_clock", clock_that_prefers_wanted(asked))
    monkeypatch.setattr(step_timing, "REPEATS", 1)
    monkeypatch.setattr(step_timing, "LARGE", ())
    return asked


def train(settings, data, folder=None, on_epoch=lambda record: None):
    phase = Phase(skeleton=settings.skeleton, space=SPACE, epochs=2, warmup_epochs=1, flops_weight=1.0)
    return train_supernet(phase, settings, data, 0, on_epoch, folder)


@pytest.fixture(scope="module")
def fixed(settings, tiny_data):
    """The training with the modes of :data:`WANTED`, set."""
    return train(load_settings("tiny", {**VALUES, "supernet.activations": WANTED}), tiny_data)


def assert_equal(one, two):
    assert same(dict(one.module.state_dict()), dict(two.module.state_dict()))
    for first, second in zip(one.records, two.records, strict=True):
        assert {**vars(first), "seconds": 0} == {**vars(second), "seconds": 0}
    assert one.activations == two.activations == WANTED


@pytest.mark.slow
def test_a_training_whose_modes_were_timed_equals_one_whose_modes_were_set(
    settings, tiny_data, fixed, timed, tmp_path, caplog, monkeypatch
):
    """Killed after its first epoch, too: resumed it takes the choice that is kept, and times nothing."""
    caplog.set_level("INFO")
    folder = CheckpointFolder(tmp_path / "checkpoints")

    def kill(record):
        raise KilledError

    with pytest.raises(KilledError):
        train(settings, tiny_data, folder, kill)
    assert timed
    assert folder.files()
    kept = json.loads((folder.path / FILE).read_text())
    assert kept["modes"] == WANTED
    assert kept["tried"]["neck"]["all"] < kept["tried"]["neck"]["fused-low"]
    (line,) = [record.message for record in caplog.records if "supernet.activations" in record.message]
    assert line.startswith("search: supernet.activations: backbone fused-low, neck all, head fused, 1.500 s a step")
    assert "checkpoint" not in kept["tried"]["neck"]  # fixed at one operator
    timed.clear()
    monkeypatch.setitem(WANTED, "head", "fused-min")  # what it would choose now
    resumed = train(settings, tiny_data, folder)
    monkeypatch.undo()
    assert not timed
    assert_equal(resumed, fixed)


@pytest.mark.parametrize("content", ["{}", '{"modes": {"backbone": "fused-low"}}', "[1]", '{"modes": 3}', "{"])
def test_a_damaged_choice_is_refused(settings, tiny_data, tmp_path, content, refused):
    (tmp_path / FILE).write_text(content)
    loaders = search_loaders(tiny_data, settings.data, settings.skeleton, 0)[:2]
    with refused(FILE):
        choose_activations(supernet(settings), settings, settings.skeleton, loaders, 9, "search", tmp_path)


def test_nothing_is_timed_on_a_cpu_or_for_a_short_training(settings, tiny_data, timed, monkeypatch, caplog, tmp_path):
    loaders = search_loaders(tiny_data, settings.data, settings.skeleton, 0)[:2]
    caplog.set_level("INFO")

    def settled(steps, folder=None):
        return choose_activations(supernet(settings), settings, settings.skeleton, loaders, steps, "search", folder)

    monkeypatch.setattr(activation_choice, "MIN_STEPS", 1000)
    assert settled(999, tmp_path) == dict.fromkeys(COMPONENTS, "fused-low")
    assert "search: 999 steps, fewer than 1000: supernet.activations is not timed" in caplog.text
    assert json.loads((tmp_path / FILE).read_text())["seconds"] is None
    monkeypatch.setattr(activation_choice, "TIMED", ("cuda",))
    assert settled(10**6) == dict.fromkeys(COMPONENTS, "fused-low")
    assert not timed


def test_the_choice_is_in_provenance_and_metadata(settings, tiny_data, tmp_path):
    settings = load_settings("tiny", {**VALUES, "supernet.activations": WANTED})
    run = RunDirectory(tmp_path / "run")
    with run.held():
        run.open(settings)
        architecture = search(run, SPACE, settings, tiny_data, lambda stage, record: None)
        assert architecture.provenance.activations == WANTED
        assert json.loads(run.metadata.read_text())["activations"] == {"search": WANTED}
        run.open(settings, resume=True)


def choose_in_a_group(batch_norm, short_of=""):
    """What is chosen by two processes with clocks of their own.

    The second has no memory for a head in ``all``, by what an ``estimate`` says, what its ``steps`` took, or as it runs
    out of it.
    """
    settings = load_settings("tiny", {"data.train": 16, "data.val": 4, "skeleton.input_size": [64, 64]})
    data = open_data(settings.data, settings.seed)
    loaders = search_loaders(data, settings.data, settings.skeleton, 0)[:2]
    space = supernet(settings, batch_norm=batch_norm)
    second = distributed.rank() == 1
    timed, refused = [], []
    real, real_peak, free = step_timing.detection_loss, StepTimer._peak, iter([10**12])
    refuses = second and not short_of

    def peak(timer, reserved):
        large = second and short_of == "steps" and layer_modes(space)["head"] == {"all"}
        return 10**13 if large else real_peak(timer, reserved)

    def clock(step, device):
        step()
        modes = layer_modes(space)
        timed.append(distributed.world_size())
        slow = second and modes["backbone"] == {"checkpoint"}
        return 3.0 if slow else 2.0 if modes["backbone"] == {"all"} else 1.5 if modes["backbone"] == {"fused"} else 1.0

    def short_of_memory(detector, batch):
        loss = real(detector, batch)
        if refuses and layer_modes(space)["head"] == {"all"}:
            refused.append(distributed.world_size())
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return loss

    activation_choice.TIMED, activation_choice.MIN_STEPS, step_timing.wall_clock = ("cpu",), 0, clock
    step_timing.detection_loss, StepTimer._peak = short_of_memory, peak
    step_timing.LARGE = ("all",) if short_of == "estimate" else ()
    step_timing.free_memory = lambda device: next(free, 10**6 if second else 10**12)
    step_timing.WARM_UPS = step_timing.REPEATS = 1
    options = {"backbone": ("all", "checkpoint", "fused"), "neck": ("fused-low",), "head": ("all", "fused-low")}
    activation_choice.component_options = lambda space: options
    before = everything(space, loaders)
    modes = choose_activations(space, settings, settings.skeleton, loaders, 9, "search", None)
    set_activations(space, "all")
    return {
        "modes": modes,
        "timed": timed,
        "refused": refused,
        "processes": distributed.world_size(),
        "changed": [key for key, value in everything(space, loaders).items() if not same(value, before[key])],
    }


@pytest.mark.slow
def test_the_main_process_chooses_for_all(tmp_path):
    main, other = run_group(choose_in_a_group, tmp_path, "local")
    assert main["modes"] == other["modes"]
    assert main["modes"]["backbone"] == "checkpoint"
    assert main["modes"]["head"] == "all"
    assert set(main["timed"]) == {1}
    assert not other["timed"]
    assert main["processes"] == 2


@pytest.mark.parametrize(
    "short_of", ["", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("steps", "estimate"))]
)
def test_processes_that_share_statistics_choose_together(short_of, tmp_path):
    """By the slower one's times, and the modes that fit in both; none waits for one that ran out of memory."""
    main, other = run_group(choose_in_a_group, tmp_path, "synced", short_of)
    assert main["modes"] == other["modes"]
    assert main["modes"]["backbone"] == "fused"
    assert main["modes"]["head"] == "fused-low"
    assert main["timed"] == other["timed"]
    assert set(main["timed"]) == {2}
    assert (main["refused"], other["refused"]) == ([], [] if short_of else [2])
    assert main["changed"] == other["changed"] == []


def train_in_a_group(values):
    """What two processes that share statistics have learned, their modes timed by a clock or set."""
    settings = load_settings("tiny", {**VALUES, "batch_norm": "synced", "skeleton.input_size": [64, 64], **values})
    timed = []
    activation_choice.TIMED, activation_choice.MIN_STEPS = ("cpu",), 0
    step_timing.wall_clock = clock_that_prefers_wanted(timed)
    step_timing.WARM_UPS = step_timing.REPEATS = 1
    trained = train(settings, open_data(settings.data, settings.seed))
    state = {key: value for key, value in trained.module.state_dict().items() if torch.is_tensor(value)}
    return {"state": state, "modes": trained.activations, "timed": len(timed)}


@pytest.mark.slow
def test_a_group_whose_modes_were_timed_equals_one_whose_modes_were_set(tmp_path):
    together = run_group(train_in_a_group, tmp_path, {})
    fixed = run_group(train_in_a_group, tmp_path, {"supernet.activations": WANTED})
    assert [one["modes"] for one in (*together, *fixed)] == [WANTED] * 4
    assert all(one["timed"] for one in together)
    assert not any(one["timed"] for one in fixed)
    for timed, settled in zip(together, fixed, strict=True):
        assert timed["state"].keys() == settled["state"].keys()
        assert not [key for key, value in settled["state"].items() if not torch.equal(value, timed["state"][key])]
