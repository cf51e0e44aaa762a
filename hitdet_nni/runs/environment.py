"""What a run's result may depend on besides its settings: commit, command, machine, versions."""

from __future__ import annotations

import datetime
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hitdet_nni import __version__
from hitdet_nni.config.settings import Settings

PACKAGES = ("torch", "torchvision", "nni", "mmdet", "mmengine", "mmcv-lite", "pytorch-lightning", "numpy")


def describe_environment(settings: Settings) -> dict[str, Any]:
    """Return everything that a run's result may depend on besides its settings."""
    return {
        "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "seed": settings.seed,
        "git_commit": git_commit(),
        "command": sys.argv,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "versions": versions(),
        "seconds": {},
        "warnings": {},
    }


def versions() -> dict[str, str]:
    """Return the versions of this package, installed or not, and of the packages that results depend on."""
    return {"hitdet-nni": __version__, **{name: version(name) for name in PACKAGES}}


def git_commit() -> str | None:
    """Return the commit of the checkout that the package runs from, marked where it has changes; ``None`` elsewhere."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
