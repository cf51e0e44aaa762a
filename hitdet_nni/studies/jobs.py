"""The trainings of a study: each in a run directory of its own, finished ones never repeated, several side by side."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from multiprocessing import active_children, get_context, parent_process
from multiprocessing.connection import wait as wait_for
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Event, Thread, current_thread, main_thread
from types import FrameType
from typing import Generic, TypeVar

from hitdet_nni.config.settings import Settings
from hitdet_nni.data.wording import counted
from hitdet_nni.engine import distributed
from hitdet_nni.engine.process import keep_imports, prepare_process
from hitdet_nni.engine.progress import PROGRESS_FILE, Progress, named, read_progress, tell, written
from hitdet_nni.runs.run_directory import RunDirectory

logger = logging.getLogger(__name__)

GRACE = 60.0
"""Seconds that interrupted trainings have to end; one within an import, or a long step, takes a while."""

POLL_INTERVAL = 1.0
"""Seconds between two looks at how far the trainings of other processes are."""


@dataclass(frozen=True)
class Job:
    """One training of a study.

    Attributes:
        settings: All settings; their seed is the training's.
        folder: Its run directory.
    """

    settings: Settings
    folder: Path


def seeded(settings: Settings, count: int) -> list[Settings]:
    """Return settings of several seeds: all have the images and the halves of the first, which is the settings' own."""
    data = settings.data.model_copy(update={"seed": settings.data.seed_of(settings.seed)})
    seeds = ((settings.seed + number) % 2**32 for number in range(count))
    return [settings.model_copy(update={"seed": seed, "data": data}) for seed in seeds]


J = TypeVar("J", bound=Job)
R = TypeVar("R")


@dataclass(frozen=True)
class Work(Generic[J, R]):
    """What is done for every training of a study.

    Attributes:
        stage: What it is called in messages.
        run: Does it, or reads what is there already; a function of a module, so that another process finds it.
        results: What is told of its end, by the names of :class:`~hitdet_nni.engine.progress.Progress`.
    """

    stage: str
    run: Callable[[J], R]
    results: Callable[[R], Mapping[str, float]] = lambda result: {}


OnEnd = Callable[[int, int, J, R], None]
"""Told of trainings as they end: how many have, how many there are, which, and its result."""


def run_jobs(work: Work[J, R], jobs: Sequence[J], processes: int, on_result: OnEnd[J, R]) -> list[R]:
    """Run the trainings of a study.

    Args:
        work: What each is.
        jobs: The trainings.
        processes: Trainings side by side, each in a process of its own; 1 trains in this process.
        on_result: Told of trainings as they end.

    Returns:
        The results in the order of the trainings.
    """
    with job_runner(work, processes, on_result) as run:
        return run(jobs)


@contextmanager
def job_runner(work: Work[J, R], processes: int, on_result: OnEnd[J, R]) -> Iterator[Callable[[Sequence[J]], list[R]]]:
    """Yield a function that runs trainings as :func:`run_jobs` does, all of them in the same processes.

    Args:
        work: What each is.
        processes: Trainings side by side.
        on_result: Told of trainings as they end.
    """
    with _runner(work, processes) as run:

        def run_all(jobs: Sequence[J]) -> list[R]:
            results: dict[int, R] = {}
            for number, result in run(jobs):
                results[number] = result
                on_result(len(results), len(jobs), jobs[number], result)
            return [results[number] for number in range(len(jobs))]

        yield run_all


@contextmanager
def _runner(work: Work[J, R], processes: int) -> Iterator[Callable[[Sequence[J]], Iterator[tuple[int, R]]]]:
    """Yield a function that runs trainings and gives number and result of each as it ends."""
    if processes == 1:
        yield lambda jobs: ((number, work.run(job)) for number, job in enumerate(jobs))
        return
    with _pool(processes) as pool:

        def run(jobs: Sequence[J]) -> Iterator[tuple[int, R]]:
            with _begun_at_rest():
                futures = {pool.submit(_Worker.train, work.run, job): number for number, job in enumerate(jobs)}
            pending = set(futures)
            try:
                while pending:
                    ended, pending = wait(pending, POLL_INTERVAL, FIRST_COMPLETED)
                    for number in (futures[future] for future in pending):
                        progress = read_progress(jobs[number].folder / PROGRESS_FILE)
                        if progress is not None:
                            tell(progress)
                    for future in ended:
                        number, result = futures[future], future.result()
                        who, results = jobs[number].folder.name, work.results(result)
                        tell(Progress(work.stage, "ended", results=results, who=who))
                        yield number, result
            finally:
                for future in futures:  # an error ends the study after those that have begun
                    future.cancel()

        yield run


@contextmanager
def _pool(processes: int) -> Iterator[ProcessPoolExecutor]:
    """Yield processes of which none goes on where a person interrupts the study, or where this process is killed."""
    pool = ProcessPoolExecutor(processes, get_context("spawn"), _Worker.prepare)
    try:
        yield pool
    except (KeyboardInterrupt, SystemExit):  # Lightning makes the one of the other
        _end(pool)
        raise
    finally:
        pool.shutdown()


def _end(pool: ProcessPoolExecutor) -> None:
    """End the trainings of a pool, which save where they are; what takes long, or at another signal, is killed."""
    hurry = Event()
    with _handled(lambda *_: hurry.set()):
        pool.shutdown(wait=False, cancel_futures=True)
        left = active_children()
        logger.info("ending %s", counted(len(left), "{training|trainings}"))
        for process in left:  # a signal that was not a terminal's has reached this process alone
            if process.pid is not None:
                with suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGINT)
        until = time.monotonic() + GRACE
        while left and time.monotonic() < until and not hurry.is_set():
            wait_for([process.sentinel for process in left], POLL_INTERVAL)
            left = [process for process in left if process.is_alive()]
        for process in left:
            process.kill()


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Have Ctrl-C handled within the context, where this thread is the one that it comes to."""
    if current_thread() is not main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _begun_at_rest() -> Iterator[None]:
    """Have processes that are started within the context hear of no Ctrl-C before they are prepared for it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Worker:
    """What a process of the pool does at signals: an interrupted one ends its training and begins no other."""

    interrupted = False

    @classmethod
    def prepare(cls) -> None:
        """Have this process end with the one that started it, and take note of an interruption at rest."""
        signal.signal(signal.SIGINT, cls._note)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        parent = parent_process()
        if parent is not None:
            Thread(target=_end_after, args=(parent,), daemon=True).start()

    @classmethod
    def train(cls, run: Callable[[J], R], job: J) -> R:
        """Do a training."""
        signal.signal(signal.SIGINT, cls._interrupt)
        try:
            if cls.interrupted:
                raise KeyboardInterrupt
            return run(job)
        finally:
            signal.signal(signal.SIGINT, cls._note)

    @classmethod
    def _note(cls, number: int, frame: FrameType | None) -> None:
        cls.interrupted = True

    @classmethod
    def _interrupt(cls, number: int, frame: FrameType | None) -> None:
        """End the training; a second signal, the terminal's and the study's, does not disturb its end."""
        signal.signal(signal.SIGINT, cls._note)
        cls.interrupted = True
        raise KeyboardInterrupt


def _end_after(process: BaseProcess) -> None:
    process.join()
    os._exit(1)


@contextmanager
def opened(job: Job) -> Iterator[RunDirectory]:
    """Prepare this process for a training and keep others out of its run directory, which is yielded."""
    prepare_process(job.settings.threads)
    if parent_process() is not None:
        keep_imports()
    run = RunDirectory(job.folder)
    with run.held() if distributed.is_main() else nullcontext(), named(job.folder.name):
        run.open(job.settings, resume=True)
        with _heard(run):
            yield run


def _heard(run: RunDirectory) -> AbstractContextManager[None]:
    """Have the process that started this one hear of the progress, where it is another one."""
    return nullcontext() if parent_process() is None else written(run.path)
