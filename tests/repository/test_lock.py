"""`requirements.lock` for every declared Python, by what pip said of its versions; what of it is installed here."""

import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path

import lock_record
import pytest
from packaging import tags
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name, parse_wheel_filename

RECORD = json.loads(lock_record.RECORD.read_text())
PYTHONS = lock_record.declared_pythons()
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in range(41, 4, -1)]
PLATFORMS += [f"manylinux{old}_x86_64" for old in ("2014", "2010", "1")]
"""Of Debian 13, whose C library is 2.41."""

NOT_FOLLOWED = {("3.14", "nni: typeguard<4.1.3,>=3.0.0 (have 4.6.1)")}
"""What the file departs from on purpose: no version that NNI asks for can be imported on 3.14."""

BROUGHT_BY_TORCH = re.compile(r"(nvidia|cuda)-.*|triton")
"""Left out of the file: torch names their versions exactly, and they differ from system to system."""


def test_declared_pythons():
    assert PYTHONS == ["3.10", "3.11", "3.12", "3.13", "3.14"]


def test_record_is_of_the_lock_as_it_stands():
    pinned = {lock_record.name_of(pin) for python in PYTHONS for pin in lock_record.pins(python)}
    assert pinned == set(RECORD), "run: python tests/repository/lock_record.py"


def without_a_file(python, text=None):
    """Pins of which pip knows no file that this Python can install."""
    minor = int(python.partition(".")[2])
    cpython = set(tags.cpython_tags((3, minor), platforms=PLATFORMS))
    installable = cpython | set(tags.compatible_tags((3, minor), f"cp3{minor}", platforms=PLATFORMS))
    lacking = []
    for pin in lock_record.pins(python, text):
        entry = RECORD[lock_record.name_of(pin)]
        fits = any(parse_wheel_filename(file)[3] & installable for file in entry["files"])
        if not fits or f"{python}.0" not in SpecifierSet(entry["python"]):
            lacking.append(pin.name)
    return lacking


@pytest.mark.parametrize("python", PYTHONS)
def test_every_pinned_version_has_a_wheel(python):
    assert len(lock_record.pins(python)) > 90
    assert without_a_file(python) == []


def test_a_version_without_a_wheel_is_found():
    assert without_a_file("3.14", "numpy==2.2.6\nnumpy==2.4.6\nscipy==1.15.3\n") == ["numpy", "scipy"]
    assert without_a_file("3.10", "matplotlib==3.11.2\nwebsockets==17.4\n") == ["matplotlib", "websockets"]


def unmet(python, text=None):
    """Dependencies that the file does not meet, all but torch's being installed without theirs."""
    versions = {canonicalize_name(pin.name): str(pin.specifier)[2:] for pin in lock_record.pins(python, text)}
    found = set()
    for pin in lock_record.pins(python, text):
        for line in RECORD[lock_record.name_of(pin)]["requires"]:
            needed = Requirement(line)
            if needed.marker is not None and not needed.marker.evaluate(lock_record.environment(python)):
                continue
            name = canonicalize_name(needed.name)
            if pin.name == "torch" and BROUGHT_BY_TORCH.fullmatch(name):
                continue
            version = versions.get(name.replace("opencv-python", "opencv-python-headless"))
            if version is None or version not in needed.specifier:
                found.add(f"{pin.name}: {line} (have {version})")
    return found


@pytest.mark.parametrize("python", PYTHONS)
def test_the_lock_is_complete(python):
    assert {(python, line) for line in unmet(python)} == {one for one in NOT_FOLLOWED if one[0] == python}


def test_a_missing_dependency_is_found():
    assert unmet("3.13", "Jinja2==3.1.6\n") == {"Jinja2: MarkupSafe>=2.0 (have None)"}


@pytest.mark.parametrize("python", PYTHONS)
def test_ranges_of_setup_py_admit_the_lock(python):
    text = (lock_record.ROOT / "setup.py").read_text()
    ranges = [Requirement(line) for line in re.findall(r'^        "([\w-]+(?:[<>=!].*?)?)",', text, re.MULTILINE)]
    ranges = [one for one in ranges if one.specifier]
    assert len(ranges) > 15
    versions = {canonicalize_name(pin.name): str(pin.specifier)[2:] for pin in lock_record.pins(python)}
    assert [str(one) for one in ranges if versions.get(canonicalize_name(one.name), "0") not in one.specifier] == []


# ------------------------------------------------------------------------------------------------------------ OpenCV


def test_one_distribution_brings_cv2():
    """In the file and here. mmengine and mmcv-lite ask for another one by name."""
    assert [pin.name for pin in lock_record.pins("3.13") if "opencv" in pin.name] == ["opencv-python-headless"]
    assert set(importlib.metadata.packages_distributions()["cv2"]) == {"opencv-python-headless"}


def test_opencv_needs_no_library_of_a_desktop():
    code = "import cv2; print(*{line.split()[-1] for line in open('/proc/self/maps') if '.so' in line}, sep='\\n')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names = [Path(file).name for file in done.stdout.split()]
    assert any(name.startswith("cv2.") for name in names)
    assert [name for name in names if re.match(r"lib(X|xcb|GL|EGL|Qt|gtk|wayland)", name)] == []
