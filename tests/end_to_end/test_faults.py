"""Accidents on the way: each ends in one line and a status that is not zero, spoils nothing, and --resume mends it.

Disks really are full, folders really read-only and processes really killed; what is replaced is only the moment at
which that happens. Elsewhere: damaged checkpoints and losses that are not finite in test_search_resume and
test_retrain_resume, a kill of the whole command in test_kill, random damage to every file that is read in test_fuzz.
"""

from __future__ import annotations

import itertools
import json
import logging
import multiprocessing
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from report_runs import write_run

from hitdet_nni import cli
from hitdet_nni.config.settings import load_settings
from hitdet_nni.data.datasets.detection import CachedDataset, build_dataset
from hitdet_nni.data.images.reading import ImageError, cut_short
from hitdet_nni.data.loaders import detection_loader
from hitdet_nni.engine.checkpoints import CheckpointFolder
from hitdet_nni.engine.process import translate_io_errors
from hitdet_nni.engine.weights_file import save_weights
from hitdet_nni.errors import LostWorkerError, StoppedError, WriteError
from hitdet_nni.io import append_epoch, locked, whole_file, write_csv, write_json, write_text
from hitdet_nni.pipeline import retraining, screening
from hitdet_nni.pipeline import search as searching
from hitdet_nni.runs import tables
from hitdet_nni.runs.run_directory import RunDirectory
from hitdet_nni.training import retrain as retrain_module

MB = 1 << 20
PATIENCE = 120
"""Seconds after which a command hangs."""


# ------------------------------------------------------------------------------------------------------------ commands


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A config of the smallest search and retraining, a search space, and images in files of their own."""
    folder = tmp_path_factory.mktemp("faults")
    assert cli.main(f"data digits --out {folder / 'digits'} --train 12 --val 2 --size 64".split()) == 0
    paths = {
        f"{split}_{kind}": str(path)
        for split in ("train", "val")
        for kind, path in (
            ("ann", folder / "digits" / "annotations" / f"instances_{split}.json"),
            ("images", folder / "digits" / split),
        )
    }
    settings = {
        "extends": "tiny",
        "data": {"builtin": None, "batch_size": 2, "cache_mb": 0, "workers": 0, **paths},
        "skeleton": {"input_size": [64, 64], "head_blocks": 1, "proposals_train": 20, "proposals_test": 20},
        "search": {"epochs": 2, "warmup_epochs": 1},
        "retrain": {"epochs": 2, "warmup_iterations": 0},
        "checkpoint": {"every_steps": 1},
    }
    (folder / "config.yml").write_text(yaml.safe_dump(settings))
    space = {"backbone": ["sep_k3_d1", "conv_k3_d1"], "neck": ["sep_k3_d1"], "head": ["sep_k3_d1"]}
    (folder / "space.yml").write_text(yaml.safe_dump(space))
    return folder


def search_command(files, out, *options):
    arguments = ("search", "--config", files / "config.yml", "--sub-spaces", files / "space.yml", "--out", out)
    return [str(argument) for argument in (*arguments, *options)]


def retrain_command(files, out, *options):
    found = files / "peace" / "architecture.json"
    arguments = ("retrain", "--architecture", found, "--config", files / "config.yml", "--out", out, *options)
    return [str(argument) for argument in arguments]


COMMANDS = {"search": search_command, "retrain": retrain_command}


@contextmanager
def patience():
    """Fail where the body hangs."""

    def hangs(*_):
        raise AssertionError(f"no end after {PATIENCE} s")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(PATIENCE)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture
def run(capsys):
    """Run a command; its status and the lines on standard error."""

    def call(arguments):
        with patience():
            status = cli.main(arguments)
        return status, capsys.readouterr().err.splitlines()

    return call


@pytest.fixture(scope="module")
def peace(files):
    """The search and the retraining that nothing disturbs."""
    assert cli.main(search_command(files, files / "peace")) == 0
    assert cli.main(retrain_command(files, files / "retrained")) == 0
    return {"search": results(files / "peace"), "retrain": results(files / "retrained")}


def results(run):
    """What must be equal bit by bit; not the wall time, which is a column of its own."""
    weights = next(iter(run.glob("*/*.pth")))
    state = torch.load(weights, weights_only=True)["state_dict"]
    found = {name: value.tolist() for name, value in state.items() if torch.is_tensor(value)}
    found["sample"] = json.loads((run / "architecture.json").read_text())["sample"]
    if (run / "metrics.json").exists():
        found["metrics"] = json.loads((run / "metrics.json").read_text())["metrics"]
    if (run / "search" / "alphas.csv").exists():
        found["alphas"] = (run / "search" / "alphas.csv").read_bytes()
        metrics = (run / "search" / "metrics.csv").read_text().splitlines()
        found["epochs"] = [line.rpartition(",")[0] for line in metrics]
    return found


def contents(folder):
    """Every file below a folder with its content, but the log, which grows by lines."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.suffix != ".log"}


def hidden(folder):
    """Files that are half written."""
    return [path for path in folder.rglob(".*") if path.is_file()]


class Moment:
    """Lets an accident happen just before some call of a function."""

    def __init__(self, monkeypatch, home, name, accident, call=1):
        self.happened = False
        real, calls = getattr(home, name), 0

        def calling(*arguments, **keywords):
            nonlocal calls
            calls += 1
            if calls == call:
                accident()
                self.happened = True
            return real(*arguments, **keywords)

        monkeypatch.setattr(home, name, calling)


# ----------------------------------------------------------------------------------------------------------- full disk


def mounted(*arguments):
    """Whether something could be mounted."""
    if shutil.which("mount") is None:
        return False
    return subprocess.run(["mount", *arguments], capture_output=True, check=False).returncode == 0


class Mount:
    """A file system of 64 MB that a test can fill; needs the right to mount."""

    reason = "No space left on device"

    def __init__(self, folder):
        self.folder = folder
        folder.mkdir()
        if not mounted("-t", "tmpfs", "-o", "size=64m", "none", str(folder)):
            folder.rmdir()
            pytest.skip("a file system cannot be mounted here")

    def fill(self):
        with (self.folder / "ballast").open("wb", buffering=0) as ballast:
            for size in (MB, 1 << 12, 1):
                try:
                    while ballast.write(bytes(size)):
                        pass
                except OSError:
                    continue

    def make_room(self):
        (self.folder / "ballast").unlink()

    def close(self):
        subprocess.run(["umount", "--lazy", str(self.folder)], check=True)


class Limit:
    """No file may be longer than a limit: what a full disk is to a process without the right to mount."""

    reason = "File too large"

    def __init__(self, folder):
        self.folder = folder
        folder.mkdir()
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(self):
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, self.before[1]))

    def make_room(self):
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)

    close = make_room


@pytest.fixture(params=[Mount, Limit])
def disk(request, tmp_path):
    made = request.param(tmp_path / "disk")
    yield made
    made.close()


WRITERS = {
    "text": lambda path: write_text(path, "x" * 5000),
    "json": lambda path: write_json(path, ["x"] * 5000),
    "csv": lambda path: write_csv(path, ["a"], [{"a": "x" * 5000}]),
    "weights": lambda path: save_weights(torch.nn.Linear(100, 100), path),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_file_that_does_not_fit_is_as_it_was(disk, kind):
    path = disk.folder / "file"
    path.write_text("before")
    disk.fill()
    with pytest.raises(WriteError) as caught:
        WRITERS[kind](path)
    disk.make_room()
    assert str(caught.value).startswith(f"{path}: cannot be written ({disk.reason}); ")
    assert "\n" not in str(caught.value)
    assert path.read_text() == "before"
    assert not hidden(disk.folder)
    WRITERS[kind](path)
    assert path.read_text(errors="replace") != "before"


def test_a_table_that_cannot_grow_is_as_it_was(disk):
    path = disk.folder / "table.csv"
    rows = [{"epoch": 0, "alpha": 0.1 + n} for n in range(3)]
    append_epoch(path, 0, rows)
    before = path.read_bytes()
    disk.fill()
    with pytest.raises(WriteError, match=disk.reason):
        append_epoch(path, 1, [{"epoch": 1, "alpha": n / 3} for n in range(5000)])
    disk.make_room()
    assert path.read_bytes() == before


def test_a_checkpoint_that_does_not_fit_leaves_the_others(disk):
    folder = CheckpointFolder(disk.folder / "checkpoints")
    files = [folder.save(step, {"step": step, "weights": torch.zeros(10_000)}) for step in (1, 2)]
    disk.fill()
    with pytest.raises(WriteError, match=disk.reason) as caught:
        folder.save(3, {"step": 3, "weights": torch.zeros(10_000)})
    disk.make_room()
    assert str(folder.path) in str(caught.value)
    assert folder.files() == files
    assert folder.load()["step"] == 2
    assert not hidden(disk.folder)


MOMENTS = {
    "first checkpoint": ("search", CheckpointFolder, "save", 1, "checkpoints"),
    "later checkpoint": ("search", CheckpointFolder, "save", 4, "checkpoints"),
    "alphas": ("search", tables, "append_epoch", 1, "alphas.csv"),
    "metrics": ("search", tables, "append_epoch", 2, "metrics.csv"),
    "supernet": ("search", searching, "save_weights", 1, "supernet.pth"),
    "architecture": ("search", searching, "save_architecture", 1, "architecture.json"),
    "checkpoint of a retraining": ("retrain", CheckpointFolder, "save", 4, "checkpoints"),
    "begin of a retraining": ("retrain", retrain_module, "Runner", 1, "retrain"),
    "weights": ("retrain", retrain_module, "save_weights", 1, "weights.pth"),
    "result": ("retrain", retraining, "write_json", 1, "metrics.json"),
}
DEFAULT_MOMENTS = {"later checkpoint", "alphas", "begin of a retraining"}


@pytest.mark.parametrize(
    "moment", [name if name in DEFAULT_MOMENTS else pytest.param(name, marks=pytest.mark.slow) for name in MOMENTS]
)
def test_a_command_on_a_full_disk_goes_on_when_there_is_room(files, peace, tmp_path, run, monkeypatch, moment):
    command, home, name, call, named = MOMENTS[moment]
    try:
        disk = Mount(tmp_path / "disk")
    except pytest.skip.Exception:
        if command == "retrain":  # the logs of earlier retrainings of this process, too, could not grow then
            raise
        disk = Limit(tmp_path / "disk")
    out, before = disk.folder / "run", {}
    try:

        def accident():
            before.update(contents(out))
            disk.fill()

        with monkeypatch.context() as patched:
            happening = Moment(patched, home, name, accident, call)
            status, lines = run(COMMANDS[command](files, out))
        assert happening.happened
        assert (status, len(lines)) == (1, 1), lines
        (line,) = lines
        assert line.startswith("hitdet-nni: ")
        assert f"{named}: cannot be written ({disk.reason})" in line.replace(
            str(out / "checkpoints" / command), "checkpoints"
        )
        assert {path: content for path, content in contents(out).items() if path in before} == before
        assert not hidden(out)
        assert not (out / "metrics.json").exists()
        disk.make_room()
        assert run(COMMANDS[command](files, out, "--resume"))[0] == 0
        assert results(out) == peace[command]
    finally:
        disk.close()


def test_a_full_disk_before_anything_has_begun(files, disk, run):
    disk.fill()
    for command in (search_command(files, disk.folder / "run"), retrain_command(files, disk.folder / "run")):
        status, lines = run(command)
        disk.make_room()
        (line,) = lines
        assert status == 2
        assert line == f"hitdet-nni: {disk.folder / 'run'}: --out: cannot be written ({disk.reason})"
        assert not (disk.folder / "run" / "config.yml").exists()
        shutil.rmtree(disk.folder / "run", ignore_errors=True)
        disk.fill()


def test_a_log_that_cannot_be_written_ends_a_retraining():
    log = logging.Logger("of a retraining")
    handler = logging.FileHandler("/dev/full")
    log.addHandler(handler)
    told = pytest.raises(WriteError, match=r"^/dev/full: cannot be written \(No space left on device\)")
    with told, retrain_module._log_kept_whole(log):
        log.info("a line")
    with suppress(OSError):
        handler.close()


# ----------------------------------------------------------------------------------------------------- read-only folder


@contextmanager
def read_only(folder):
    """Make a folder read-only, to root as well."""
    if os.geteuid():
        folder.chmod(0o555)
        try:
            yield
        finally:
            folder.chmod(0o755)
        return
    for options in (["--bind", str(folder), str(folder)], ["-o", "remount,bind,ro", str(folder)]):
        if not mounted(*options):
            pytest.skip("root, to whom permissions are nothing, cannot mount here")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize(
    "command",
    [
        "search",
        "retrain --architecture hit_detector",
        "pretrain",
        "screen",
        "study sparsity",
        "study operators",
        "study stability",
    ],
)
def test_an_out_that_cannot_be_written_is_refused_before_anything(files, tmp_path, run, command):
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file" / "run", tmp_path / "file", Path("/proc/run")):
        status, lines = run([*command.split(), "--config", str(files / "config.yml"), "--out", str(out)])
        (line,) = lines
        assert status == 2
        assert line.startswith(f"hitdet-nni: {out}: --out: ")
    assert (tmp_path / "file").read_text() == "mine"


def test_an_out_in_a_read_only_folder_is_refused(files, tmp_path, run):
    folder = tmp_path / "folder"
    folder.mkdir()
    with read_only(folder):
        status, lines = run(search_command(files, folder / "run"))
        (line,) = lines
        assert status == 2
        assert line.startswith(f"hitdet-nni: {folder / 'run'}: --out: cannot be written (")
        assert list(folder.iterdir()) == []


@pytest.mark.parametrize("command", ["export", "export-config", "report", "compare", "data"])
def test_a_file_that_cannot_be_written_is_bad_input(files, peace, tmp_path, run, command):
    (tmp_path / "file").write_text("mine")
    given = {
        "export": ["export", files / "peace"],
        "export-config": ["export-config", files / "peace" / "architecture.json", "--config", files / "config.yml"],
        "report": ["report", files / "peace", "--images", "0"],
        "compare": ["compare", files / "peace", files / "retrained"],
        "data": ["data", "digits", "--train", "1", "--val", "1"],
    }
    for out in (tmp_path / "file" / "out", Path("/proc/out")):
        status, lines = run([*map(str, given[command]), "--out", str(out)])
        (line,) = lines
        assert status == 2
        assert str(out) in line or str(out.parent) in line
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.slow
def test_a_run_that_becomes_read_only_goes_on_later(files, peace, tmp_path, run, monkeypatch):
    out = tmp_path / "run"
    with monkeypatch.context() as patched, ExitStack() as stack:
        folder = out / "checkpoints" / "search"
        Moment(patched, CheckpointFolder, "save", lambda: stack.enter_context(read_only(folder)), 3)
        status, lines = run(search_command(files, out))
    (line,) = lines
    assert status == 1
    assert f"{out / 'checkpoints' / 'search'}: cannot be written (" in line
    assert CheckpointFolder(out / "checkpoints" / "search").load()["steps"] == 2
    assert run(search_command(files, out, "--resume"))[0] == 0
    assert results(out) == peace["search"]


# ----------------------------------------------------------------------------------------- images and their processes


def spoil(kind, image):
    """Damage an image file."""
    content = image.read_bytes()
    if kind == "gone":
        image.unlink()
    elif kind == "a folder":
        image.unlink()
        image.mkdir()
    else:
        image.write_bytes({"empty": b"", "cut short": content[: len(content) // 2], "text": b"Hello"}[kind])


@pytest.fixture
def spoiled(tmp_path, tiny_data):
    """Spoil an image of the embedded set, converted to a format; the file and the data set that reads it."""

    def make(kind, form):
        folder = tmp_path / "images"
        folder.mkdir(exist_ok=True)
        for name in tiny_data.train.file_names:
            with Image.open(tiny_data.train.images / name) as image:
                image.save(folder / name, form)  # a file's name does not matter to OpenCV
        settings = load_settings("tiny", {"data.cache_mb": 0, "data.workers": 0})
        dataset = build_dataset(
            type(tiny_data.train)(**{**vars(tiny_data.train), "images": folder}), settings.skeleton, training=True
        )
        images = CachedDataset(dataset, capacity=0)
        file = Path(dataset.get_data_info(1)["img_path"])
        assert images[1]["inputs"].any()
        spoil(kind, file)
        return file, images, settings

    return make


@pytest.mark.parametrize("form", ["png", "jpeg"])
@pytest.mark.parametrize("kind", ["gone", "a folder", "empty", "cut short", "text"])
def test_a_image_that_is_spoiled_later_is_named(spoiled, kind, form):
    file, images, _ = spoiled(kind, form)
    with pytest.raises(ImageError) as caught:
        images[1]
    assert str(caught.value).startswith(f"{file}: cannot be ")
    assert "\n" not in str(caught.value)
    assert images[0]["inputs"].any()


def test_a_loader_process_names_it_as_well(spoiled):
    file, images, settings = spoiled("cut short", "jpeg")
    data = settings.data.model_copy(update={"workers": 1})
    with pytest.raises(ImageError) as caught:
        list(detection_loader(images, data))
    assert str(caught.value).startswith(f"{file}: cannot be decoded: ")
    assert "\n" not in str(caught.value)


def test_what_a_camera_writes_behind_a_image_is_no_damage(tmp_path):
    for form in ("png", "jpeg", "bmp", "webp"):
        file = tmp_path / f"image.{form}"
        Image.new("RGB", (40, 30), "red").save(file, form)
        assert cut_short(file) is None
        if form != "webp":
            file.write_bytes(file.read_bytes() + b"maker's notes")
            assert cut_short(file) is None


@pytest.mark.parametrize(
    ("command", "workers"), [("search", 1), *(pytest.param(*each, marks=pytest.mark.slow) for each in [("retrain", 0)])]
)
def test_a_image_spoiled_within_an_epoch(files, peace, tmp_path, run, monkeypatch, command, workers):
    out, image = tmp_path / "run", files / "digits" / "train" / "000003.png"
    content = image.read_bytes()
    options = ["--set", f"data.workers={workers}"]
    with monkeypatch.context() as patched:
        Moment(patched, CheckpointFolder, "save", lambda: spoil("cut short", image), 2)
        status, lines = run(COMMANDS[command](files, out, *options))
    try:
        (line,) = lines
        assert status == 2, lines
        assert line.startswith(f"hitdet-nni: {image}: cannot be decoded: ")
        assert CheckpointFolder(out / "checkpoints" / command).load() is not None
        # It is still spoiled: found before the training goes on.
        assert run(COMMANDS[command](files, out, "--resume", *options))[0] == 2
    finally:
        image.write_bytes(content)
    assert run(COMMANDS[command](files, out, "--resume", *options))[0] == 0
    assert results(out) == peace[command]


def test_a_image_spoiled_before_it_is_evaluated(files, peace, run, monkeypatch):
    image = sorted((files / "digits" / "val").glob("*.png"))[1]
    content = image.read_bytes()
    weights = next((files / "retrained").glob("*/*.pth"))
    architecture = files / "retrained" / "architecture.json"
    command = f"evaluate --config {files / 'config.yml'} --architecture {architecture} --weights {weights}".split()
    assert run(command)[0] == 0
    with monkeypatch.context() as patched:
        Moment(patched, retrain_module, "_runner", lambda: spoil("cut short", image))
        status, lines = run(command)
    image.write_bytes(content)
    assert status == 2, lines
    (line,) = lines
    assert line.startswith(f"hitdet-nni: {image}: cannot be decoded: ")


KILLED_LOADER = """
import json, multiprocessing, os, signal, sys
from hitdet_nni import cli
from hitdet_nni.engine.checkpoints import CheckpointFolder

save, saved = CheckpointFolder.save, 0

def saving(*arguments, **keywords):
    global saved
    saved += 1
    if saved == 2:
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
    return save(*arguments, **keywords)

CheckpointFolder.save = saving
sys.exit(cli.main(json.loads(sys.argv[1])))
"""


@pytest.mark.slow
@pytest.mark.parametrize("command", ["search", "retrain"])
def test_a_killed_loader_process(files, peace, tmp_path, run, command):
    """In a process of its own: the system tells the parent of a child's death by a signal, at any moment."""
    out = tmp_path / "run"
    arguments = COMMANDS[command](files, out, "--set", "data.workers=1")
    done = subprocess.run(
        [sys.executable, "-c", KILLED_LOADER, json.dumps(arguments)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    (line,) = lines
    assert re.match(r"hitdet-nni: (DataLoader worker \(pid|a process that loads images has ended)", line)
    assert "data.workers" in line
    assert "--resume" in line
    assert run([*arguments, "--resume"])[0] == 0
    assert results(out) == peace[command]


class Destroyed:
    """Fails when it is destroyed, as a loader does where the signal of a lost process arrives at that moment."""

    def __init__(self, error):
        self.error = error

    def __del__(self):
        raise self.error


def test_a_process_lost_while_something_is_destroyed_is_told_once(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(sys, "unraisablehook", lambda what: told.append(str(what.exc_value)))
    with translate_io_errors(tmp_path):
        Destroyed(RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."))
        Destroyed(RuntimeError("anything else"))
    Destroyed(RuntimeError("DataLoader worker (pid 8) is killed by signal: Killed."))
    assert told == ["anything else", "DataLoader worker (pid 8) is killed by signal: Killed."]


@pytest.mark.parametrize(
    "error",
    [
        WriteError("a/b.csv", "No space left on device"),
        LostWorkerError("DataLoader worker (pid 7) is killed by signal: Killed"),
    ],
)
def test_accidents_reach_other_processes_whole(error):
    """Studies retrain in processes of their own."""
    queue = multiprocessing.get_context("fork").SimpleQueue()
    queue.put(error)
    other = queue.get()
    assert isinstance(other, StoppedError)
    assert (type(other), str(other), vars(other)) == (type(error), str(error), vars(error))


# ---------------------------------------------------------------------------------------------------------------- clock


class KilledError(Exception):
    """What stands for the end of the process."""


def kill_the_command():
    raise KilledError


@pytest.mark.parametrize("command", ["search", pytest.param("retrain", marks=pytest.mark.slow)])
def test_a_clock_that_jumps(files, peace, tmp_path, run, monkeypatch, command):
    """A training that stops and goes on while the clock jumps by days, backwards and forwards."""
    real, jumps, out = time.time, itertools.count(), tmp_path / "run"
    monkeypatch.setattr(time, "time", lambda: real() + (-1) ** next(jumps) * 864_000)
    with monkeypatch.context() as patched:
        Moment(patched, CheckpointFolder, "save", kill_the_command, 4)
        with pytest.raises(KilledError):
            run(COMMANDS[command](files, out))
    for age, file in enumerate(reversed(CheckpointFolder(out / "checkpoints" / command).files())):
        os.utime(file, (age * 1e6, age * 1e6))  # the newest file says that it is the oldest
    assert run(COMMANDS[command](files, out, "--resume"))[0] == 0
    assert results(out) == peace[command]
    seconds = json.loads((out / "metadata.json").read_text())["seconds"]
    assert all(0 <= value < PATIENCE for value in seconds.values())
    if command == "search":
        rows = (out / "search" / "metrics.csv").read_text().splitlines()
        assert all(0 <= float(row.rpartition(",")[2]) < PATIENCE for row in rows[1:])


def test_the_newest_checkpoint_is_that_of_the_last_step_and_the_last_time(tmp_path):
    folder = CheckpointFolder(tmp_path, keep=3)
    for step, text in ((1, "a"), (2, "b"), (2, "c"), (2, "d")):
        file = folder.save(step, {"text": text})
        os.utime(file, (1e9 - step, 1e9 - step))
    assert folder.load() == {"text": "d"}
    # A process that was killed between the renaming and the removal leaves two of a step.
    copy = tmp_path / "copy"
    newest = folder.files()[-1]
    shutil.copy(newest, copy)
    folder.save(2, {"text": "e"})
    copy.replace(newest)
    os.utime(newest, (2e9, 2e9))
    assert folder.load() == {"text": "e"}
    assert [file.name[:13] for file in folder.files()] == ["step-00000000"] * 3


def test_going_back_a_step_never_removes_what_was_saved_last(tmp_path):
    folder = CheckpointFolder(tmp_path)
    for step in (4, 5, 6):
        folder.save(step, {"step": step})
    for file in folder.files():
        file.write_bytes(b"")
    folder.save(2, {"step": 2})
    assert folder.load() == {"step": 2}


# ------------------------------------------------------------------------------------------------------- two at a time

HOLDER = """
import multiprocessing, sys, time
from pathlib import Path
from hitdet_nni.io import locked

with locked(Path(sys.argv[1])) as mine:
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(120,))
    child.start()
    print(mine, child.pid, flush=True)
    time.sleep(120)
"""


@contextmanager
def holder(lock):
    """Another process that holds a lock, and its child, which outlives it as a loader process does for a while."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(lock)], stdout=subprocess.PIPE, text=True)
    held, child = process.stdout.readline().split()
    assert held == "True"
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        os.kill(int(child), signal.SIGKILL)


def test_a_second_run_is_refused_before_it_touches_anything(files, peace, tmp_path, run):
    out = tmp_path / "run"
    shutil.copytree(files / "peace", out)
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.rglob("*") if path.is_file()}
    commands = [search_command(files, out, option) for option in ("--resume", "--force")]
    commands += [retrain_command(files, out, "--force")]
    with holder(out / "run.lock") as process:
        for command in commands:
            status, lines = run(command)
            assert status == 2
            assert lines == [f"hitdet-nni: {out}: another process works in it; allowed: another folder"]
        after = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.rglob("*") if path.is_file()}
        assert after == before
        process.kill()
        process.wait()
        # Its child lives, and the lock is free all the same.
        with locked(out / "run.lock", wait=False) as mine:
            assert mine
        assert run(search_command(files, out, "--resume"))[0] == 0
    assert results(out) == peace["search"]


# ------------------------------------------------------------------------------------------- files that are not files


def replace_by(kind, path, outside):
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "folder":
        path.mkdir()
        (path / "thesis.tex").write_text("years of work")
    elif kind == "empty":
        path.touch()
    elif kind == "link":
        path.symlink_to(outside)
    elif kind == "dangling":
        path.symlink_to(outside / "nothing")
    elif kind == "loop":
        path.symlink_to(path.name)


PLACES = (
    *("config.yml", "metadata.json", "screening", "screening/sub_spaces.yml", "screening/neck.csv", "search"),
    *("search/alphas.csv", "search/metrics.csv", "architecture.json", "retrain", "metrics.json", "checkpoints"),
    *("checkpoints/search", "run.lock"),
)


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A run directory in its last state."""
    return write_run(tmp_path_factory.mktemp("searched") / "run", epochs=2)


@pytest.mark.parametrize(
    "kind", ["folder", "empty", "link", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("dangling", "loop"))]
)
def test_a_run_directory_of_other_things(searched, tmp_path, capsys, monkeypatch, kind):
    """Done or refused in one line; nothing that a link leads to is touched."""

    def train(*_, **__):
        raise StoppedError("this would take a while")

    for module, name in ((screening, "screen_components"), (searching, "train_supernet")):
        monkeypatch.setattr(module, name, train)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "config.yml").write_text("years of work")
    before = contents(outside)
    for number, place in enumerate(PLACES):
        out = shutil.copytree(searched, tmp_path / f"run{number}")
        replace_by(kind, out / place, outside)
        commands = [
            ["report", out, "--images", "0", "--out", tmp_path / f"{number}.html"],
            ["export", out, "--epoch", "0", "--out", tmp_path / f"{number}.json"],
            ["search", "--config", "tiny", "--set", "search.epochs=2", "--out", out, "--resume"],
        ]
        for command in commands:
            status = cli.main([str(argument) for argument in command])
            error = capsys.readouterr().err
            assert status in (0, 1, 2), (place, command)
            assert error.count("\n") == (status != 0), (place, command, error)
            if kind in ("link", "dangling"):
                assert status == 2, (place, command)
                assert f"{out / place}: is a link out of the run directory" in error or "no config.yml" in error
        assert contents(outside) == before
        assert sorted(path.name for path in outside.iterdir()) == ["config.yml"]


@pytest.mark.parametrize("kind", ["folder", "link"])
def test_force_removes_links_and_not_what_they_lead_to(tmp_path, tiny_settings, kind):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "thesis.tex").write_text("years of work")
    run = RunDirectory(tmp_path / "run")
    run.open(tiny_settings)
    replace_by(kind, run.path / "search", outside)
    replace_by(kind, run.path / "architecture.json", outside / "thesis.tex")
    run.open(tiny_settings, force=True)
    assert sorted(file.name for file in run.path.iterdir()) == ["config.yml", "metadata.json"]
    assert (outside / "thesis.tex").read_text() == "years of work"


def test_a_run_directory_may_be_a_link_itself(tmp_path, tiny_settings):
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    run = RunDirectory(tmp_path / "run")
    with run.held():
        run.open(tiny_settings)
        (run.path / "latest").symlink_to("config.yml")
    with run.held():
        run.open(tiny_settings, resume=True)


@pytest.mark.parametrize("content", ["[]", "{}", '{"seconds": {}, "warnings": []}', ""])
def test_damaged_metadata_are_refused_before_hours_are_spent(tmp_path, tiny_settings, refused, content):
    run = RunDirectory(tmp_path / "run")
    run.open(tiny_settings)
    run.metadata.write_text(content)
    with refused(run.metadata):
        run.open(tiny_settings, resume=True)


def test_a_file_takes_its_place_only_when_it_is_whole(tmp_path):
    path = tmp_path / "file"
    with suppress(KeyError), whole_file(path) as stream:
        stream.write(b"half")
        stream.flush()
        assert not path.exists()
        raise KeyError
    assert list(tmp_path.iterdir()) == []
