"""What stands round the work of a command that trains: its processes, its run directory, and what is seen of it."""

from __future__ import annotations

import logging
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from hitdet_nni.config.settings import Settings
from hitdet_nni.engine import distributed
from hitdet_nni.engine.output import write_out
from hitdet_nni.engine.process import prepare_process, translate_io_errors, uncollected_imports
from hitdet_nni.engine.progress import listening
from hitdet_nni.engine.progress_view import LineView, View, ViewHandler, view_on
from hitdet_nni.runs.run_directory import RunDirectory

logger = logging.getLogger(__name__)


def at_work(options: Namespace, config: object) -> AbstractContextManager[View]:
    """Do :func:`working` for a command.

    Args:
        options: The command's options.
        config: What the work is on, for the first line.
    """
    return working(options.out, options.command, config, as_json=getattr(options, "json", False))


@contextmanager
def working(out: Path, name: str, config: object, *, as_json: bool = False) -> Iterator[View]:
    """Say that the work begins, keep others out of the run directory, and show how far the work is until it ends.

    The process joins those that ``torchrun`` started beside it, of which the main one speaks.

    Args:
        out: The run directory.
        name: What the work is called.
        config: What the work is on, for the first line.
        as_json: Leave standard output to the result: what is seen goes to standard error.

    Yields:
        What shows the progress.

    Raises:
        InputError: If another process works in the run directory, or it cannot be one.
        StoppedError: In place of accidents of the work.
        KeyboardInterrupt: A person has ended it.
    """
    stream = sys.stderr if as_json else sys.stdout

    def write(text: str) -> None:
        write_out(f"{text}\n", stream)

    main = distributed.launched_as_main()
    view = view_on(stream, write) if main else LineView(lambda text: None)
    shown = listening(view) if main and not (as_json and isinstance(view, LineView)) else nullcontext()
    held = RunDirectory(out).held() if main else nullcontext()
    with held, view, shown, log_to_console(view if main else LineView(write), main), translate_io_errors(out):
        if main and not as_json:
            view.echo(f"{name}: {config}, files in {out}")
        distributed.init()
        yield view
    distributed.destroy()


@contextmanager
def watched() -> Iterator[View]:
    """Show how far a piece of work is that has no run directory and goes on in this process alone."""

    def write(text: str) -> None:
        write_out(f"{text}\n")

    view = view_on(sys.stdout, write)
    with view, listening(view), log_to_console(view, main=True):
        yield view


@contextmanager
def libraries_loading(view: View, settings: Settings) -> Iterator[None]:
    """Prepare the process for computing; what is imported within the context takes seconds, which the view says.

    Args:
        view: What shows the progress.
        settings: Give the number of threads and the precision.

    Raises:
        InputError: If the device cannot compute in that precision.
    """
    if not isinstance(view, LineView):
        view.waiting("loading torch, mmdet and NNI")
    with uncollected_imports():
        prepare_process(settings.threads)
        from hitdet_nni.engine.precision import Precision

        Precision(settings.precision, distributed.device())
        tell_of_cpu_presets(settings)
        yield


def tell_of_cpu_presets(settings: Settings) -> None:
    """Say which presets are for a machine without a GPU, where the settings are those of a preset for one.

    Args:
        settings: Give the precision, which is bf16 in all presets for a GPU.
    """
    if settings.precision == "bf16" and distributed.device().type == "cpu":
        logger.warning(
            "there is no GPU here: the presets whose names end in _cpu are the same detectors in fp32, with a third of "
            "the steps"
        )


@contextmanager
def log_to_console(view: View, main: bool) -> Iterator[None]:
    """Have the view show what the library notes of its work; of a process that is not the main one only errors."""
    notes = logging.getLogger("hitdet_nni")
    handler, before = ViewHandler(view), (notes.propagate, notes.level)
    notes.addHandler(handler)
    notes.propagate = False
    notes.setLevel(logging.INFO if main else logging.ERROR)
    try:
        yield
    finally:
        notes.removeHandler(handler)
        notes.propagate = before[0]
        notes.setLevel(before[1])
