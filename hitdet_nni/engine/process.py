"""What every process that computes sets up first: threads, the noise of libraries, and how accidents are told."""

from __future__ import annotations

import errno
import logging
import multiprocessing
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing import resource_sharer
from pathlib import Path
from types import TracebackType

from hitdet_nni.errors import LostWorkerError, WriteError

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
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


@contextmanager
def translate_io_errors(folder: Path) -> Iterator[None]:
    """Tell accidents that no code of ours is near, such as a full disk under a library's log, as our errors.

    Args:
        folder: Named where the system does not say which file it could not write.

    Raises:
        WriteError: In place of the system's error where there is no room to write.
        LostWorkerError: In place of torch's error where a process that loads images has ended.
    """
    hooks = sys.unraisablehook, sys.excepthook
    sys.unraisablehook = partial(_tell_unless_lost_worker, sys.unraisablehook)
    sys.excepthook = partial(_tell_unless_torn_handover, sys.excepthook)  # loader processes are forked, and have it too
    try:
        yield
    except (OSError, EOFError, RuntimeError) as error:
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
