"""``benchmark.json``: accuracy and latency of one exported file."""

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


class Benchmark(BaseModel):
    """The content of the file.

    Attributes:
        file: Name of the exported file.
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


def write_benchmark(path: Path, benchmark: Benchmark) -> None:
    """Write the file, whole or not at all."""
    write_json(path, benchmark.model_dump(mode="json"))


def read_benchmark(path: Path) -> Benchmark:
    """Read the file.

    Raises:
        InputError: If it cannot be read, or is something else.
    """
    found = validated(Benchmark, path, read_json(path))
    missing = [name for name in PRECISIONS if name not in found.metrics]
    if missing:
        raise InputError("missing", source=path, key=f"metrics.{missing[0]}")
    return found
