"""The two commands on a machine with nothing: a Debian root, made by debootstrap, and what it can do after `make`.

``make test-fresh`` (or ``python3 tests/repository/fresh_machine.py --suite sid --tests``) makes the root in a folder
of its own, installs there by the Makefile, runs an experiment and the stages by hand on the `tiny` config, breaks
OpenCV and mends it by the line that is said of it. It needs root, debootstrap, Debian's and Python's packages, 20 GB
of disk and about twenty minutes; where one of the first two is missing it says so and ends with 0. pip is set up there
as it is here.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CHECKOUT = "/opt/hitdet_nni"

MOUNT = (
    'mount -t proc proc "$0/proc" && mount --rbind /dev "$0/dev" && mount --bind /etc/resolv.conf "$0/etc/resolv.conf"'
)

COMMANDS = (
    "search --config tiny --out runs/mine",
    "retrain --architecture runs/mine/architecture.json --config tiny --out runs/mine-retrained",
    "evaluate --architecture runs/mine/architecture.json --config tiny "
    "--weights runs/mine-retrained/retrain/weights.pth",
    "report runs/mine",
    "export runs/mine-retrained --format onnx --out mine.onnx",
)


def echo(text: str) -> None:
    """Tell what is being done, at once."""
    print(f"fresh machine: {text}", flush=True)  # noqa: T201


def reason_to_skip() -> str | None:
    """Why this machine cannot make one, if so."""
    if os.geteuid() != 0:
        return "debootstrap and chroot need root"
    if shutil.which("debootstrap") is None:
        return "there is no debootstrap (Debian, Ubuntu: apt install debootstrap)"
    if subprocess.run(["unshare", "--mount", "true"], check=False, capture_output=True).returncode != 0:
        return "unshare --mount is not allowed here"
    return None


def pip_configuration() -> dict[str, str]:
    """What pip is told here by files and variables, as variables."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
    found = {}
    for line in listed.stdout.splitlines():
        match = re.fullmatch(r"(global|install|:env:)\.([\w-]+)=(.*)", line)
        if match:
            found["PIP_" + match[2].upper().replace("-", "_")] = " ".join(ast.literal_eval(match[3]).split())
    return found


class Machine:
    """A root in a folder; every command gets mounts of its own, which end with it.

    Args:
        folder: The folder of the root.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.variables = {"HOME": "/root", "LANG": "C.UTF-8", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
        self.variables |= {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}
        self.folders: list[str] = []

    def make(self, suite: str) -> None:
        """Install Debian: what is essential, Python without venv, and make."""
        packages = "ca-certificates,make,python3"
        self._quietly("debootstrap", "--variant=minbase", f"--include={packages}", suite, str(self.folder))
        pip = pip_configuration()
        for value in " ".join(pip.values()).split():
            path = Path(value.removeprefix("file://"))
            if not path.is_absolute() or not path.exists():
                continue
            if path.is_file():
                self._within(path.parent).mkdir(parents=True, exist_ok=True)
                shutil.copy(path, self._within(path))
            else:  # an index refers to files beside it
                path = path.parent if value.startswith("file://") else path
                self._within(path).mkdir(parents=True, exist_ok=True)
                self.folders.append(str(path))
        self.variables |= pip

    def _within(self, path: Path) -> Path:
        return self.folder / str(path).lstrip("/")

    @staticmethod
    def _quietly(*command: str) -> None:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        if done.returncode != 0:
            sys.exit(f"{shlex.join(command)} failed:\n{done.stdout[-3000:]}")

    def run(self, command: str, *, status: int = 0, within: str = CHECKOUT) -> str:
        """Run a shell command in the root.

        Args:
            command: The command.
            status: The exit status that it must have.
            within: The folder that it runs in.

        Returns:
            What it said, standard error last.

        Raises:
            SystemExit: It had another exit status.
        """
        started = time.monotonic()
        binds = "".join(f' && mount --bind {shlex.quote(one)} "$0"{shlex.quote(one)}' for one in self.folders)
        inside = f"cd {within} && {command}"
        script = (
            f'{MOUNT}{binds} && exec chroot "$0" /usr/bin/env -i {self._assignments()} bash -c {shlex.quote(inside)}'
        )
        full = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, str(self.folder)]
        done = subprocess.run(full, capture_output=True, text=True, check=False)
        if done.returncode != status:
            sys.exit(f"{command}: status {done.returncode}, not {status}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
        echo(f"{time.monotonic() - started:4.0f} s  {command}")
        return done.stdout + done.stderr

    def _assignments(self) -> str:
        return shlex.join(f"{name}={value}" for name, value in self.variables.items())

    def put(self) -> None:
        """Copy the files of this checkout, those included that are not committed yet."""
        place = self._within(Path(CHECKOUT))
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            check=True,
        )
        for name in filter(None, listed.stdout.decode().split("\0")):
            if (ROOT / name).is_file():
                (place / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, place / name)
        text = (ROOT / "experiments/search.yml").read_text()
        assert text.count("--config digits") == 1
        (place / "experiments/fresh.yml").write_text(text.replace("--config digits", "--config tiny"))


def expect(text: str, *fragments: str) -> None:
    """Stop unless all are in the text."""
    for fragment in fragments:
        if fragment not in text:
            sys.exit(f"{fragment!r} is not in:\n{text[-3000:]}")


def try_out(machine: Machine, tests: bool) -> None:
    """What a newcomer does, and what may stand in the way."""
    expect(machine.run("make install", status=2), "install: ", "lacks the module", "apt install python3.")
    update = "apt-get update -q -o Acquire::Check-Valid-Until=false"  # a mirror of an unstable suite may lag
    machine.run(f"{update} && apt-get install -qy --no-install-recommends python3-venv", within="/")
    said = machine.run("make search CONFIG=experiments/fresh.yml")
    expect(said, "GB to fetch", "1 of 3", "2 of 3", "3 of 3", "SUCCEEDED", "architecture.json")
    expect("" if machine.run("make install") else "nothing", "nothing")
    for command in COMMANDS:
        machine.run(f".venv/bin/hitdet-nni {command}")
    machine.run(".venv/bin/python tests/repository/lock_record.py --check")
    machine.run(".venv/bin/python -m pip install --no-deps opencv-python")
    again = f".venv/bin/hitdet-nni {COMMANDS[2]}"
    said = machine.run(again, status=2)
    expect(said, "OpenCV cannot be imported", "installed: opencv-python, opencv-python-headless; mend it by: ")
    expect("nothing" if said.count("\n") == 1 else said, "nothing")
    machine.run(said.partition("mend it by: ")[2].strip())
    machine.run(again)
    if tests:
        machine.run("make test")


def main() -> None:
    """Make the machine, try it out, remove it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", default="trixie", help="of Debian (default: trixie, which is Debian 13)")
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp"), help="where it is made (default: %(default)s)")
    parser.add_argument("--tests", action="store_true", help="run `make test` there, too")
    options = parser.parse_args()
    reason = reason_to_skip()
    if reason is not None:
        echo(f"skipped: {reason}")
        return
    with tempfile.TemporaryDirectory(prefix="fresh-", dir=options.folder) as folder:
        machine = Machine(Path(folder, "root"))
        echo(f"Debian {options.suite} in {machine.folder}")
        machine.make(options.suite)
        machine.put()
        try_out(machine, options.tests)
    echo("everything works")


if __name__ == "__main__":
    main()
