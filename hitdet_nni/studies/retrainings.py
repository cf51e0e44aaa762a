"""Many retrainings under one protocol: each in its own run directory, finished ones never repeated."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from hitdet_nni import distributed
from hitdet_nni.architecture import Architecture
from hitdet_nni.data.pipeline import open_data
from hitdet_nni.procedure import keep_architecture, train_found
from hitdet_nni.process import prepare_process
from hitdet_nni.run_directory import RunDirectory
from hitdet_nni.settings import Settings


@dataclass(frozen=True)
class Retraining:
    """One retraining of a study.

    Attributes:
        architecture: What is trained.
        settings: All settings; their seed is the retraining's.
        folder: Its run directory.
    """

    architecture: Architecture
    settings: Settings
    folder: Path


def retrain_all(
    retrainings: Sequence[Retraining], processes: int, on_result: Callable[[Retraining, dict[str, Any]], None]
) -> list[dict[str, Any]]:
    """Retrain, each from its newest checkpoint if there is one.

    Args:
        retrainings: What to train.
        processes: How many to train side by side, each in a process of its own; 1 trains in this process.
        on_result: Called with each retraining and the content of its ``metrics.json``, as they end.

    Returns:
        The contents of ``metrics.json``, in the order of the retrainings.

    Raises:
        InputError: If a folder holds something else.
    """
    results: dict[int, dict[str, Any]] = {}
    with _runner(processes) as run:
        for number, result in run(retrainings):
            results[number] = result
            on_result(retrainings[number], result)
    return [results[number] for number in range(len(retrainings))]


Runner = Callable[[Sequence[Retraining]], Iterator[tuple[int, dict[str, Any]]]]


@contextmanager
def _runner(processes: int) -> Iterator[Runner]:
    """What runs retrainings and gives number and result of each as it ends."""
    if processes == 1:
        yield lambda retrainings: ((number, _retrain(one)) for number, one in enumerate(retrainings))
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:

        def run(retrainings: Sequence[Retraining]) -> Iterator[tuple[int, dict[str, Any]]]:
            futures = {pool.submit(_retrain, one): number for number, one in enumerate(retrainings)}
            try:
                for future in as_completed(futures):
                    yield futures[future], future.result()
            finally:
                for future in futures:  # an error ends the study after those that have begun
                    future.cancel()

        yield run


def _retrain(one: Retraining) -> dict[str, Any]:
    prepare_process(one.settings.threads)
    run = RunDirectory(one.folder)
    with run.held() if distributed.is_main() else nullcontext():
        run.open(one.settings, resume=True)
        if distributed.is_main():
            keep_architecture(run, one.architecture)
        pictures = open_data(one.settings.data, one.settings.seed)
        with run.timed("retrain"):
            return train_found(run, one.architecture, one.settings, pictures, resume=True)
