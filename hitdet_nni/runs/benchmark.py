"""``benchmark.json``: accuracy and latency of exported files, an entry for each."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, FiniteFloat, PositiveFloat, PositiveInt

from hitdet_nni.config.validation import validated
from hitdet_nni.errors import InputError
from hitdet_nni.io import read_json, write_json
from hitdet_nni.runs.result import PRECISIONS


class Percentiles(BaseModel):
    """Milliseconds that so many percent of the runs took at most."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    p50: PositiveFloat
    p90: PositiveFloat
    p99: PositiveFloat


class FileBenchmark(BaseModel):
    """What was measured of one file.

    Attributes:
        file: Name of the exported file.
        precision: What its layers compute in; ``None`` of a file that does not say it.
        sha256: Digest of its content.
        images: Validation images.
        metrics: Average precisions in [0, 1].
        latency_ms: Time of an image from resized pixels to boxes.
        runs: Runs that were timed.
        runtime: What ran it, with its version.
        threads: Threads of one operation.
        machine: The processor.
        rounds: How often each of the timed images was run.
        pause_ms: Pause between two rounds.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str
    precision: str | None = None
    sha256: str
    images: PositiveInt
    metrics: dict[str, FiniteFloat]
    latency_ms: Percentiles
    runs: PositiveInt
    runtime: str
    threads: PositiveInt
    machine: str
    rounds: PositiveInt
    pause_ms: FiniteFloat

    @property
    def conditions(self) -> str:
        """What latencies must have in common to be compared."""
        return f"{self.runtime}, {self.threads} thread{'' if self.threads == 1 else 's'}, {self.machine}"

    @property
    def name(self) -> str:
        """The file, and what its layers compute in where that is known."""
        return self.file if self.precision is None else f"{self.file} ({self.precision})"


class Benchmark(BaseModel):
    """The content of the file.

    Attributes:
        files: The exported files in the order in which they were measured first, each name once.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    files: tuple[FileBenchmark, ...]

    def of(self, file: str) -> FileBenchmark | None:
        """Return what was measured of the file of a name, ``None`` where nothing was."""
        return next((one for one in self.files if one.file == file), None)


def add_benchmark(path: Path, found: FileBenchmark) -> None:
    """Write what was measured of a file into ``benchmark.json``, in place of what it has of a file of that name.

    Args:
        path: ``benchmark.json``; made if absent.
        found: What was measured.

    Raises:
        InputError: If it is there and something else.
        WriteError: If it cannot be written; it is as it was.
    """
    files = {one.file: one for one in read_benchmark(path).files} if path.exists() else {}
    content = Benchmark(files=tuple({**files, found.file: found}.values()))
    write_json(path, content.model_dump(mode="json"))


def read_benchmark(path: Path) -> Benchmark:
    """Read the file; one of an older version has a single entry, which is the whole file.

    Raises:
        InputError: If it cannot be read, or is something else.
    """
    content = read_json(path)
    if isinstance(content, dict) and "file" in content:
        found = Benchmark(files=(validated(FileBenchmark, path, content),))
    else:
        found = validated(Benchmark, path, content)
    for number, one in enumerate(found.files):
        missing = [name for name in PRECISIONS if name not in one.metrics]
        if missing:
            raise InputError("missing", source=path, key=f"files[{number}].metrics.{missing[0]}")
    return found
