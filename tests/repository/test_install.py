"""The installation of `make`, by the real pip on three small packages of this test's own, without a network."""

import base64
import hashlib
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

BACKEND = """
import shutil
import sys


def build_editable(folder, config_settings=None, metadata_directory=None):
    shutil.copy("wheels/ours-1.0-py3-none-any.whl", folder)
    return "ours-1.0-py3-none-any.whl"
"""

PROJECT = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'


def wheel(folder, name, requires=(), size=0):
    """A wheel with one module of some size, which needs what is given."""
    about = f"{name}-1.0.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n" + "".join(
        f"Requires-Dist: {r}\n" for r in requires
    )
    files = {
        f"{name}.py": size * "\n",
        f"{about}/METADATA": metadata,
        f"{about}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    lines = []
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as archive:
        for path, text in files.items():
            archive.writestr(path, text)
            digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
            lines.append(f"{path},sha256={digest},{len(text)}")
        archive.writestr(f"{about}/RECORD", "\n".join([*lines, f"{about}/RECORD,,", ""]))


def checkout(folder, disk="0.1"):
    """What `make` needs of a checkout, with wheels of our own in place of the real packages."""
    (folder / "wheels").mkdir(parents=True)
    for name, requires in (
        ("torch", ["brought"]),
        ("torchvision", []),
        ("brought", []),
        ("other", ["absent"]),
        ("ours", []),
    ):
        wheel(folder / "wheels", name, requires)
    for name in ("Makefile", "setup.py"):
        shutil.copy(ROOT / name, folder)
    text = (ROOT / "install.py").read_text()
    assert text.count("\nDISK_GB = 9.5\n") == 1
    (folder / "install.py").write_text(text.replace("\nDISK_GB = 9.5\n", f"\nDISK_GB = {disk}\n"))
    (folder / "requirements.lock").write_text("torch==1.0\ntorchvision==1.0\nother==1.0\n")
    (folder / "backend.py").write_text(BACKEND)
    (folder / "pyproject.toml").write_text(PROJECT)
    return folder


def environment(folder, **more):
    """No index, no configuration of the machine's pip."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "MAKE"))}
    return {
        **kept,
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(folder / "wheels"),
        **more,
    }


def make(folder, *words, before=(), **more):
    """Run `make install`: its exit status, its output, and the lines on standard error that are not make's own."""
    command = [*before, "make", "install", f"PYTHON={sys.executable}", *words]
    done = subprocess.run(
        command, cwd=folder, env=environment(folder, **more), capture_output=True, text=True, check=False
    )
    errors = [line for line in done.stderr.splitlines() if not line.startswith("make: ***")]
    return done.returncode, done.stdout, errors


def refused(answer, *fragments):
    status, _, errors = answer
    assert status == 2
    assert len(errors) == 1, errors
    for fragment in ("install: ", *fragments):
        assert fragment in errors[0]


def has(folder, *names):
    code = f"import {', '.join(names)}"
    return subprocess.run([folder / ".venv/bin/python", "-c", code], check=False, capture_output=True).returncode == 0


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A checkout whose installation was killed in the middle, then done by two at once; what they said."""
    folder = checkout(tmp_path_factory.mktemp("install"))
    command = [sys.executable, "install.py"]
    process = subprocess.Popen(command, cwd=folder, env=environment(folder), stdout=subprocess.PIPE)
    patience = time.monotonic() + 60
    while not (folder / ".venv/pyvenv.cfg").exists():
        assert process.poll() is None
        assert time.monotonic() < patience
        time.sleep(0.02)
    process.kill()  # and not what it has started
    process.communicate()
    assert not (folder / ".venv/installed").exists()
    folder.joinpath(".venv/left_over").touch()
    both = [
        subprocess.Popen(command, cwd=folder, env=environment(folder), stdout=subprocess.PIPE, text=True) for _ in "12"
    ]
    outputs = sorted((process.communicate(timeout=120)[0] for process in both), key=len)
    assert [process.returncode for process in both] == [0, 0]
    return folder, outputs


def test_a_killed_installation_is_made_again(installed):
    folder, (_, output) = installed
    assert "install: .venv is unfinished, or its Python is gone, and is made again" in output
    assert not (folder / ".venv/left_over").exists()
    assert has(folder, "torch", "torchvision", "brought", "other", "ours")
    assert not (folder / ".venv/scratch").exists()
    assert "about 3.5 GB to fetch" in output
    for step in ("1 of 3: torch", "2 of 3: the other", "3 of 3: hitdet-nni"):
        assert step in output


def test_a_second_make_waits_for_the_first_and_both_for_what_a_killed_one_left(installed):
    waits = "install: another make is installing here; waiting for it\n"
    short, long = installed[1]
    assert short == waits
    assert long.startswith(waits)


def test_a_second_run_installs_nothing(installed):
    folder, _ = installed
    before = (folder / ".venv/installed").stat().st_mtime_ns
    os.utime(folder / "requirements.lock")  # as a checkout of another commit does
    assert make(folder, PIP_FIND_LINKS="/nowhere") == (0, "", [])
    assert (folder / ".venv/installed").stat().st_mtime_ns == before


def test_another_setup_py_installs_this_package_again_and_no_other(installed):
    folder, _ = installed
    with (folder / "setup.py").open("a") as file:
        file.write("\n")
    status, output, errors = make(folder)
    assert (status, errors) == (0, [])
    assert "3 of 3" in output
    assert "1 of 3" not in output


def test_another_lock_and_a_failing_pip(installed):
    folder, _ = installed
    (folder / "requirements.lock").write_text("torch==1.0\ntorchvision==1.0\nnosuch==2.0\n")
    status, output, errors = make(folder)
    assert "is of another requirements.lock, and is made again" in output
    assert status == 2  # make's own, for any failure
    assert len(errors) == 1
    assert "install: pip: ERROR: No matching distribution found for nosuch==2.0" in errors[0]
    assert "pip config list" in errors[0]
    assert not (folder / ".venv/installed").exists()


def test_pythons_that_are_not_declared(tmp_path):
    folder = checkout(tmp_path)
    program = "import runpy, sys; sys.version_info = {}; runpy.run_path('install.py', run_name='__main__')"
    for version in ((3, 9, 18), (3, 15, 0)):
        command = [sys.executable, "-c", program.format(version)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        line = f"install: {sys.executable} is Python {'.'.join(map(str, version))}; Python 3.10 to 3.14 is needed: "
        assert done.stderr.startswith(line)
        assert done.stderr.count("\n") == 1
        assert done.returncode == 2
    assert not (folder / ".venv").exists()
    refused(make(folder, "PYTHON=nosuchpython"), "there is no nosuchpython", "apt install python3-venv")


@pytest.mark.parametrize("module", ["venv", "ensurepip"])
def test_a_missing_venv(module, tmp_path):
    folder = checkout(tmp_path / "checkout")
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules[{module!r}] = None\n")
    version = "{}.{}".format(*sys.version_info)
    refused(
        make(folder, PYTHONPATH=str(tmp_path)), f"lacks the module {module}: ", f"apt install python{version}-venv)"
    )
    assert not (folder / ".venv").exists()


def test_too_little_disk(tmp_path):
    folder = checkout(tmp_path, disk="1e6")
    refused(make(folder), f"{folder}: ", "GB of disk are free, and the installation takes 1e+06 GB: make room")
    assert not (folder / ".venv").exists()


def test_a_place_that_is_no_folder(tmp_path):
    folder = checkout(tmp_path)
    (folder / ".venv").symlink_to(tmp_path / "wheels")
    refused(make(folder), f"{folder}/.venv is no folder")
    assert list((tmp_path / "wheels").iterdir())


@pytest.fixture
def small_disk():
    """A command that puts a command on a small disk, which holds the checkout; it goes with the command."""
    if os.geteuid() != 0 or subprocess.run(["unshare", "--mount", "true"], check=False).returncode != 0:
        assert "HITDET_REQUIRE_MOUNTS" not in os.environ
        pytest.skip("mounts a file system, which root alone can")

    def command(folder, options, size="8m"):
        script = (
            f"cp -r {folder} {folder}-copy && mount -t tmpfs -o size={size} none {folder} && "
            f'cp -r {folder}-copy/. {folder} && {options} cd {folder} && exec "$@"'
        )
        return ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh"]

    return command


def test_a_small_disk(small_disk, tmp_path):
    folder = checkout(tmp_path / "checkout")
    refused(make(folder, before=small_disk(folder, "")), "0.0 GB of disk are free")


@pytest.mark.parametrize("size", [pytest.param("8m", marks=pytest.mark.slow), "60m"])
def test_a_disk_that_fills_up_meanwhile(size, small_disk, tmp_path):
    """While the environment is made, and while pip installs."""
    folder = checkout(tmp_path / "checkout", disk="0")
    wheel(folder / "wheels", "torch", size=60_000_000)
    status, output, errors = make(folder, before=small_disk(folder, "", size))
    assert status == 2  # make's own, for any failure
    assert ("1 of 3" in output) == (size == "60m")
    assert "install: pip keeps no copies of what it fetches" in output
    assert len(errors) == 1, errors
    assert "the disk is full: the installation takes 0 GB; make room, then run the same command again" in errors[0]


def test_a_folder_that_cannot_be_written(small_disk, tmp_path):
    folder = checkout(tmp_path / "checkout")
    answer = make(folder, before=small_disk(folder, f"mount -o remount,ro {folder} &&"))
    refused(answer, f"{folder}: cannot be written (Read-only file system)", "change its owner")


def test_the_package_is_found_beside_a_folder_of_its_name(tmp_path):
    """As in the folder that a clone lies in; run in the environment that `make` has installed."""
    (tmp_path / "hitdet_nni").mkdir()
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", "import hitdet_nni; print(hitdet_nni.__version__, hitdet_nni.load.__name__)"]
    done = subprocess.run(command, cwd=tmp_path, env=kept, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()[-1:]) == (0, ["load"]), done.stderr
