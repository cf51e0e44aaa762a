"""What every process that computes sets up first: threads, the noise of libraries, and how accidents are told."""

from __future__ import annotations

import errno
import gc
import logging
import multiprocessing
import re
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from multiprocessing import resource_sharer
from pathlib import Path
from types import FrameType, TracebackType

from hitdet_nni.engine import distributed
from hitdet_nni.errors import InputError, LostProcessError, LostWorkerError, WriteError

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
_AGAIN = 0.05
"""Seconds after which Ctrl-C that had to wait is tried again."""

_HANDOVER = resource_sharer.__file__
_LOST_WORKER = re.compile(r"DataLoader worker \(pid[^)]*\)[^.\n]*")


def prepare_process(threads: int) -> None:
    """Set threads and how processes start, and silence third-party notices that a user can do nothing about.

    Args:
        threads: Threads of this process. On a small shared machine more than one is many times slower.
    """
    import torch  # noqa: PLC0415  (accidents are also told of commands that compute nothing)

    torch.set_num_threads(threads)
    if sys.platform == "linux":
        # Loader processes share the decoded images where they are forked, which is no longer the default of 3.14.
        multiprocessing.set_start_method("fork", force=True)
    for name in ("pytorch_lightning", "lightning.pytorch", "nni.nas"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for module in ("nni", "mmengine", "mmdet", "mmcv", "pytorch_lightning", "torch"):
        warnings.filterwarnings("ignore", module=rf"{module}(\.|$)")


_own_process = False


def own_process() -> None:
    """Say that this process is the package's from its beginning to its end, and no program's that uses the package."""
    global _own_process
    _own_process = True


@contextmanager
def uncollected_imports() -> Iterator[None]:
    """Collect no garbage within the context, where modules are imported that stay: a quarter of the imports' seconds.

    What was imported in a process of the package's own is left out of later collections too, once a process.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
    if _own_process:
        keep_imports()


@cache
def keep_imports() -> None:
    """Leave all that is alive, such as what was imported, out of the collections of garbage to come; once a process.

    For processes that are ours from their beginning: what dies later is not collected where it is in a cycle. To look
    through it all takes .2 s, and mmengine collects garbage for each data set that it builds, two for every training.
    """
    gc.collect()
    gc.freeze()


def require_device(name: str) -> None:
    """Refuse a device that torch does not know, or a GPU that it does not find.

    Args:
        name: The device, as torch names it.

    Raises:
        InputError: Naming those that there are.
    """
    import torch  # noqa: PLC0415

    gpus = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise InputError(f"got {name!r}", key="device", allowed=["cpu", *gpus])
    if device.type == "cuda" and (device.index or 0) >= len(gpus):
        problem = f"torch finds no GPU {device.index}" if gpus else "torch finds no GPU"
        raise InputError(problem, key="device", allowed=["cpu", *gpus])


@contextmanager
def heard_interrupts() -> Iterator[None]:
    """Have Ctrl-C wait within the context until it does no harm, and is not lost.

    Interrupted, an import leaves modules that no later import completes: a notebook's kernel would have to be started
    anew. What Python calls as an object ends, as in a collection of garbage, is interrupted alone, and all else goes
    on. Only Python's main thread is interrupted, so that in others nothing is done.

    Raises:
        KeyboardInterrupt: After the import or the end of the object that it came in, or at once outside of such.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    around = _imports_of(sys._getframe())  # of a module that does all its work when it is imported
    again: threading.Timer | None = None
    told_before = sys.unraisablehook

    def wait() -> None:
        nonlocal again
        if again is not None:
            again.cancel()
        again = threading.Timer(_AGAIN, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT))
        again.daemon = True
        again.start()

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal again
        if _imports_of(frame) > around:
            wait()
            return
        again = None
        before(number, frame)

    def unraisable(told: sys.UnraisableHookArgs) -> None:
        if isinstance(told.exc_value, KeyboardInterrupt):
            wait()
        else:
            told_before(told)

    signal.signal(signal.SIGINT, interrupt)
    sys.unraisablehook = unraisable
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        sys.unraisablehook = told_before
        if again is not None:
            again.cancel()
            before(signal.SIGINT, None)


def _imports_of(frame: FrameType | None) -> int:
    """Return how many imports a frame lies within."""
    return sum(one.f_code.co_filename == "<frozen importlib._bootstrap>" for one, _ in traceback.walk_stack(frame))


@contextmanager
def translate_io_errors(folder: Path) -> Iterator[None]:
    """Tell accidents that no code of ours is near, such as a full disk under a library's log, as our errors.

    Args:
        folder: Named where the system does not say which file it could not write.

    Raises:
        WriteError: In place of the system's error where there is no room to write.
        LostWorkerError: In place of torch's error where a process that loads images has ended.
        LostProcessError: In place of torch's error where another process of the training has ended.
        KeyboardInterrupt: In place of the exit by which Lightning ends a program at a signal, without a word.
    """
    hooks = sys.unraisablehook, sys.excepthook
    sys.unraisablehook = partial(_tell_unless_lost_worker, sys.unraisablehook)
    sys.excepthook = partial(_tell_unless_torn_handover, sys.excepthook)  # loader processes are forked, and have it too
    try:
        yield
    except SystemExit as error:
        raise KeyboardInterrupt from error
    except (OSError, EOFError, RuntimeError) as error:
        if distributed.launched() and _was_exchanging(error):
            raise LostProcessError from error
        lost = _LOST_WORKER.match(str(error))
        if lost is not None:
            raise LostWorkerError(lost[0]) from error
        if not isinstance(error, RuntimeError) and _was_receiving(error):
            raise LostWorkerError("a process that loads images has ended while it handed over a batch") from error
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            raise WriteError(error.filename or folder, error.strerror or str(error)) from error
        raise
    finally:
        sys.unraisablehook, sys.excepthook = hooks


def _was_exchanging(error: BaseException) -> bool:
    """Whether an error was raised where processes exchange tensors."""
    frames = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
    return any("/torch/distributed/" in Path(name).as_posix() for name in frames)


def _tell_unless_lost_worker(tell: Callable[[sys.UnraisableHookArgs], object], what: sys.UnraisableHookArgs) -> None:
    """Tell what Python could not raise, unless it is the end of a process that loads images.

    Torch raises that at whatever is being computed when the system's signal arrives. Where this is a destructor, Python
    prints a traceback and goes on, and the loss is noticed once more where the next batch is received.
    """
    if not (isinstance(what.exc_value, RuntimeError) and _LOST_WORKER.match(str(what.exc_value))):
        tell(what)


def _tell_unless_torn_handover(
    tell: Callable[[type[BaseException], BaseException, TracebackType | None], object],
    kind: type[BaseException],
    error: BaseException,
    trace: TracebackType | None,
) -> None:
    """Tell what nothing has caught, unless a loader process was about to hand a batch to one that has turned away."""
    codes = (frame.f_code for frame, _ in traceback.walk_tb(trace))
    if not (isinstance(error, (ConnectionError, EOFError)) and any(c.co_filename == _HANDOVER for c in codes)):
        tell(kind, error, trace)


def _was_receiving(error: BaseException) -> bool:
    """Check whether torch was receiving a batch from another process, whose death looks different then."""
    from torch.utils.data import dataloader  # noqa: PLC0415

    frames = (frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(code.co_name == "_try_get_data" and code.co_filename == dataloader.__file__ for code in frames)
