"""Set up ``.venv`` for ``make``: check first, then install what ``requirements.lock`` names, and this package.

``python3 install.py`` needs nothing but a Python, and runs on one as old as 3.6, which it then refuses in a line. A
second run finds the environment finished and does nothing; an unfinished one, and one of another
``requirements.lock``, is made again from nothing: ``.venv`` belongs to ``make``.

Exit status: 0 done, 2 something to mend first (one line on standard error), 1 the installation failed (one line, too).
"""

import contextlib
import fcntl
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
FINISHED = VENV / "installed"
LOCK = ROOT / "requirements.lock"
SETUP = ROOT / "setup.py"

FETCHED_GB = 3.5
DISK_GB = 9.5
"""Measured: what an installation fetches, and the disk it takes until it is done, what it fetches included."""


class InstallError(Exception):
    """What keeps the installation from its end: one line, with the way out.

    Args:
        text: The line.
        status: Exit status of the process.
    """

    def __init__(self, text: str, status: int = 2) -> None:
        super().__init__(" ".join(text.split()))
        self.status = status


def echo(text: str) -> None:
    """Tell what is being done, at once."""
    sys.stdout.write("install: " + text + "\n")
    sys.stdout.flush()


# -------------------------------------------------------------------------------------------------- before anything


def check_python() -> None:
    """The running Python is one that setup.py declares.

    Raises:
        InstallError: It is too old, too new, or not the ordinary CPython that the locked packages are built for.
    """
    bounds = re.search(r'python_requires=">=3\.(\d+),<3\.(\d+)"', SETUP.read_text(encoding="utf-8"))
    assert bounds is not None
    lowest, above = int(bounds[1]), int(bounds[2])
    allowed = f"Python 3.{lowest} to 3.{above - 1} is needed: name one, such as make PYTHON=python3.{above - 2}"
    running = "{}.{}.{}".format(*sys.version_info)
    if not (3, lowest) <= sys.version_info[:2] < (3, above):
        raise InstallError(f"{sys.executable} is Python {running}; {allowed}")
    if sys.implementation.name != "cpython" or sysconfig.get_config_var("Py_GIL_DISABLED"):
        kind = "a free-threaded build" if sys.implementation.name == "cpython" else sys.implementation.name
        raise InstallError(f"{sys.executable} is {kind}, for which torch is not to be had; an ordinary {allowed}")


def check_venv() -> None:
    """Virtual environments can be made. Debian keeps a part of what that takes in a package of its own.

    Raises:
        InstallError: ``venv`` or ``ensurepip`` is missing.
    """
    missing = [name for name in ("venv", "ensurepip") if importlib.util.find_spec(name) is None]
    if missing:
        package = "python{}.{}-venv".format(*sys.version_info)
        raise InstallError(
            f"{sys.executable} lacks the module {missing[0]}: install it (Debian, Ubuntu: apt install {package})"
        )


def check_disk() -> None:
    """The disk has room, that of a ``.venv`` to be made again included.

    Raises:
        InstallError: It has not.
    """
    free = shutil.disk_usage(str(ROOT)).free / 1e9 + gigabytes(VENV)
    if free < DISK_GB:
        raise InstallError(
            f"{ROOT}: {free:.1f} GB of disk are free, and the installation takes {DISK_GB:g} GB: make room, "
            "or move this folder to another disk"
        )


def check_write_access() -> None:
    """This folder can be written.

    Raises:
        InstallError: It cannot.
    """
    try:
        with tempfile.TemporaryFile(dir=str(ROOT)):
            pass
    except OSError as error:
        raise InstallError(
            f"{ROOT}: cannot be written ({error.strerror}): change its owner, or copy it to a folder of yours"
        ) from None


# ------------------------------------------------------------------------------------------------------ the work


def digests() -> str:
    """What a finished environment was made from: ``requirements.lock``, then ``setup.py``, one line each."""
    return "".join(hashlib.sha256(file.read_bytes()).hexdigest() + "\n" for file in (LOCK, SETUP))


def finished() -> str:
    """What :func:`digests` was when the environment was finished; an empty text where there is none that runs."""
    return FINISHED.read_text() if FINISHED.exists() and PYTHON.exists() else ""


@contextlib.contextmanager
def alone() -> "Iterator[int]":
    """Keep a second ``make`` waiting until this one has installed, however that ends.

    Yields:
        What programs started here must inherit: should this process be killed, they go on for a while.
    """
    with LOCK.open("r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            echo("another make is installing here; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def pip(held: int, *arguments: str) -> None:
    """Install into the environment; on a terminal, with a line that tells how much is there.

    pip unpacks below ``.venv``, since ``/tmp`` may be small: in memory, on many systems.

    Args:
        held: What :func:`alone` gave.
        arguments: Of ``pip install``.

    Raises:
        InstallError: pip failed; the line is what pip said last.
    """
    scratch = VENV / "scratch"
    shutil.rmtree(str(scratch), ignore_errors=True)
    scratch.mkdir()
    command = [str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments]
    environment = dict(os.environ, TMPDIR=str(scratch))
    process = subprocess.Popen(command, cwd=str(ROOT), env=environment, stderr=subprocess.PIPE, pass_fds=(held,))
    try:
        while True:
            try:
                said = process.communicate(timeout=2)[1].decode("utf-8", "replace")
                break
            except subprocess.TimeoutExpired:
                if sys.stdout.isatty():
                    size = gigabytes(VENV)
                    sys.stdout.write(f"\r  {size:.1f} GB in .venv, {time.monotonic() - STARTED:.0f} s ")
                    sys.stdout.flush()
    finally:
        process.kill()
        if sys.stdout.isatty():
            sys.stdout.write("\r" + 40 * " " + "\r")
    if process.returncode != 0:
        lines = [line for line in said.splitlines() if line.strip()] or [f"exit status {process.returncode}"]
        errors = [line for line in lines if line.startswith("ERROR: ")]
        raise InstallError(explained("pip: " + (errors or lines)[-1]), status=1)
    shutil.rmtree(str(scratch))


def explained(said: str) -> str:
    """What a program said, with the way out where that is known."""
    way_out = "run the same command again"
    if "No space left" in said or shutil.disk_usage(str(ROOT)).free < 20e6:  # venv does not say so
        way_out = f"the disk is full: the installation takes {DISK_GB:g} GB; make room, then {way_out}"
    elif "No matching distribution" in said:
        way_out = "its package index cannot be reached (pip config list), or has no such file for this system"
    return f"{said.strip()}; {way_out}"


def gigabytes(folder: Path) -> float:
    """The size of the files of a folder, which may change meanwhile."""
    total = 0
    for place, _, names in os.walk(str(folder)):
        for name in names:
            with contextlib.suppress(OSError):
                total += Path(place, name).lstat().st_size
    return total / 1e9


def make_environment(held: int) -> None:
    """Make ``.venv`` from nothing and install the locked packages.

    Args:
        held: What :func:`alone` gave.

    Raises:
        InstallError: It failed.
    """
    if VENV.is_symlink() or VENV.is_file():
        raise InstallError(f"{VENV} is no folder; remove it: make puts its environment there")
    if VENV.exists():
        why = "is of another requirements.lock" if finished() else "is unfinished, or its Python is gone"
        echo(f".venv {why}, and is made again")
        shutil.rmtree(str(VENV))
    version = "{}.{}.{}".format(*sys.version_info)
    echo(f"Python {version} into .venv; about {FETCHED_GB:g} GB to fetch, {DISK_GB:g} GB of disk until it is done")
    if shutil.disk_usage(str(ROOT)).free / 1e9 < DISK_GB + FETCHED_GB:
        echo("pip keeps no copies of what it fetches: the disk has no room for them")
        os.environ["PIP_NO_CACHE_DIR"] = "1"
    command = [sys.executable, "-m", "venv", str(VENV)]
    made = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, pass_fds=(held,))
    if made.returncode != 0:
        raise InstallError(explained("python -m venv: " + made.stdout.decode("utf-8", "replace")[-400:]), status=1)
    echo("1 of 3: torch, torchvision and the libraries that they bring for GPUs, 3 GB")
    pip(held, "--constraint", str(LOCK), "torch", "torchvision")
    # Without dependencies: the file has them all, and those of mmengine and mmcv-lite bring an OpenCV for desktops.
    echo("2 of 3: the other packages of requirements.lock, 0.5 GB")
    pip(held, "--no-deps", "--requirement", str(LOCK))


def install() -> None:
    """Check and install, unless that has been done.

    Raises:
        InstallError: Something is to be mended first, or the installation failed.
    """
    wanted = digests()
    if finished() == wanted:
        return
    check_write_access()
    with alone() as held:
        there = finished()
        if there == wanted:  # the other make has done it
            return
        if there.split("\n")[0] != wanted.split("\n")[0]:
            for check in (check_python, check_venv, check_disk):
                check()
            make_environment(held)
        echo("3 of 3: hitdet-nni itself")
        # By a path, not by a finder: in the folder around the clone, whose name is the package's, Python would
        # otherwise take the clone itself for a package without content.
        pip(held, "--no-deps", "--no-build-isolation", "--config-settings=editable_mode=compat", "--editable", ".")
        FINISHED.write_text(wanted)
    echo(f"done in {time.monotonic() - STARTED:.0f} s; {gigabytes(VENV):.1f} GB in .venv")


def main() -> int:
    """Install; what goes wrong is told in one line."""
    try:
        install()
    except InstallError as error:
        sys.stderr.write(f"install: {error}\n")
        return error.status
    except OSError as error:
        sys.stderr.write(f"install: {error.filename or VENV}: {error.strerror}; mend that, then run it again\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("install: interrupted; the next run begins again\n")
        return 130
    return 0


STARTED = time.monotonic()

if __name__ == "__main__":
    sys.exit(main())
