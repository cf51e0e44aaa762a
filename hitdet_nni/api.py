"""The whole product in a few lines of Python: search, retrain, predict; the same stages and files as the commands."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from html import escape
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from hitdet_nni.commands.shared.console import echo
from hitdet_nni.commands.shared.outcome import training_outcome
from hitdet_nni.commands.shared.trained import trained_source
from hitdet_nni.config.architecture import Architecture, load_architecture
from hitdet_nni.config.budget_settings import BUDGET_KEYS, BudgetKey
from hitdet_nni.config.python_arguments import StrPath, check_kinds, in_arguments, require_table, search_settings
from hitdet_nni.config.search_space import load_search_space
from hitdet_nni.config.settings import Settings, load_settings
from hitdet_nni.config.validation import require_kind
from hitdet_nni.data.sources import open_data
from hitdet_nni.deployment import FORMATS
from hitdet_nni.deployment.suffixes import SUFFIXES, format_of
from hitdet_nni.engine.process import heard_interrupts, prepare_process, require_device
from hitdet_nni.errors import InputError, StoppedError
from hitdet_nni.io import expanded, read_json
from hitdet_nni.nas.checks import check_classes
from hitdet_nni.nas.provenance import tell_unused_skeleton
from hitdet_nni.runs.found import facts_of, found_line
from hitdet_nni.runs.result import read_result
from hitdet_nni.runs.run_directory import RunDirectory, find_run

if TYPE_CHECKING:
    from hitdet_nni.deployment import FilePrecision, Format
    from hitdet_nni.deployment.detector import Detector
    from hitdet_nni.runs.front import FrontRow

RUNS = Path("runs")
"""Folder of the run directories that nothing else is said of."""

P = ParamSpec("P")
T = TypeVar("T")


def _in_python(function: Callable[P, T]) -> Callable[P, T]:
    """Refuse arguments of a wrong kind, let no import be interrupted, and have errors name arguments, not options."""
    parameters = inspect.signature(function).parameters

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        check_kinds(parameters, dict(zip(parameters, args, strict=False)) | kwargs)
        try:
            with heard_interrupts():
                return function(*args, **kwargs)
        except (InputError, StoppedError) as error:
            error.args = (in_arguments(str(error), parameters),)
            raise

    return call


def _path(path: StrPath) -> Path:
    """Return a path with the home folder in place of ``~``."""
    return expanded(os.fspath(path))


class Run:
    """A run directory: a search, its result, and what was made of it.

    Args:
        path: A run directory; :func:`load` refuses others.

    Attributes:
        path: The directory, absolute.
    """

    @_in_python
    def __init__(self, path: StrPath) -> None:
        self.path = find_run(_path(path)).path.absolute()  # what is refused is called as it was given
        self._files = RunDirectory(self.path)

    def __repr__(self) -> str:
        """Name the directory."""
        return f"{type(self).__name__}({str(self.path)!r})"

    def _repr_html_(self) -> str:
        """Return the run for a notebook: what was found, and what it reaches."""
        lines = {"run": str(self.path), **facts_of(self._files)}
        rows = "".join(f"<tr><th>{escape(key)}</th><td>{escape(value)}</td></tr>" for key, value in lines.items())
        return f"<table>{rows}</table>"

    @property
    def settings(self) -> Settings:
        """The settings that it was made with."""
        return load_settings(self._files.config)

    @property
    def architecture(self) -> Architecture:
        """What the search has found, or what was trained.

        Raises:
            InputError: If there is none yet.
        """
        self._require_search()
        return load_architecture(self._files.architecture)

    @property
    def metrics(self) -> dict[str, Any]:
        """COCO metrics and cost of the trained detector, as ``metrics.json`` has them.

        Raises:
            InputError: If nothing was trained yet, or the file is damaged.
        """
        file = self._files.require(self._files.metrics, "retrain")
        read_result(file)  # refuses what is damaged
        return dict(read_json(file))

    @_in_python
    def front(
        self,
        budgets: Sequence[float] = (),
        *,
        cost: BudgetKey | None = None,
        table: StrPath | None = None,
        samples: int = 192,
        images: int = 96,
        force: bool = False,
        resume: bool = False,
    ) -> tuple[FrontRow, ...]:
        """Find architectures of every cost in the supernet, as ``hitdet-nni front`` does.

        Args:
            budgets: Costs at which an architecture is wanted besides, in the front's unit.
            cost: That unit: ``"gflops"``, ``"params_m"`` or ``"latency_ms"`` (default: that of the search's budget,
                else GFLOPs).
            table: File of ``hitdet-nni latency`` (default: that of the search).
            samples: Architectures tried, besides a third as many that fill the budgets.
            images: Images that they are tried on.
            force: Remove the front that is there.
            resume: Go on with one that was interrupted, or return it if it has ended.

        Returns:
            The architectures that were compared at last, by ascending cost.

        Raises:
            InputError: If the search has not ended, a number is out of range, or a front is there.
        """
        from hitdet_nni.commands.shared.stages import front_unit, run_front  # noqa: PLC0415

        _refuse_both(force=force, resume=resume)
        self._require_search()
        if cost is not None and cost not in BUDGET_KEYS:
            raise InputError(f"got {cost!r}", key="cost", allowed=BUDGET_KEYS)
        for budget in budgets:
            require_kind("budgets", budget, Real, "numbers above 0")
        file = None if table is None else require_table(_path(table), "table")
        key, times = front_unit(self._files, self.settings, cost, file)
        return run_front(self._files, key, budgets, times, samples, images, force=force, resume=resume)

    @_in_python
    def retrain(
        self,
        *,
        budget: float | None = None,
        top: int = 1,
        out: StrPath | None = None,
        settings: Mapping[str, object] | None = None,
        inherit: bool = False,
        force: bool = False,
        resume: bool = False,
    ) -> Detector:
        """Train the architecture from new weights, evaluate it, and return the detector.

        Args:
            budget: Take the best of the front within this cost instead of what the search has found.
            top: With a budget: choose among so many of the front, half of which fill it, by trainings of which ever
                fewer go on.
            out: Run directory (default: this one; with a budget ``<this one>-retrained-<budget>``).
            settings: Dotted keys and their values that are changed, e.g. ``{"retrain.epochs": 50}``; these need another
                directory.
            inherit: Start from the supernet's weights.
            force: Remove the results that are in another directory.
            resume: Go on where an earlier call stopped; in this directory that needs no word.

        Raises:
            InputError: If there is no architecture, or the images, settings or the directory are bad.
        """
        from hitdet_nni.commands.shared.stages import front_points, run_retraining  # noqa: PLC0415

        self._require_search()
        if budget is not None:
            require_kind("budget", budget, Real, "a number above 0, in the front's unit")
        architectures = [self.architecture] if budget is None else front_points(self._files, budget, top)
        if budget is None and top != 1:
            raise InputError("has no meaning without a budget", key="top", allowed="with budget=...")
        _refuse_both(force=force, resume=resume)
        whole = self.path.resolve()
        elsewhere = whole.with_name(f"{whole.name}-retrained-{budget:g}") if budget is not None else self.path
        folder = elsewhere if out is None else _path(out)
        here = folder.resolve() == whole
        if here and out is None and settings:
            raise InputError("is missing", key="out", allowed="another directory, for other settings or with force")
        if here and (force or inherit):
            problem = "would train over the run's own detector"
            raise InputError(problem, key="force" if force else "inherit", allowed="with out=..., another directory")
        result = run_retraining(
            folder,
            load_settings(self._files.config, settings),
            self.path.name,
            architectures,
            self._files.supernet if inherit else None,
            force=force,
            resume=resume or here,
        )
        reached, _ = training_outcome(RunDirectory(folder), result)
        echo(reached)
        return Run(folder).detector()

    @_in_python
    def detector(self, device: str = "cpu") -> Detector:
        """Return the trained detector, a plain module of torch for inference.

        Args:
            device: Where it computes, as torch names devices.

        Raises:
            InputError: If nothing was trained yet, or torch finds no such device.
        """
        from hitdet_nni.deployment.loading import load_detector  # noqa: PLC0415

        require_device(device)
        return load_detector(*self._trained()).to(device)

    @_in_python
    def evaluate(self, settings: Mapping[str, object] | None = None) -> dict[str, float]:
        """Return COCO metrics of the trained detector on the validation images, measured now.

        Args:
            settings: Dotted keys and their values that are changed, e.g. ``{"data.val_ann": ..., "data.val_images":
                ...}`` for other images.

        Raises:
            InputError: If nothing was trained yet, or the images are bad or of other classes.
        """
        changed = load_settings(self._files.config, settings)
        architecture, weights = self._trained()
        images = open_data(changed.data, changed.seed, architecture.skeleton.input_size)
        check_classes(architecture, images)
        tell_unused_skeleton(architecture, changed)
        prepare_process(changed.threads)
        from hitdet_nni.training.retrain import evaluate  # noqa: PLC0415

        return evaluate(architecture, weights, changed, images)

    @_in_python
    def export(
        self,
        path: StrPath | None = None,
        *,
        kind: Format | None = None,
        raw_heads: bool = False,
        precision: FilePrecision = "fp32",
        calibration: int = 128,
        force: bool = False,
    ) -> Path:
        """Write the trained detector as a file that runs without this package.

        Args:
            path: The file (default: ``detector.onnx``, ``.pt``, ``.pt2`` or ``.xml`` in the run directory).
            kind: Its format (default: that of its name, or ``onnx``).
            raw_heads: Write what the heads say, before boxes are decoded and suppressed.
            precision: What its layers compute in, the last ones left out.
            calibration: For ``int8``: training images by which the ranges of values are found.
            force: Overwrite the file.

        Returns:
            The file.

        Raises:
            InputError: If nothing was trained yet, the file exists, or a package is missing.
        """
        from hitdet_nni.commands.shared.stages import run_export  # noqa: PLC0415

        self._require_search()
        chosen = kind or ("onnx" if path is None else format_of(_path(path)))
        if chosen not in FORMATS:
            raise InputError(f"got {chosen!r}", key="kind", allowed=FORMATS)
        file = self.path / f"detector{SUFFIXES[chosen]}" if path is None else _path(path)
        if file.exists() and not force:
            raise InputError("exists already", source=file, allowed="another file, or force=True")
        run_export(
            str(self.path),
            None,
            file,
            chosen,
            force=force,
            raw_heads=raw_heads,
            precision=precision,
            calibration=calibration,
        )
        return file

    @_in_python
    def report(self, path: StrPath | None = None, *, images: int = 6) -> Path:
        """Write the run's page and return it.

        Args:
            path: The file (default: ``report.html`` in the run directory).
            images: Validation images to show detections on.
        """
        from hitdet_nni.report.page import write_report  # noqa: PLC0415

        return write_report(self.path, None if path is None else _path(path), images=images)

    def _require_search(self) -> None:
        """Refuse to go on from a search that was interrupted.

        Raises:
            InputError: Saying how it goes on.
        """
        if self._files.baseline.is_file():
            allowed = "the run of a search or of what it has found"
            raise InputError("is the run of a baseline, which no search has found", source=self.path, allowed=allowed)
        if not self._files.architecture.is_file():
            allowed = "one that has: hitdet_nni.search(..., resume=True) goes on with it"
            raise InputError("the search has not ended", source=self.path, allowed=allowed)

    def _trained(self) -> tuple[Architecture, Path]:
        """Return the architecture and the file of its trained weights."""
        self._require_search()
        return trained_source(str(self.path), None)


@_in_python
def search(
    source: StrPath | None = None,
    *,
    preset: str = "small",
    budget: Mapping[str, object] | float | None = None,
    out: StrPath | None = None,
    seed: int | None = None,
    settings: Mapping[str, object] | None = None,
    sub_spaces: StrPath | None = None,
    force: bool = False,
    resume: bool = False,
) -> Run:
    """Search backbone, neck and head together for the images of a folder, as ``hitdet-nni search`` does.

    Args:
        source: A folder in COCO, YOLO or PASCAL VOC format; ``None`` for the images that the preset names.
        preset: A shipped config's name, or a config file.
        budget: What the detector may cost: ``{"gflops": 2}`` or just ``2``, ``{"params_m": 3}``, or ``{"latency_ms":
            5, "table": "latency.json"}``.
        out: The run directory (default: ``runs/<name of the folder or the preset>``).
        seed: Of everything that is random (default: the preset's).
        settings: Other dotted keys and their values, e.g. ``{"search.epochs": 20}``; a mapping is a diff of its
            section, as :func:`~hitdet_nni.config.settings.load_settings` says.
        sub_spaces: Search space to use instead of screening: a file, a run that has been screened, or a shipped one's
            name.
        force: Remove the results that are there.
        resume: Go on exactly where an earlier call stopped; one that has ended is returned.

    Raises:
        InputError: If the preset, a setting, the images or the run directory is bad.
    """
    from hitdet_nni.commands.shared.stages import run_search  # noqa: PLC0415

    _refuse_both(force=force, resume=resume)
    loaded = search_settings(preset, source, budget, seed, settings)
    name = Path(preset).stem if source is None else _path(source).resolve().name
    folder = RUNS / name if out is None else _path(out)
    given = None if sub_spaces is None else load_search_space(_path(sub_spaces))
    found = run_search(folder, loaded, os.fspath(preset), given, force=force, resume=resume)
    echo(found_line(found, loaded.search.budget))
    return Run(folder)


def _refuse_both(*, force: bool, resume: bool) -> None:
    """Refuse to begin anew and to go on at once.

    Raises:
        InputError: If both are asked for.
    """
    if force and resume:
        raise InputError("is given beside resume", key="force", allowed="one of them")


def load(path: StrPath) -> Run:
    """Return the run of a directory.

    Raises:
        InputError: If there is none.
    """
    return Run(path)
