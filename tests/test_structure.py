"""Rules of the house that no other test would notice being broken."""

import ast
import itertools
import subprocess
import sys
from pathlib import Path

import pytest

import hitdet_nni

PACKAGE = Path(hitdet_nni.__file__).parent
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


# Each package imports only those before it.
LAYERS = ["model", "engine", "search", "training", "studies"]


@pytest.mark.parametrize(("lower", "higher"), itertools.combinations(LAYERS, 2))
def test_packages_import_downwards(lower, higher):
    for module in (PACKAGE / lower).rglob("*.py"):
        assert not any(name.startswith(f"hitdet_nni.{higher}.") for name in imports(module)), module


def test_deployment_needs_torch_and_torchvision_alone():
    for module in (PACKAGE / "deployment").glob("*.py"):
        assert not {name.partition(".")[0] for name in imports(module)} & {"mmcv", "mmdet", "mmengine", "nni"}, module


@pytest.mark.parametrize("folder", ["model", "data", "engine", "search", "training"])
def test_library_does_not_import_entry_modules(folder):
    names = ("trial", "multi_trial", "nni_results", "cli", "commands", "procedure", "experiment")
    entries = {f"hitdet_nni.{name}" for name in names}
    for module in (PACKAGE / folder).glob("*.py"):
        assert not entries & imports(module), module


def test_only_what_nni_runs_reports_to_it():
    """A trial of an experiment of `nnictl`, and what NNI's multi-trial strategies evaluate."""
    reporting = [module.stem for module in MODULES if "report_intermediate_result(" in module.read_text()]
    assert reporting == ["multi_trial", "trial"]


def test_modules_stay_small():
    sizes = {module.name: len(module.read_text().splitlines()) for module in MODULES}
    assert max(sizes.values()) <= 400, sizes


def heavy_modules_after(statement):
    code = f"import sys; {statement}; print([m for m in ('torch', 'mmdet', 'mmcv', 'nni') if m in sys.modules])"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()[
        -1
    ]


def test_importing_the_package_loads_nothing_heavy():
    assert heavy_modules_after("import hitdet_nni") == "[]"


def test_help_loads_nothing_heavy():
    statement = "from hitdet_nni import cli; cli.build_parser().format_help()"
    assert heavy_modules_after(statement) == "[]"


def test_public_names_are_importable():
    for name in hitdet_nni.__all__:
        assert getattr(hitdet_nni, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        hitdet_nni.nothing  # noqa: B018
