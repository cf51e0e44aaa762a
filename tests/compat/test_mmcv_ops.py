import ast
import inspect
import itertools
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import mmdet
import pytest
from mmcv import ops
from mmdet.registry import MODELS
from references import mmcv_source

from hitdet_nni.compat import mmcv_ops

MODULE_FILE = Path(mmcv_ops.__file__)


def run_fresh(code, *paths):
    """Run code in a new interpreter; `mmcv_ops` there is loaded from its file, without hitdet_nni/__init__."""
    prelude = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('mmcv_ops', {str(MODULE_FILE)!r})\n"
        "mmcv_ops = importlib.util.module_from_spec(spec)\nspec.loader.exec_module(mmcv_ops)\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    return subprocess.run([sys.executable, "-c", prelude + code], env=env, capture_output=True, text=True, timeout=60)


def fake_mmcv(folder, compiled):
    (folder / "mmcv" / "ops").mkdir(parents=True)
    (folder / "mmcv" / "__init__.py").write_text("")
    (folder / "mmcv" / "ops" / "__init__.py").write_text("nms = 'the compiled one'")
    if compiled:
        (folder / "mmcv" / "_ext.py").write_text("")
    return folder


def test_install_is_light_and_idempotent():
    done = run_fresh(
        "before = len(sys.meta_path)\n"
        "assert mmcv_ops.install() is True and mmcv_ops.install() is True\n"
        "assert len(sys.meta_path) == before + 1\n"
        "assert not {'torch', 'mmcv', 'numpy'} & sys.modules.keys()\n"
    )
    assert done.returncode == 0, done.stderr


def test_a_compiled_mmcv_is_left_alone(tmp_path):
    code = (
        "before = list(sys.meta_path)\nassert mmcv_ops.install() is False\nassert sys.meta_path == before\n"
        "import mmcv.ops\nassert mmcv.ops.nms == 'the compiled one'\nassert mmcv_ops.install() is False\n"
    )
    done = run_fresh(code, fake_mmcv(tmp_path, compiled=True))
    assert done.returncode == 0, done.stderr


def test_a_compiled_mmcv_ops_that_is_already_imported_is_left_alone(tmp_path):
    code = (
        "import mmcv.ops\nbefore = list(sys.meta_path), mmcv.ops\n"
        "assert mmcv_ops.install() is False\nassert (sys.meta_path, sys.modules['mmcv.ops']) == before\n"
        "assert mmcv.ops.nms == 'the compiled one'\n"
    )
    done = run_fresh(code, fake_mmcv(tmp_path, compiled=True))
    assert done.returncode == 0, done.stderr


def test_an_uncompiled_mmcv_ops_that_is_already_imported_is_an_error(tmp_path):
    done = run_fresh("import mmcv.ops\nmmcv_ops.install()", fake_mmcv(tmp_path, compiled=False))
    assert "RuntimeError: mmcv.ops is already imported from" in done.stderr


def test_the_same_mmcv_without_its_extension_is_replaced(tmp_path):
    code = (
        "assert mmcv_ops.install() is True\nimport mmcv\n"
        "assert importlib.util.find_spec('mmcv.ops').origin == 'hitdet_nni.compat.torchvision_ops'\n"
    )
    done = run_fresh(code, fake_mmcv(tmp_path, compiled=False))
    assert done.returncode == 0, done.stderr


def test_without_mmcv_the_error_says_what_to_install():
    done = run_fresh("sys.modules['mmcv'] = None\nmmcv_ops.install()")
    assert done.returncode != 0
    assert "ModuleNotFoundError: mmcv.ops cannot be served: mmcv is not installed; install mmcv-lite" in done.stderr


def test_a_foreign_mmcv_ops_is_not_replaced_silently(monkeypatch):
    foreign = ModuleType("mmcv.ops")
    foreign.__file__ = "/somewhere/mmcv/ops/__init__.py"
    monkeypatch.setitem(sys.modules, "mmcv.ops", foreign)
    with pytest.raises(RuntimeError, match=r"already imported from /somewhere/mmcv/ops/__init__\.py"):
        mmcv_ops.install()


def test_every_name_that_mmdet_imports_exists():
    wanted = set()
    for file in Path(mmdet.__file__).parent.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        if "mmcv.ops" in text:
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mmcv.ops"):
                    wanted |= {(node.module, alias.name) for alias in node.names}
    assert len(wanted) > 15
    for module, name in wanted:
        assert isinstance(getattr(import_module(module), name), type) or name.islower()
        assert getattr(ops, name) is getattr(import_module(module), name)


def test_unknown_names_and_submodules_fail_as_usual():
    with pytest.raises(ImportError, match="cannot import name 'Nope'"):
        from mmcv.ops import Nope  # noqa: F401
    with pytest.raises(ModuleNotFoundError, match=r"mmcv\.ops\.voxelize"):
        import mmcv.ops.voxelize  # noqa: F401
    assert not hasattr(ops, "Nope")


def test_functions_are_not_hidden_by_submodules_of_the_same_name():
    for name in ("nms", "roi_align", "roi_pool", "point_sample", "carafe"):
        assert callable(getattr(ops, name))
        assert isinstance(sys.modules[f"mmcv.ops.{name}"], ModuleType)


@pytest.mark.parametrize("name", sorted(itertools.chain(*mmcv_ops.REFUSED.values())))
def test_refused_ops_can_be_subclassed_and_say_why_they_fail(name):
    class Child(getattr(ops, name)):
        def __init__(self):
            pass

    for make in (getattr(ops, name), Child):
        with pytest.raises(NotImplementedError, match=rf"mmcv\.ops\.{name} is not available.*compiled mmcv"):
            make()


@pytest.mark.parametrize(("name", "registered"), mmcv_ops.REGISTERED.items())
def test_the_registry_knows_the_layers_by_mmcvs_names(name, registered):
    assert MODELS.get(registered) is getattr(ops, name)
    tree = ast.parse(
        "".join(mmcv_source(submodule).read_text() for submodule, names in mmcv_ops.SERVED.items() if name in names)
    )
    node = next(node for node in tree.body if getattr(node, "name", None) == name)
    assert registered in (name, *(each.value for each in ast.walk(node.decorator_list[0]) if hasattr(each, "value")))


def test_every_layer_that_mmdets_configurations_name_exists():
    """Whatever mmcv.ops defines and a shipped configuration asks for is served."""
    defined, named = set(mmcv_ops.REGISTERED.values()), set()
    for file in mmcv_source("nms").parent.glob("*.py"):
        defined |= {node.name for node in ast.parse(file.read_text()).body if hasattr(node, "name")}
    for file in (Path(mmdet.__file__).parent / ".mim" / "configs").rglob("*.py"):
        named |= set(re.findall(r"type=['\"]?(\w+)", file.read_text(encoding="utf-8")))
    wanted = named & defined
    assert {"DCN", "DCNv2", "SAC", "carafe", "MMSyncBN", "SimpleRoIAlign", "soft_nms", "DeformRoIPoolPack"} <= wanted
    served = set(itertools.chain(*mmcv_ops.SERVED.values())) | set(mmcv_ops.REGISTERED.values())
    assert wanted <= served


def mmcv_arguments(tree, name):
    """Names and defaults of a function, class or autograd function in the source of mmcv 2.1."""
    aliases = {
        node.targets[0].id: node.value.value.id
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Attribute) and node.value.attr == "apply"
    }
    node = next(node for node in tree.body if getattr(node, "name", None) == aliases.get(name, name))
    if isinstance(node, ast.ClassDef):
        method = "forward" if name in aliases or name.endswith("Function") else "__init__"
        node = next(item for item in node.body if getattr(item, "name", None) == method)
    names = [argument.arg for argument in node.args.args if argument.arg not in ("self", "ctx")]
    return names, [ast.unparse(default) for default in node.args.defaults]


@pytest.mark.parametrize(
    ("submodule", "name"),
    [
        (submodule, name)
        for submodule, names in mmcv_ops.SERVED.items()
        for name in names
        if submodule != "info" and not name.endswith("Conv2dPack")
    ],
)
def test_arguments_are_those_of_mmcv(submodule, name):
    names, defaults = mmcv_arguments(ast.parse(mmcv_source(submodule).read_text()), name)
    ours = getattr(ops, name).apply if name.endswith("Function") else getattr(ops, name)
    ours = [p for p in inspect.signature(ours).parameters.values() if p.kind != p.VAR_KEYWORD]
    assert [p.name for p in ours] == names
    our_defaults = [p.default for p in ours if p.default is not inspect.Parameter.empty]
    for default, text in zip(our_defaults, defaults, strict=True):
        assert text.startswith("dict(") if name == "BaseMergeCell" and text[:4] == "dict" else default == eval(text)


def test_mmengine_asks_whether_mmcv_is_compiled_on_pythons_without_find_loader():
    code = """
import pkgutil
vars(pkgutil).pop("find_loader", None)  # as Python 3.14
import hitdet_nni
from mmengine.utils.dl_utils.misc import mmcv_full_available
assert pkgutil.find_loader("nosuch") is None
assert pkgutil.find_loader("json").name == "json"
print(mmcv_full_available())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["False"], done.stderr
