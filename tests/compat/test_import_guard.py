"""An OpenCV, or NNI's typeguard, that cannot be imported: one line with the way out, from every door."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hitdet_nni.compat import import_guard
from hitdet_nni.errors import InputError

ROOT = Path(__file__).parents[2]

HIDE = """
import importlib.machinery
real = importlib.machinery.PathFinder.find_spec
importlib.machinery.PathFinder.find_spec = lambda name, *rest: None if name == {name!r} else real(name, *rest)
"""

BROKEN = {
    "no library of X": (
        "cv2",
        'raise ImportError("libxcb.so.1: cannot open shared object file")',
        "(libxcb.so.1: cannot",
    ),
    "files of two": ("cv2", "", "(its files are incomplete)"),
    "a half of two": ("cv2", "import cv2.gapi.nothing", "(No module named 'cv2.gapi'"),
    "none": ("cv2", None, "(there is none)"),
    "an old typeguard": ("typeguard", "from ast import Strings", "(cannot import name 'Strings' from 'ast'"),
}
"""What is wrong -> the package, its text (``None``: it is hidden), and what is said of it."""


def run(folder, *command):
    environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture(params=BROKEN)
def broken(request, tmp_path):
    """A folder at the head of the path that breaks a package, and fragments of the line that is said of it."""
    package, text, said = BROKEN[request.param]
    if text is None:
        (tmp_path / "sitecustomize.py").write_text(HIDE.format(name=package))
    else:
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text(text)
    title, mend = {
        "cv2": ("OpenCV", f"{import_guard.PIP} install --no-deps opencv-python-headless"),
        "typeguard": ("NNI's typeguard", f"{import_guard.PIP} install --no-deps typeguard==4.6.1"),
    }[package]
    return tmp_path, f"{title} cannot be imported {said}", mend


def one_line(done, *fragments):
    assert done.returncode == 2, done.stderr[-3000:]
    assert done.stderr.count("\n") == 1, done.stderr[-3000:]
    for fragment in fragments:
        assert fragment in done.stderr


@pytest.mark.parametrize("broken", ["no library of X", "an old typeguard"], indirect=True)
def test_a_command_says_so_in_a_line(broken):
    folder, *fragments = broken
    one_line(run(folder, "-m", "hitdet_nni", "search", "--config", "tiny", "--out", "run"), "hitdet-nni: ", *fragments)


def test_make_search_says_so_before_it_starts_nni(broken):
    folder, *fragments = broken
    done = run(folder, "-m", "hitdet_nni", "experiment", str(ROOT / "experiments/search.yml"))
    one_line(done, *fragments)
    assert done.stdout == ""


COMMANDS = (
    "check-data --config tiny",
    "screen --config tiny --out run",
    "pretrain --config tiny --set pretrain.train_images=. --set pretrain.val_images=. --component-screening --out run",
    "retrain --architecture hit_detector --config tiny --out run",
    "train-baseline fpn_r50_2fc --config tiny --out run",
    "evaluate --architecture hit_detector --weights absent.pth --config tiny",
    "export-config hit_detector --config tiny -o hit.py",
    "study sparsity --config tiny --out run",
    "tables 2",
)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.slow
def test_no_command_ends_with_a_traceback(command, tmp_path):
    """One that does not need OpenCV works without."""
    (tmp_path / "cv2").mkdir()
    (tmp_path / "cv2/__init__.py").write_text(BROKEN["no library of X"][1])
    done = run(tmp_path, "-m", "hitdet_nni", *command.split())
    assert "Traceback" not in done.stderr
    if done.returncode != 0:
        one_line(done, "hitdet-nni: ")


def test_the_line_names_what_is_installed(monkeypatch):
    monkeypatch.setattr(import_guard, "installed", lambda names: ["opencv-python", "opencv-python-headless"])
    line = str(import_guard.BrokenPackageError("cv2", "why"))
    pip = f"{sys.executable} -m pip"
    assert line == (
        "OpenCV cannot be imported (why); installed: opencv-python, opencv-python-headless; mend it by: "
        f"{pip} uninstall --yes opencv-python opencv-python-headless; {pip} install --no-deps opencv-python-headless"
    )


def test_installed_distributions():
    assert import_guard.installed(["torch", "no-such-distribution"]) == ["torch"]
    assert import_guard.installed(import_guard.OPENCV_DISTRIBUTIONS) == ["opencv-python-headless"]


def test_it_is_bad_input_and_an_import_error():
    assert issubclass(import_guard.BrokenPackageError, InputError)
    assert issubclass(import_guard.BrokenPackageError, ImportError)


def test_an_import_that_was_caught_can_be_tried_again(tmp_path):
    """With the same line: OpenCV's own files would print the path and speak of a recursion."""
    (tmp_path / "cv2").mkdir()
    (tmp_path / "cv2/__init__.py").write_text(
        "import sys\nsys.OpenCV_LOADER = True\nsys.path.insert(0, '')\nimport nosuch\n"
    )
    code = """
import sys, hitdet_nni
before = list(sys.path)
for _ in range(2):
    try:
        import cv2
    except ImportError as error:
        print(error)
assert sys.path == before and not hasattr(sys, "OpenCV_LOADER")
"""
    done = run(tmp_path, "-c", code)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first == second
    assert "(No module named 'nosuch')" in first


def test_a_whole_opencv_is_left_as_it_is(tmp_path):
    code = (
        "import hitdet_nni, cv2, inspect; print(cv2.__file__, len(inspect.getsource(cv2)) > 99, cv2._native.__name__)"
    )
    done = run(tmp_path, "-c", code)
    file, *rest = done.stdout.split()
    assert Path(file).parts[-2:] == ("cv2", "__init__.py")
    assert rest == ["True", "cv2"]
