"""Rules of the house that no other test would notice being broken."""

import ast
import graphlib
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import hitdet_nni
from hitdet_nni.config.architecture import load_architecture, save_architecture
from hitdet_nni.config.settings import load_settings
from hitdet_nni.data.sources import open_data
from hitdet_nni.runs.run_directory import RunDirectory

PACKAGE = Path(hitdet_nni.__file__).parent
ROOT = PACKAGE.parent
MODULES = sorted(PACKAGE.rglob("*.py"))


def imports(module):
    """Dotted names that a module imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


WINGS = runpy.run_path(str(ROOT / "docs" / "wings.py"))["WINGS"]


def test_the_top_of_the_package_is_its_wings():
    found = {path.name for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    modules = {f"{name}.py" for name in ("__init__", "__main__", "cli", "api", "io", "errors")}
    assert {name for name in found if name.endswith(".py")} == modules
    assert {name.removesuffix(".py") for name in found} - {"__init__", "__main__"} == set(WINGS)


@pytest.mark.parametrize("wing", WINGS)
def test_each_wing_imports_only_those_below_it(wing):
    above = {f"hitdet_nni.{name}" for name in WINGS[: WINGS.index(wing)]}
    modules = (PACKAGE / wing).rglob("*.py") if (PACKAGE / wing).is_dir() else [PACKAGE / f"{wing}.py"]
    for module in modules:
        found = {".".join(name.split(".")[:2]) for name in imports(module)}
        assert not found & above, module


def dotted(module):
    """Dotted name of a module by its path."""
    parts = module.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_no_modules_import_each_other_in_a_circle():
    names = {dotted(module) for module in MODULES}
    graph = {dotted(module): (imports(module) & names) - {dotted(module)} for module in MODULES}
    # A package is imported with each of its modules; that alone is no circle.
    graph = {name: {other for other in found if not name.startswith(f"{other}.")} for name, found in graph.items()}
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError


def test_deployment_needs_torch_and_torchvision_alone():
    for module in (PACKAGE / "deployment").glob("*.py"):
        assert not {name.partition(".")[0] for name in imports(module)} & {"mmcv", "mmdet", "mmengine", "nni"}, module


def test_only_what_nni_runs_reports_to_it():
    """A trial of an experiment of `nnictl`, and what NNI's multi-trial strategies evaluate."""
    reporting = [module.stem for module in MODULES if "report_intermediate_result(" in module.read_text()]
    assert reporting == ["multi_trial", "trial"]


def modules_with(pattern):
    """Modules of the package, by their path in it, whose text holds a regular expression."""
    return [module.relative_to(PACKAGE).as_posix() for module in MODULES if re.search(pattern, module.read_text())]


def test_nni_s_name_of_the_architecture_parameters_stands_once():
    """All others say ``alpha``."""
    assert modules_with("_arch_alpha") == ["model/searchable.py"]


def test_labels_are_taken_apart_in_one_place():
    assert modules_with(r"""(split|partition)\(["']/["']""") == ["config/skeleton.py"]


def test_operators_are_decided_in_one_place():
    """A search, ``export --epoch`` and NNI's strategies decode alike; argmax and knapsack are asked by nobody else."""
    assert modules_with(r"\bdecode_within\(") == ["cost/knapsack.py", "nas/budget.py"]
    assert modules_with(r"\.strongest\(") == ["nas/decode.py"]
    assert modules_with(r"alpha\w*(\(\))?\.argmax|argmax\([^)]*alpha") == []


def test_architectures_with_provenance_are_built_in_one_place():
    assert modules_with(r"(?<!class )\bProvenance\(") == ["nas/provenance.py"]


def patches(tree):
    """Lines of a module that give an object another class, or a ``forward`` of its own."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            written = [each for target in targets for each in ast.walk(target) if isinstance(each, ast.Attribute)]
            if any(each.attr in ("__class__", "forward") and isinstance(each.ctx, ast.Store) for each in written):
                yield node.lineno
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "setattr":
            name = node.args[1]
            if isinstance(name, ast.Constant) and name.value in ("__class__", "forward"):
                yield node.lineno


def test_no_object_is_patched():
    """Modules are replaced by others, for good or within a context; none gets another class or ``forward``."""
    found = {str(module.relative_to(PACKAGE)): list(patches(ast.parse(module.read_text()))) for module in MODULES}
    assert not {module: lines for module, lines in found.items() if lines}


@pytest.mark.parametrize(
    ("line", "lines"),
    [
        ("part.__class__ = Other", [1]),
        ("block.forward = wrapped", [1]),
        ("a, block.forward = 1, wrapped", [1]),
        ("setattr(block, 'forward', wrapped)", [1]),
        ("setattr(parent, name, block)", []),
        ("name = block.__class__.__name__", []),
        ("result = block.forward(x)", []),
        ("block.forward.count = 1", []),
    ],
)
def test_patches_are_found(line, lines):
    assert list(patches(ast.parse(line))) == lines


def test_modules_stay_small():
    sizes = {module.name: len(module.read_text().splitlines()) for module in MODULES}
    assert max(sizes.values()) <= 400, sizes


HEAVY = ("torch", "torchvision", "nni", "pytorch_lightning", "mmdet", "mmcv", "mmengine", "scipy", "sklearn", "cv2")


def outcome(statement, folder):
    """The ``status`` that a statement leaves, the heavy packages loaded after it, and its standard output."""
    code = f"import json, sys\nstatus = 0\n{statement}\n"
    code += f"sys.stderr.write(json.dumps([status, [name for name in {HEAVY} if name in sys.modules]]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=folder)
    status, names = json.loads(done.stderr.splitlines()[-1])
    return status, set(names), done.stdout


def loaded_by(statement, folder):
    """The same without the output."""
    return outcome(statement, folder)[:2]


@pytest.fixture(scope="module")
def a_run(tmp_path_factory):
    """A folder with an architecture, a run that has found it, and nothing else; the embedded set has been made."""
    folder = tmp_path_factory.mktemp("folder")
    found = load_architecture("hit_detector")
    save_architecture(found, folder / "mine.json")
    run = RunDirectory(folder / "run")
    run.open(load_settings("tiny"))
    save_architecture(found, run.architecture)
    settings = load_settings("tiny")
    open_data(settings.data, settings.seed)
    return folder


READER = {"cv2"}
"""What reads images, as training does: checking those of a small set needs it and nothing else."""

READING = (
    "retrain --config tiny --architecture mine.json --out new",
    "evaluate --config tiny --architecture mine.json --weights no.pth",
    "check-data --config tiny",
    "search --config tiny --out run",
    "screen --config tiny --out run",
)

BEGUN = """
from hitdet_nni.cli import main
from hitdet_nni.commands.shared import work
from hitdet_nni.errors import InputError

def stop(*_):
    raise InputError("stopped")

work.libraries_loading = stop
status = main("search --config tiny --out new".split())
"""


def test_a_search_says_that_it_begins_before_it_loads_anything(a_run):
    status, names, said = outcome(BEGUN, a_run)
    assert (status, names) == (2, READER)
    assert said.splitlines()[0] == "search: tiny, files in new"
    assert not (a_run / "new").exists()


@pytest.mark.parametrize("statement", ["import hitdet_nni", "from hitdet_nni import cli; cli.build_parser()"])
def test_the_package_and_help_load_nothing_heavy(statement, tmp_path):
    assert loaded_by(statement, tmp_path) == (0, set())


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("search --config nosuch.yml --out new", 2),
        ("search --config tiny --set search.epoch=1 --out new", 2),
        ("search --config tiny --sub-spaces nosuch.yml --out new", 2),
        ("search --config tiny --set data.builtin=null --out new", 2),
        ("search --config tiny --out mine.json", 2),
        ("search --config tiny --out run", 2),
        ("screen --config tiny --out run", 2),
        ("study search --config tiny --out new", 2),
        ("screen --config tiny --set screening.keep.head=33 --out new", 2),
        ("retrain --config tiny --architecture nosuch.json --out new", 2),
        ("retrain --config tiny --architecture mine.json --out new", 2),
        ("retrain --config tiny --architecture mine.json --set retrain.pretrained=no.pth --out new", 2),
        ("train-baseline nosuch.py --config tiny --out new", 2),
        ("pretrain --config tiny --out new", 2),
        ("evaluate --config tiny --architecture mine.json --weights no.pth", 2),
        ("export-config nosuch.json --config tiny -o hit.py", 2),
        ("study random --run nosuch --out new", 2),
        ("study parts --run run --seeds 0 --out new", 2),
        ("study stability --config tiny --seeds 1 --out new", 2),
        ("study stability --config tiny --set screening.keep.head=33 --out new", 2),
        ("profile mine.json", 0),
        ("profile run --layers", 0),
        ("profile nosuch.py", 2),
        ("export run --out exported.json --force", 0),
        ("export run --format onnx --out mine.onnx", 2),
        ("tables", 0),
        ("tables 1 --markdown results.md", 2),
        ("check-data --config tiny", 0),
    ],
)
def test_what_needs_no_network_loads_none(line, status, a_run):
    statement = f"from hitdet_nni.cli import main; status = main({line.split()!r})"
    assert loaded_by(statement, a_run) == (status, READER if line in READING else set())
    assert not (a_run / "new").exists()


def test_a_model_file_needs_no_library_of_detectors(a_run):
    """And the commands that do need something heavy are seen to load it."""
    loaded = loaded_by("import hitdet_nni.deployment.formats", a_run)[1]
    assert "torch" in loaded
    assert not loaded & {"nni", "mmdet", "pytorch_lightning"}


def test_public_names_are_importable():
    for name in hitdet_nni.__all__:
        assert getattr(hitdet_nni, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        hitdet_nni.nothing  # noqa: B018
