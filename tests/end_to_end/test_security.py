"""Doors that stay shut: nothing of ours listens beyond loopback, no file leads out of its folder, none is executed."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from launcher import ROOT, Launcher, processes_at
from PIL import Image

import hitdet_nni
from hitdet_nni import cli
from hitdet_nni.config.architecture import Architecture, Provenance, load_architecture, save_architecture
from hitdet_nni.config.search_space import load_search_space
from hitdet_nni.config.settings import load_settings
from hitdet_nni.data.annotations.coco import read_annotations
from hitdet_nni.engine.backbone_weights import load_backbone
from hitdet_nni.engine.checkpoints import CheckpointFolder
from hitdet_nni.engine.weights_file import load_weights, read_state
from hitdet_nni.errors import InputError
from hitdet_nni.integration.launcher.nni_manager import free_port
from hitdet_nni.model.detector import build_detector
from hitdet_nni.runs.run_directory import RunDirectory

PATIENCE = 180  # seconds

# ------------------------------------------------------------------------------------------------------- two machines

PROBE = """
import json, socket, sys
told = {}
for address, port in json.loads(sys.argv[1]):
    try:
        socket.create_connection((address, port), timeout=10).close()
        told[address] = "open"
    except OSError as error:
        told[address] = type(error).__name__
print(json.dumps(told))
"""

LISTENING = """
import json, socket, sys
import psutil
found = []
for pid in json.loads(sys.argv[1]):
    try:
        connections = psutil.Process(pid).net_connections(kind="inet")
    except psutil.Error:
        continue
    for each in connections:
        if each.type == socket.SOCK_DGRAM or each.status == psutil.CONN_LISTEN:
            found.append([each.laddr.ip, each.laddr.port])
print(json.dumps(found))
"""


def asked(prefix, program, argument):
    """What a program prints, run somewhere else."""
    command = [*prefix, sys.executable, "-c", program, json.dumps(argument)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout)


@dataclass(frozen=True)
class Network:
    """Where the experiment runs, and from where its doors are tried.

    Attributes:
        here: A command that runs another one where the experiment runs.
        there: The same for a neighbour in the network.
        addresses: Addresses that are not loopback, by which the neighbour reaches the experiment's machine.
    """

    here: tuple[str, ...]
    there: tuple[str, ...]
    addresses: tuple[str, ...]


@pytest.fixture(scope="module")
def network():
    """Two network namespaces with a cable between them; else this machine's own addresses."""
    if not all(shutil.which(tool) for tool in ("unshare", "nsenter", "ip")):
        yield _own_addresses()
        return
    machines = [subprocess.Popen(["unshare", "--net", "sleep", "1200"], stderr=subprocess.DEVNULL) for _ in range(2)]
    try:
        made = _connect(*machines)
        yield _own_addresses() if made is None else made
    finally:
        for machine in machines:
            machine.kill()
            machine.wait()


def _connect(one, two):
    """Lay a cable between the namespaces of two processes; None where that is not allowed."""
    own = Path("/proc/self/ns/net").readlink()
    end = time.monotonic() + 10
    while one.poll() is None and two.poll() is None and time.monotonic() < end:
        if own not in {Path(f"/proc/{machine.pid}/ns/net").readlink() for machine in (one, two)}:
            break
        time.sleep(0.05)
    here, there = (("nsenter", "--target", str(machine.pid), "--net") for machine in (one, two))

    def ip(prefix, arguments):
        return subprocess.run([*prefix, "ip", *arguments.split()], capture_output=True, check=False).returncode == 0

    cable = ip(here, "link add door0 type veth peer name door1") and ip(here, f"link set door1 netns {two.pid}")
    if not cable or not all(ip(place, "link set lo up") for place in (here, there)):
        return None
    addresses = []
    for places, options in ((("10.213.0.1/30", "10.213.0.2/30"), ""), (("fd00:d00::1/64", "fd00:d00::2/64"), " nodad")):
        if all(
            ip(prefix, f"address add {place} dev door{end}{options}")
            for end, (prefix, place) in enumerate(zip((here, there), places, strict=True))
        ):
            addresses.append(places[0].partition("/")[0])
    if not all(ip(prefix, f"link set door{end} up") for end, prefix in enumerate((here, there))):
        return None
    return Network(here, there, tuple(addresses))


def _own_addresses():
    found = [each.address for every in psutil.net_if_addrs().values() for each in every if each.family in FAMILIES]
    outside = [address for address in found if not address.startswith(("127.", "::1", "fe80"))]
    if not outside:
        pytest.skip("this machine has loopback only, and network namespaces cannot be made")
    return Network((), (), tuple(outside))


FAMILIES = (socket.AF_INET, socket.AF_INET6)


def test_the_cable_carries(network):
    """What is open is found open; otherwise the tests below would pass with the cable cut."""
    program = (
        "import socket, sys; s = socket.create_server(('::' if sys.argv[1] == '6' else '0.0.0.0', 0), "
        "family=socket.AF_INET6 if sys.argv[1] == '6' else socket.AF_INET); "
        "print(s.getsockname()[1], flush=True); s.accept(); s.accept()"
    )
    for address in network.addresses:
        version = "6" if ":" in address else "4"
        command = [*network.here, sys.executable, "-c", program, version]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            port = int(server.stdout.readline())
            try:
                assert asked(network.there, PROBE, [[address, port]]) == {address: "open"}
                assert asked(network.here, LISTENING, [server.pid]) == [["::" if version == "6" else "0.0.0.0", port]]
            finally:
                server.kill()


def assert_only_loopback(network, folder, port):
    """The manager answers on 127.0.0.1 and nowhere else, and no process of the experiment listens besides it."""
    assert asked(network.here, PROBE, [["127.0.0.1", port], ["::1", port]]) == {
        "127.0.0.1": "open",
        "::1": "ConnectionRefusedError",
    }
    refused = dict.fromkeys(network.addresses, "ConnectionRefusedError")
    assert asked(network.there, PROBE, [[address, port] for address in network.addresses]) == refused
    processes = [process.pid for process in processes_at(folder)]
    assert asked(network.here, LISTENING, processes) == [["127.0.0.1", port]]


def end_all(folder):
    for process in processes_at(folder):
        try:
            process.kill()
            process.wait(10)
        except psutil.NoSuchProcess:
            continue


CONFIG = {
    "searchSpace": {"seed": {"_type": "choice", "_value": [0]}},
    "trialCodeDirectory": ".",
    "trialConcurrency": 1,
    "maxTrialNumber": 1,
    "experimentWorkingDirectory": "experiments",
    "tuner": {"name": "GridSearch"},
    "trainingService": {"platform": "local"},
}


def test_a_trial_opens_no_door(network, tmp_path):
    """`make search`, with a real trial that trains with a loader process."""
    settings = {
        "extends": "tiny",
        "data": {"train": 8, "val": 2, "size": 64, "batch_size": 2, "workers": 1},
        "skeleton": {"input_size": [64, 64], "head_blocks": 1},
        "space": "space.yml",
        "screening": {"epochs": 1000, "keep": {"backbone": 1, "neck": 1, "head": 1}},
    }
    names = ["sep_k3_d1", "conv_k3_d1"]
    (tmp_path / "config.yml").write_text(yaml.safe_dump(settings))
    (tmp_path / "space.yml").write_text(yaml.safe_dump(dict.fromkeys(("backbone", "neck", "head"), names)))
    command = "python -m hitdet_nni.integration.trial --config config.yml --runs runs"
    (tmp_path / "search.yml").write_text(yaml.safe_dump({**CONFIG, "trialCommand": command}))
    launcher = Launcher(tmp_path, "search.yml", "--runs", "runs", prefix=network.here)
    try:
        port = int(launcher.wait_for(r"web UI will be http://127\.0\.0\.1:(\d+)", PATIENCE)[1])
        end = time.monotonic() + PATIENCE
        # The trial, and the loader process that is forked from it when it trains.
        while sum("hitdet_nni.integration.trial" in each.cmdline()[1:3] for each in launcher.left()) < 2:
            assert launcher.process.poll() is None, launcher.text() + launcher.errors()
            assert time.monotonic() < end, launcher.text() + launcher.errors()
            time.sleep(0.5)
        assert_only_loopback(network, tmp_path, port)
    finally:
        launcher.end()
        end_all(tmp_path)


def documented():
    """The lines of the documentation that start an experiment by hand, once each."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    blocks = [block for page in pages for block in re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL)]
    return sorted({block for block in blocks if re.search(r"^nnictl create", block, re.MULTILINE)})


@pytest.mark.parametrize("block", documented())
def test_nnictl_as_documented_opens_no_door(network, tmp_path, block):
    (tmp_path / "experiments").mkdir()
    config = {**CONFIG, "trialCommand": "sleep 600"}
    (tmp_path / "experiments" / "search.yml").write_text(yaml.safe_dump(config))
    port = free_port()
    text = re.sub(r"^(nnictl create .*)$", rf"\1 --port {port}", block, flags=re.MULTILINE)
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "HOME": str(tmp_path), "PATH": programs, "PYTHONPATH": str(ROOT)}
    environment.pop("NODE_OPTIONS", None)
    try:
        for _ in range(3):  # nnictl gives its manager three seconds to come up, which a busy machine may not do
            done = subprocess.run(
                [*network.here, "bash", "-e", "-c", text],
                cwd=tmp_path,
                env=environment,
                capture_output=True,
                text=True,
                timeout=PATIENCE,
                check=False,
            )
            if done.returncode == 0:
                break
            end_all(tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        assert_only_loopback(network, tmp_path, port)
    finally:
        end_all(tmp_path)


def test_the_documentation_says_how_to_start_it_by_hand():
    assert documented()


# ------------------------------------------------------------------------------------------- paths that files may name


@pytest.fixture
def annotated(tmp_path):
    """Write an annotation file of one image with a file name, beside a folder of images and one that is not."""
    for folder in ("images", "private"):
        (tmp_path / folder / "below").mkdir(parents=True)
        for name in ("a.png", "below/a.png"):
            Image.new("RGB", (32, 32)).save(tmp_path / folder / name)

    def write(file_name):
        ann = tmp_path / "ann.json"
        box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9], "area": 81, "iscrowd": 0}
        image = {"id": 1, "file_name": file_name, "width": 32, "height": 32}
        content = {"images": [image], "categories": [{"id": 1, "name": "cat"}], "annotations": [box]}
        ann.write_text(json.dumps(content))
        return read_annotations(ann, tmp_path / "images", key="data.train_ann")

    return write


@pytest.mark.parametrize("name", ["../private/a.png", "below/../../private/a.png", "/etc/hostname", "{private}/a.png"])
def test_a_image_outside_its_folder_is_refused(annotated, tmp_path, refused, name):
    name = name.format(private=tmp_path / "private")
    with refused(tmp_path / "ann.json", "images[0].file_name", name, "leads outside the folder of images"):
        annotated(name)


def test_a_link_out_of_the_folder_of_images_is_refused(annotated, tmp_path, refused):
    images = tmp_path / "images"
    (images / "file.png").symlink_to(tmp_path / "private" / "a.png")
    (images / "folder").symlink_to(tmp_path / "private")
    (images / "loop.png").symlink_to("loop.png")
    for name in ("file.png", "folder/a.png", "folder/below/a.png", "loop.png"):
        with refused(tmp_path / "ann.json", "images[0].file_name", name, "no links out of that folder"):
            annotated(name)


def test_links_inside_a_folder_of_images_and_to_it_are_followed(annotated, tmp_path):
    images = tmp_path / "images"
    images.rename(tmp_path / "disk")
    images.symlink_to(tmp_path / "disk")
    (images / "file.png").symlink_to("below/a.png")
    (images / "folder").symlink_to("below")
    for name in ("a.png", "below/a.png", "file.png", "folder/a.png"):
        assert annotated(name).file_names == (name,)


@pytest.mark.parametrize("load", [load_architecture, load_search_space, load_settings])
@pytest.mark.parametrize("name", ["../search_spaces/full", "../../outside", "{outside}", "configs/../../outside"])
def test_a_shipped_file_is_one_of_those_that_are_shipped(load, name, tmp_path, refused):
    (tmp_path / "outside.yml").write_text("{}")
    (tmp_path / "outside.json").write_text("{}")
    with refused("no such file"):
        load(name.format(outside=tmp_path / "outside"))


# ------------------------------------------------------------------------------------------ nothing that executes files

MODULES = sorted(Path(hitdet_nni.__file__).parent.rglob("*.py"))

EXECUTING_MODULES = {
    *("pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle"),
    *("torch.hub", "torch.package", "torch.jit", "torch.utils.model_zoo"),
}

EXECUTING_CALLS = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "runpy.run_path", "runpy.run_module"),
    *("yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load", "np.load", "numpy.load", "pd.read_pickle"),
    *("torch.serialization.add_safe_globals", "torch.serialization.safe_globals", "shutil.unpack_archive"),
}

EXECUTING_METHODS = {"load_checkpoint", "load_state_dict_from_url", "fromfile", "from_cfg"}
"""Of whatever class or module: mmengine's readers of checkpoints and of configs that are programs."""

ALLOWED = {("cost/mmdet_config.py", "Config.fromfile"), ("data/folder.py", "np.fromfile")}
"""An mmdet config in Python is a program of the user's, which `hitdet-nni profile FILE.py` knows by its ending; numpy's
function reads plain bytes."""


def dotted(node):
    """``a.b.c`` of an attribute or a name."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def unsafe(source, name):
    """What in a module could execute a file: a list of names, with the line."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            if isinstance(node, ast.ImportFrom):
                names = [node.module or "", *(f"{node.module}.{each}" for each in names)]
            found += [(each, node.lineno) for each in names if each in EXECUTING_MODULES]
        elif isinstance(node, ast.Call):
            called = dotted(node.func)
            keywords = {keyword.arg: keyword.value for keyword in node.keywords}
            executes = called in EXECUTING_CALLS or called.rpartition(".")[2] in EXECUTING_METHODS
            if executes and (name, called) not in ALLOWED:
                found.append((called, node.lineno))
            if called in ("torch.load", "load") and not _is_true(keywords.get("weights_only")):
                found.append((called, node.lineno))
            if "allow_pickle" in keywords or _is_true(keywords.get("shell")):
                found.append((called, node.lineno))
    return found


def _is_true(node):
    return isinstance(node, ast.Constant) and node.value is True


def test_no_module_reads_a_file_that_could_execute():
    root = Path(hitdet_nni.__file__).parent
    found = {
        name: lines
        for module in MODULES
        if (lines := unsafe(module.read_text(), name := module.relative_to(root).as_posix()))
    }
    assert found == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from torch import hub",
        "import torch.hub",
        "import joblib as j",
        "from pickle import loads",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=safe)",
        "from torch import load\nload(path)",
        "yaml.load(text, yaml.Loader)",
        "np.load(path, allow_pickle=True)",
        "numpy.load(path)",
        "mmengine.runner.load_checkpoint(model, path)",
        "Config.fromfile(path)",
        "eval(text)",
        "subprocess.run(text, shell=True)",
    ],
)
def test_the_rule_sees_what_it_is_for(source):
    assert unsafe(source, "a.py")


class Malicious:
    """Executes when it is unpickled."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


@pytest.fixture(scope="module")
def detector(tiny, published, draw):
    sample = draw(tiny, published, 0)
    return sample, build_detector(tiny, sample, 10)


def test_no_reader_executes_a_pickle(detector, tmp_path, tiny_settings, capsys):
    """Every function and command that reads a file of tensors, given one that would write a file."""
    sample, model = detector
    target = tmp_path / "executed"
    file = tmp_path / "weights.pth"
    torch.save({"state_dict": Malicious(target), "sample": {}}, file)
    torch.load(file, weights_only=False)
    target.unlink()  # the file does what it is for
    for read in (
        lambda: load_weights(model, file),
        lambda: read_state(file),
        lambda: load_backbone(model.backbone, file, sample),
    ):
        with pytest.raises(InputError):
            read()
    run = RunDirectory(tmp_path / "run")
    run.open(tiny_settings)
    provenance = Provenance(classes=tuple(map(str, range(10))))
    architecture = Architecture(
        schema_version=1, name="run", skeleton=tiny_settings.skeleton, sample=sample, provenance=provenance
    )
    save_architecture(architecture, run.architecture)
    space = {"backbone": ["sep_k3_d1"], "neck": ["sep_k3_d1"], "head": ["sep_k3_d1"]}
    for component in space:
        space[component] = sorted({name for label, name in sample.items() if label.startswith(component)})
    run.screening.mkdir()
    run.sub_spaces.write_text(yaml.safe_dump(space))
    for place in (run.supernet, run.retrain / "weights.pth", tmp_path / "run" / "weights.pth"):
        place.parent.mkdir(exist_ok=True)
        shutil.copy(file, place)
    small = ("--config", "tiny", "--set", "data.train=16", "--set", "data.val=4")
    from_file = ("--set", f"retrain.pretrained={file}", "--set", f"search.pretrained={file}")
    commands = [
        ("report", run.path),
        ("compare", run.path, "--out", tmp_path / "all.html"),
        ("evaluate", "--architecture", run.architecture, "--weights", file, *small),
        ("retrain", "--inherit", run.path, "--out", tmp_path / "one", *small),
        ("retrain", "--architecture", run.architecture, "--out", tmp_path / "two", *small, *from_file),
        ("search", "--sub-spaces", run.sub_spaces, "--out", tmp_path / "three", *small, *from_file),
    ]
    for command in commands:
        status = cli.main([str(argument) for argument in command])
        error = capsys.readouterr().err
        assert (status, error.count("\n")) == ((0, 0) if command[0] in ("report", "compare") else (2, 1)), command
        assert not target.exists(), command


def test_no_checkpoint_executes_a_pickle(tmp_path):
    """Not even one whose name holds the digest of its content."""
    target = tmp_path / "executed"
    folder = CheckpointFolder(tmp_path / "checkpoints")
    folder.save(1, {"step": 1})
    whole = folder.save(2, {"step": 2})
    torch.save({"step": Malicious(target)}, whole)
    digest = hashlib.sha256(whole.read_bytes()).hexdigest()[:16]
    whole.rename(folder.path / f"step-000000002-{digest}.pt")
    assert folder.load() == {"step": 1}
    assert not target.exists()
