"""Which activation mode each component of a supernet gets: the one that is set, or the fastest that fits in memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from hitdet_nni.config.settings import ActivationsByComponent, Settings
from hitdet_nni.config.skeleton import COMPONENTS, Component, Skeleton
from hitdet_nni.engine import distributed
from hitdet_nni.engine.synced_batch_norm import shares_statistics
from hitdet_nni.errors import InputError
from hitdet_nni.io import read_json, write_json
from hitdet_nni.nas.fused.backend import agree_on_programs
from hitdet_nni.nas.memory.estimate import free_memory
from hitdet_nni.nas.mixed import ACTIVATION_MODES, AUTO, describe_fallback, set_activations
from hitdet_nni.nas.step_timing import StepCost, StepTimer

logger = logging.getLogger(__name__)

TIMED = ("cuda",)
"""Kinds of device on which modes are timed; elsewhere the fused layer is faster whatever is searched."""

MIN_STEPS = 7000
"""Steps of a training below which timing would take a twentieth of it or more. Measured for the paper's supernet on an
H200: 130 s, as long as 360 of its steps; most of it goes into recording passes and into the slow modes."""

TOLERANCE = 0.01
"""Share of a step's time that the choice may lose to one that needs more memory: what a timing does not tell from
chance."""

FROM_SMALL = ("fused-min", "checkpoint", "fused-low", "fused", "all")
"""Modes from the one that needs least memory; the order of the last three holds wherever they have been measured."""

FILE = "supernet_activations.json"
"""Name of the file beside a stage's checkpoints."""

Modes = Mapping[Component, str]
Measure = Callable[[Modes], StepCost | None]
"""What a step costs; ``None`` where it does not fit in memory."""


@dataclass(frozen=True)
class ActivationChoice:
    """The modes of a supernet, and what was measured for them.

    Attributes:
        modes: Mode of each component.
        seconds: Of a step with these modes; ``None`` where nothing was timed.
        tried: Seconds of a step with one component in each mode, the others in that which needs least memory.
    """

    modes: dict[Component, str]
    seconds: float | None = None
    tried: dict[Component, dict[str, float]] = field(default_factory=dict)

    def sentence(self) -> str:
        """Return one part of a line for the log."""
        text = describe_modes(self.modes)
        if self.seconds is None:
            return text
        rows = (
            f"{component} " + " ".join(f"{mode} {seconds:.3f}" for mode, seconds in row.items())
            for component, row in self.tried.items()
        )
        return f"{text}, {self.seconds:.3f} s a step; s with one component changed: {', '.join(rows)}"


def describe_modes(modes: Mapping[Component, str]) -> str:
    """Return the mode if all components have one, else each with its own."""
    values = set(modes.values())
    return values.pop() if len(values) == 1 else ", ".join(f"{component} {mode}" for component, mode in modes.items())


def choose_modes(options: Mapping[Component, tuple[str, ...]], measure: Measure, available: int) -> ActivationChoice:
    """Choose the fastest modes whose sum fits in memory.

    Each component is varied by itself while the others are in the mode that needs least memory; times and bytes add up.
    If those of the fastest modes do not fit together, that change is made which loses the least time for a byte saved,
    until they do. What comes out has run, and is no slower than all components in ``all``, where that fits, but for
    :data:`TOLERANCE`.

    Args:
        options: Modes of each component to choose from.
        measure: What a step costs with some modes.
        available: Bytes that a step may take.

    Returns:
        The choice; of the modes that need least memory, without times, where not even they fit.
    """
    base, cost = _smallest(options, measure)
    if cost is None:
        return ActivationChoice(base)
    tried: dict[Component, dict[str, StepCost]] = {
        component: {
            mode: found
            for mode in names
            if (found := cost if mode == base[component] else measure({**base, component: mode})) is not None
        }
        for component, names in options.items()
    }

    def together(modes: Modes) -> StepCost | None:
        """Return what a step takes, where it fits by the sum of the components' shares and in fact."""
        changed = [component for component in modes if modes[component] != base[component]]
        if not changed:
            return cost
        if any(modes[component] not in tried[component] for component in changed):
            return None
        if cost.peak + sum(tried[part][modes[part]].peak - cost.peak for part in changed) > available:
            return None
        found = tried[changed[0]][modes[changed[0]]] if len(changed) == 1 else measure(modes)
        return None if found is None or found.peak > available else found

    slack = TOLERANCE * cost.seconds
    chosen = {component: _fastest(row, slack / len(tried)) for component, row in tried.items()}
    found = together(chosen)
    while found is None:
        change = _best_change(tried, chosen)
        if change is None:
            chosen, found = dict(base), cost
        else:
            chosen[change[0]] = change[1]
            found = together(chosen)
    plain = dict.fromkeys(options, "all")
    theirs = None if chosen == plain else together(plain)
    if theirs is not None and theirs.seconds < found.seconds - slack:
        chosen, found = plain, theirs
    times = {part: {mode: row[mode].seconds for mode in row} for part, row in tried.items()}
    return ActivationChoice(chosen, found.seconds, times)


def _smallest(
    options: Mapping[Component, tuple[str, ...]], measure: Measure
) -> tuple[dict[Component, str], StepCost | None]:
    """Return the modes of least memory, and their step; of two that may be, the first that fits, else the first."""
    bases = [
        {component: min(names, key=order.index) for component, names in options.items()}
        for order in (FROM_SMALL, (FROM_SMALL[1], FROM_SMALL[0], *FROM_SMALL[2:]))
    ]
    for base in bases if bases[0] != bases[1] else bases[:1]:
        cost = measure(base)
        if cost is not None:
            return base, cost
    return bases[0], None


def _fastest(row: Mapping[str, StepCost], slack: float) -> str:
    """Return the mode of least memory among those that lose no more than ``slack`` seconds to the fastest."""
    limit = min(cost.seconds for cost in row.values()) + slack
    return min((mode for mode in row if row[mode].seconds <= limit), key=lambda mode: row[mode].peak)


def _best_change(tried: Mapping[Component, Mapping[str, StepCost]], chosen: Modes) -> tuple[Component, str] | None:
    """Return the component and its new mode that lose the least time for a byte saved; ``None`` if none saves any."""

    def changes() -> Iterator[tuple[float, Component, str]]:
        for component, row in tried.items():
            now = row[chosen[component]]
            for mode, cost in row.items():
                if cost.peak < now.peak:
                    yield (cost.seconds - now.seconds) / (now.peak - cost.peak), component, mode

    best = min(changes(), default=None)
    return None if best is None else best[1:]


def component_options(space: Any) -> dict[Component, tuple[str, ...]]:
    """Return each component's modes to choose from; a layer fixed at one operator has none to compute one by one."""
    return {
        component: tuple(mode for mode in ACTIVATION_MODES if mode != "checkpoint" or len(space.space[component]) > 1)
        for component in COMPONENTS
    }


def choose_activations(
    space: Any,
    settings: Settings,
    skeleton: Skeleton,
    loaders: tuple[Any, Any],
    steps: int,
    stage: str,
    folder: Path | None,
) -> dict[Component, str]:
    """Set how a supernet's layers are computed, as the settings say or, where they leave it open, by timing.

    Where they leave it open, a mixed layer with a candidate that the fused layer does not know is computed as ``all``
    whatever fused mode its component has. That follows from the candidates alone, removed ones too, so it is the same
    in a training that goes on.

    A choice is kept beside the checkpoints and taken from there: another one would round differently, and a training
    that goes on would not equal one that was not stopped. The main process chooses for all, by its own timings or,
    where a step exchanges batch normalisation's statistics, by those of all processes together.

    Args:
        space: The mutated model space, its batch normalisation chosen. Only its modes change, and where it lies.
        settings: The run's settings.
        skeleton: The supernet's skeleton.
        loaders: Those of the images for the weights and for the architecture parameters.
        steps: Steps of the training.
        stage: What is trained, for the log.
        folder: Folder of the stage's checkpoints, or ``None``.

    Returns:
        The mode of each component.

    Raises:
        InputError: If the kept choice cannot be read, or the settings ask for a fused mode in a layer with a candidate
            that the fused layer does not know.
    """
    agree_on_programs(distributed.device())
    wanted = settings.supernet.activations
    if wanted != AUTO:
        modes: dict[Component, str] = {
            component: getattr(wanted, component) if isinstance(wanted, ActivationsByComponent) else wanted
            for component in COMPONENTS
        }
        set_activations(space, modes)
        return modes
    file = None if folder is None else folder / FILE
    kept = _read(file) if file is not None and distributed.is_main() and file.exists() else None
    choice: dict[Component, str] | None = distributed.broadcast_object(kept)
    if choice is None:
        new = _new(space, settings, skeleton, loaders, steps, stage)
        if file is not None and distributed.is_main():
            write_json(file, asdict(new))
        choice = distributed.broadcast_object(new.modes)
    set_activations(space, choice, fallback=True)
    fallback = describe_fallback(space)
    if fallback is not None and distributed.is_main():
        logger.info("%s: supernet.activations: %s", stage, fallback)
    return choice


def _new(
    space: Any, settings: Settings, skeleton: Skeleton, loaders: tuple[Any, Any], steps: int, stage: str
) -> ActivationChoice:
    """Choose, and say so; in a process that is not asked for timings, what takes no timing."""
    device, main = distributed.device(), distributed.is_main()
    choice = ActivationChoice(dict.fromkeys(COMPONENTS, "fused-low"))
    timed = device.type in TIMED and steps >= MIN_STEPS
    taken = _taken_elsewhere(device) if timed else 0
    if timed and (main or shares_statistics(space)):
        options = component_options(space)
        with StepTimer(space, settings, skeleton, loaders, device, taken) as timer:
            choice = choose_modes(options, timer, timer.available)
    if main and device.type in TIMED and not timed:
        logger.info("%s: %d steps, fewer than %d: supernet.activations is not timed", stage, steps, MIN_STEPS)
    if main:
        logger.info("%s: supernet.activations: %s", stage, choice.sentence())
    return choice


def _taken_elsewhere(device: torch.device) -> int:
    """Return the bytes that the GPU of another process has less to give than this one's, which may time for it."""
    mine = free_memory(device)
    least: int = min(distributed.gather(mine))
    return mine - least


def _read(file: Path) -> dict[Component, str]:
    content = read_json(file)
    modes = content.get("modes") if isinstance(content, dict) else None
    if not isinstance(modes, dict) or set(modes) != set(COMPONENTS) or not set(modes.values()) <= set(ACTIVATION_MODES):
        raise InputError("is not a choice of activation modes", source=file, allowed="the file as it was, or --force")
    return {component: modes[component] for component in COMPONENTS}
