"""A run directory: where a run's settings, measurements and results lie, and what may be overwritten."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hitdet_nni.config.search_space import SCREENED
from hitdet_nni.config.settings import Settings, load_settings
from hitdet_nni.config.skeleton import Component
from hitdet_nni.engine import distributed
from hitdet_nni.errors import InputError, WriteError
from hitdet_nni.io import locked, read_json, read_yaml, write_json, write_text
from hitdet_nni.runs.environment import describe_environment
from hitdet_nni.runs.same_settings import other_settings, plain, same_run
from hitdet_nni.runs.tables import Score, read_scores, write_scores

_BY_STAGE = ("seconds", "warnings")
"""What the metadata hold of each stage."""

CANDIDATES = "candidates.json"
"""Name of the file of what a choice by trainings is among."""

RUNGS = "rungs.csv"
"""Name of the table of the trainings by which it is made."""


@dataclass(frozen=True)
class RunDirectory:
    """The files of one run; every one is written whole or not at all."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved settings."""
        return self.path / "config.yml"

    @property
    def metadata(self) -> Path:
        """Commit, seed, versions, machine, numbers of images, seconds by stage."""
        return self.path / "metadata.json"

    @property
    def screening(self) -> Path:
        """Folder of the screening's scores."""
        return self.path / SCREENED.parent

    @property
    def sub_spaces(self) -> Path:
        """The screened search space."""
        return self.path / SCREENED

    @property
    def alphas(self) -> Path:
        """Architecture parameters after each epoch of the search."""
        return self.path / "search" / "alphas.csv"

    @property
    def search_metrics(self) -> Path:
        """What was measured after each epoch of the search."""
        return self.path / "search" / "metrics.csv"

    @property
    def samples(self) -> Path:
        """The architectures that were tried in the supernet, where ``search.decode`` is ``samples``."""
        return self.path / "search" / "samples.csv"

    @property
    def latency(self) -> Path:
        """The table of latencies that a search has its budget by."""
        return self.path / "search" / "latency.json"

    @property
    def front(self) -> Path:
        """Folder of the architectures that no other one of the supernet beats in loss and cost."""
        return self.path / "front"

    @property
    def front_table(self) -> Path:
        """Those architectures, and what was compared with them."""
        return self.front / "front.csv"

    @property
    def rungs(self) -> Path:
        """Folder of the trainings by which a retraining's architecture is chosen among several."""
        return self.path / "rungs"

    @property
    def rung_table(self) -> Path:
        """Their losses where they paused, and which went on."""
        return self.rungs / RUNGS

    @property
    def candidates(self) -> Path:
        """What it is chosen among."""
        return self.rungs / CANDIDATES

    @property
    def architecture(self) -> Path:
        """The result of the search."""
        return self.path / "architecture.json"

    @property
    def retrain(self) -> Path:
        """Folder of the retraining's weights and logs."""
        return self.path / "retrain"

    @property
    def metrics(self) -> Path:
        """COCO metrics and cost of the retrained detector."""
        return self.path / "metrics.json"

    @property
    def benchmark(self) -> Path:
        """Accuracy and latency of the exported file."""
        return self.path / "benchmark.json"

    @property
    def baseline(self) -> Path:
        """Name and config of the baseline that was trained, where it was one."""
        return self.path / "baseline.json"

    @property
    def supernet(self) -> Path:
        """Weights of the supernet at the end of the search."""
        return self.path / "search" / "supernet.pth"

    @property
    def halves(self) -> Path:
        """How the search has split the training images between weights and architecture parameters."""
        return self.path / "search" / "halves.json"

    def require(self, file: Path, command: str) -> Path:
        """Return a file of the run.

        Args:
            file: The file.
            command: The command that writes it.

        Raises:
            InputError: If it is not there, naming the command.
        """
        if not file.is_file():
            allowed = f"a run of which hitdet-nni {command} has ended"
            raise InputError(f"has no {file.relative_to(self.path)}", source=self.path, allowed=allowed)
        return file

    def checkpoints(self, stage: str) -> Path:
        """Return the folder of a stage's checkpoints; it is gone when the stage has ended."""
        return self.path / "checkpoints" / stage.replace(" ", "-")

    def scores(self, component: Component) -> Path:
        """Return the file of the screening scores of one component."""
        return self.screening / f"{component}.csv"

    def supernet_scores(self, component: Component, number: int) -> Path:
        """Return the file of one supernet's scores, where several screen the component; from 1."""
        return self.screening / f"{component}_supernet_{number}.csv"

    def reliability(self, component: Component) -> Path:
        """Return the file that says how far several supernets agree on the component's operators."""
        return self.screening / f"{component}_reliability.json"

    @property
    def _lock(self) -> Path:
        return self.path / "run.lock"

    @contextmanager
    def held(self, *, wait: bool = False) -> Iterator[None]:
        """Keep other processes from working in the directory; the system frees it if this one dies.

        Args:
            wait: Wait for another one to end instead of refusing.

        Raises:
            InputError: If another process works in it, it cannot be written, or a link in it leads out of it.
        """
        if self.path.exists() and not self.path.is_dir():
            raise InputError("is a file", source=self.path, key="--out", allowed="a folder")
        self.refuse_links_outside()
        with ExitStack() as stack:
            try:
                mine = stack.enter_context(locked(self._lock, wait=wait))
            except WriteError as error:
                raise InputError(f"cannot be written ({error.reason})", source=self.path, key="--out") from None
            if not mine:
                raise InputError("another process works in it", source=self.path, allowed="another folder")
            stack.callback(self._remove_if_unused)
            yield

    def refuse_links_outside(self) -> None:
        """Refuse symbolic links below the directory that lead out of it: what is written to it would land there.

        The directory itself may be a link.

        Raises:
            InputError: Naming the first such link.
        """
        root = Path(os.path.realpath(self.path))
        for folder, folders, files in os.walk(root):
            for name in sorted(folders + files):
                entry = Path(folder, name)
                if entry.is_symlink() and not Path(os.path.realpath(entry)).is_relative_to(root):
                    raise InputError("is a link out of the run directory", source=entry, allowed="files and folders")

    def _remove_if_unused(self) -> None:
        with suppress(OSError):
            there = list(self.path.iterdir())
            if there == [self._lock]:
                self._lock.unlink()
                self.path.rmdir()
            elif not self.metadata.exists() and self._lock.stat().st_size == 0:  # a folder of something else
                self._lock.unlink()

    def open(self, settings: Settings, *, force: bool = False, resume: bool = False) -> None:
        """Prepare the directory for a run; the main process does so, the others wait for it.

        Args:
            settings: The run's settings, written to ``config.yml``.
            force: Remove the results of an earlier run.
            resume: Go on with an earlier run of the same settings where it stopped.

        Raises:
            InputError: If the directory holds something that may not be overwritten or resumed.
        """
        if distributed.is_main():
            self._prepare(settings, force, resume)
        distributed.barrier()

    def check(self, settings: Settings, *, force: bool = False, resume: bool = False) -> None:
        """Refuse what :meth:`open` would, before anything takes time and without a change; in all processes.

        Raises:
            InputError: As :meth:`open`.
        """
        self._refuse(settings, force, resume)
        distributed.barrier()  # none looks at what another one has begun

    def _refuse(self, settings: Settings, force: bool, resume: bool) -> bool:
        """Refuse a directory that may not be overwritten or resumed; return whether it holds what is gone on with."""
        holds_run = self.metadata.is_file() and self.config.is_file()
        if resume and holds_run:
            earlier, now = read_yaml(self.config), plain(settings)
            if not same_run(earlier, now):
                with suppress(InputError):  # a key that has come since has its default there
                    earlier = plain(load_settings(self.config))
            if not same_run(earlier, now):
                raise other_settings(self.config, earlier, now, self.sub_spaces)
            self._read_metadata()
            return True
        there = self._content()
        # A process that was killed in the last lines below has left at most these.
        begun = (self.metadata.name, f".{self.metadata.name}.", f".{self.config.name}.")
        if there and not (resume and all(file.name.startswith(begun) for file in there)):
            if not holds_run:
                raise InputError("is not empty and holds no run", source=self.path, allowed="a new or empty folder")
            if not force:
                raise InputError("holds a run", source=self.path, allowed="another folder, --resume or --force")
        return False

    def _content(self) -> list[Path]:
        return [file for file in self.path.iterdir() if file != self._lock] if self.path.is_dir() else []

    def _prepare(self, settings: Settings, force: bool, resume: bool) -> None:
        if self._refuse(settings, force, resume):
            if read_yaml(self.config) != plain(settings):
                self._write_config(settings)
            return
        if force:
            for file in self._content():
                shutil.rmtree(file) if file.is_dir() and not file.is_symlink() else file.unlink()
        try:
            write_json(self.metadata, describe_environment(settings))
        except WriteError as error:
            raise self._unwritable(error) from None
        self._write_config(settings)

    def _write_config(self, settings: Settings) -> None:
        try:
            write_text(self.config, yaml.safe_dump(plain(settings), sort_keys=False))
        except WriteError as error:
            raise self._unwritable(error) from None

    def _unwritable(self, error: WriteError) -> InputError:
        return InputError(f"cannot be written ({error.reason})", source=self.path, key="--out")

    def _read_metadata(self) -> dict[str, Any]:
        """Return the content of ``metadata.json``, which a stage adds its time and its warnings to."""
        metadata = read_json(self.metadata)
        if not isinstance(metadata, dict) or not all(isinstance(metadata.get(key), dict) for key in _BY_STAGE):
            allowed = f"{' and '.join(_BY_STAGE)} by stage, or --force"
            raise InputError("is not the metadata of a run", source=self.metadata, allowed=allowed)
        return metadata

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add a stage's wall time, in seconds, to the metadata, less that of stages timed inside it.

        A stage that is interrupted counts too: what it has done is not done again. Nothing is added where the directory
        has no metadata at the end of the stage, which may have opened it.
        """
        timing = distributed.is_main()
        before = sum(self._read_metadata()["seconds"].values()) if timing and self.metadata.is_file() else 0.0
        started = time.monotonic()
        try:
            yield
        except InputError:
            raise  # refused before anything was done, perhaps in the run of somebody else
        except BaseException:
            if timing:
                with suppress(OSError, WriteError, InputError):  # a full disk, say, which is being told
                    self._add_seconds(stage, time.monotonic() - started, before)
            raise
        if timing:
            self._add_seconds(stage, time.monotonic() - started, before)

    def _add_seconds(self, stage: str, wall: float, before: float) -> None:
        """Add to a stage the time that it took, less what the seconds of all stages have grown by from `before`."""
        if not self.metadata.is_file():
            return
        metadata = self._read_metadata()
        seconds = metadata["seconds"]
        inside = max(0.0, sum(seconds.values()) - before)  # nothing where the stage began the directory anew
        seconds[stage] = round(seconds.get(stage, 0.0) + wall - inside, 3)
        write_json(self.metadata, metadata)

    def seconds(self, stage: str) -> float:
        """Return the wall time that a stage has taken so far, 0 where it was not timed."""
        return float(self._read_metadata()["seconds"].get(stage, 0.0))

    def note_warnings(self, stage: str, warnings: Sequence[str]) -> None:
        """Put what a stage's signs of health give reason to doubt into the metadata, if the directory has any."""
        if self.metadata.is_file():
            metadata = self._read_metadata()
            metadata["warnings"][stage] = list(warnings)
            write_json(self.metadata, metadata)

    def note_images(self, train: int, val: int) -> None:
        """Put the numbers of training and validation images into the metadata, if the directory has any."""
        if self.metadata.is_file():
            metadata = self._read_metadata()
            metadata["images"] = {"train": train, "val": val}
            write_json(self.metadata, metadata)

    @property
    def reports(self) -> int:
        """How many intermediate results its trial has reported to NNI."""
        return int(self._read_metadata().get("reports", 0))

    def note_reports(self, count: int) -> None:
        """Put that number into the metadata."""
        write_json(self.metadata, {**self._read_metadata(), "reports": count})

    def note_activations(self, stage: str, activations: Mapping[Component, str]) -> None:
        """Put how each component of a stage's supernet was computed into the metadata, if the directory has any."""
        if self.metadata.is_file():
            metadata = self._read_metadata()
            metadata.setdefault("activations", {})[stage] = dict(activations)
            write_json(self.metadata, metadata)

    def write_scores(self, component: Component, scores: Sequence[Score]) -> None:
        """Write a component's screening scores."""
        write_scores(self.scores(component), scores)

    def kept_operators(self, component: Component) -> list[str]:
        """Return the operators that the screening of a component left, read off its scores.

        Raises:
            InputError: If the file is missing or not what :meth:`write_scores` writes.
        """
        scores = read_scores(self.scores(component))
        last = max(score.epoch for score in scores)
        return [score.operator for score in scores if score.epoch == last and not score.removed]


def find_run(path: str | Path) -> RunDirectory:
    """Return the run directory at a path.

    Raises:
        InputError: If there is none, or a link in it leads out of it.
    """
    run = RunDirectory(Path(path))
    if not run.path.exists():
        raise InputError("no such run directory", source=path)
    if not run.config.is_file():
        raise InputError("is not a run directory (no config.yml)", source=path)
    run.refuse_links_outside()
    return run
