"""What tests of the repository's own scripts share."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="session")
def benchmark_scripts():
    """A function that imports benchmarks, which import each other by their bare names, and returns them by name."""

    def imported(*names):
        sys.path.insert(0, str(BENCHMARKS))
        try:
            return {name: importlib.import_module(name) for name in names}
        finally:
            sys.path.remove(str(BENCHMARKS))

    return imported
