"""Ask pip which file of each pinned version it would install on each declared Python, and what that file depends on.

``python tests/repository/lock_record.py`` writes ``lock_record.json`` beside this file, which ``test_lock.py`` holds
``requirements.lock`` to without a network; with ``--check``, as ``make test-fresh`` runs it, it compares. Needs a pip
of 23.1 or newer, and a package index. What was released does not change, so neither does the record of a version.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.parse import unquote, urlparse

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LOCK = ROOT / "requirements.lock"
RECORD = Path(__file__).with_name("lock_record.json")


def declared_pythons() -> list[str]:
    """The Pythons that setup.py declares, such as ``"3.10"``."""
    lowest, above = re.search(r'python_requires=">=3\.(\d+),<3\.(\d+)"', (ROOT / "setup.py").read_text()).groups()
    return [f"3.{minor}" for minor in range(int(lowest), int(above))]


def environment(python: str) -> dict[str, str]:
    """Values of markers on this system with another Python, and no extra asked for."""
    return {"python_version": python, "python_full_version": f"{python}.0", "extra": ""}


def pins(python: str, text: str | None = None) -> list[Requirement]:
    """The lines of requirements.lock (or of a text) that hold for a Python."""
    lines = (line.partition(" #")[0].strip() for line in (text or LOCK.read_text()).splitlines())
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return [pin for pin in found if pin.marker is None or pin.marker.evaluate(environment(python))]


def name_of(pin: Requirement) -> str:
    """A pin without its marker, ``"addict==2.4.0"``."""
    return f"{pin.name}{pin.specifier}"


def asked(python: str) -> dict[str, tuple[str, str, list[str]]]:
    """Ask pip, by pin: the file, the Pythons that it is for, and its dependencies but for extras.

    Raises:
        subprocess.CalledProcessError: A pinned version has no wheel for that Python; pip says which.
    """
    wanted = {canonicalize_name(pin.name): name_of(pin) for pin in pins(python)}
    with tempfile.TemporaryDirectory() as folder:
        lock, report = Path(folder, "lock.txt"), Path(folder, "report.json")
        lock.write_text("\n".join(wanted.values()))
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--dry-run"]
        command += ["--ignore-installed", "--no-deps", "--only-binary=:all:", "--python-version", python]
        subprocess.run([*command, "--target", folder, "--report", report, "-r", lock], check=True)
        found = json.loads(report.read_text())["install"]
    answers = {}
    for item in found:
        file = Path(unquote(urlparse(item["download_info"]["url"]).path)).name
        metadata = item["metadata"]
        requires = [Requirement(text) for text in metadata.get("requires_dist", [])]
        needed = sorted(str(one) for one in requires if "extra" not in str(one.marker or ""))
        answers[wanted[canonicalize_name(metadata["name"])]] = (file, metadata.get("requires_python", ""), needed)
    return answers


def record() -> dict[str, dict[str, object]]:
    """All answers, by pin: ``files``, the Pythons that they are for (``python``), and ``requires``."""
    found: dict[str, dict[str, object]] = {}
    for python in declared_pythons():
        for pin, (file, pythons, requires) in asked(python).items():
            files = found.get(pin, {}).get("files", [])
            found[pin] = {"files": sorted({*files, file}), "python": pythons, "requires": requires}
    return dict(sorted(found.items()))


def as_text(found: dict[str, dict[str, object]]) -> str:
    """The record as it is stored, one pin a line."""
    return "{\n" + ",\n".join(f"{json.dumps(pin)}: {json.dumps(entry)}" for pin, entry in found.items()) + "\n}\n"


if __name__ == "__main__":
    text = as_text(record())
    if "--check" not in sys.argv:
        RECORD.write_text(text)
    elif text != RECORD.read_text():
        sys.exit(
            "pip says something else of requirements.lock than the record does: python tests/repository/lock_record.py"
        )
