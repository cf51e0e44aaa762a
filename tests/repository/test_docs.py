"""The documentation: links, commands, code, names and messages in it, and the pages that are written by a script."""

import ast
import importlib.util
import json
import os
import pkgutil
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pages import DOCS, LANGUAGES, PAGES, ROOT, blocks, commands, prose, slugs
from pydantic import BaseModel

from hitdet_nni import cli
from hitdet_nni.config.architecture import load_architecture
from hitdet_nni.config.search_space import load_search_space
from hitdet_nni.config.settings import Settings, load_settings, parse_overrides
from hitdet_nni.config.shipped import shipped
from hitdet_nni.config.validation import _model_of
from hitdet_nni.cost.cost_model import CostModel
from hitdet_nni.errors import InputError
from hitdet_nni.integration import experiment
from hitdet_nni.integration.launcher import experiment_config
from hitdet_nni.integration.launcher.experiment_config import load_config

NAMES = [str(page.relative_to(ROOT)) for page in PAGES]

EXECUTED = {
    "end_to_end/test_end_to_end.py::stages": (
        "hitdet-nni search --config tiny --out runs/mine",
        "hitdet-nni profile runs/mine",
        "hitdet-nni retrain --architecture runs/mine/architecture.json --config tiny --out runs/mine-retrained",
        "hitdet-nni evaluate --architecture runs/mine/architecture.json "
        "--weights runs/mine-retrained/retrain/weights.pth --config tiny",
        "hitdet-nni export-config runs/mine/architecture.json --config tiny -o hit.py",
        "hitdet-nni report runs/mine",
        "hitdet-nni compare runs/mine runs/mine-retrained --out runs/compared.html",
    ),
    "end_to_end/test_end_to_end.py::test_a_finished_run_is_not_overwritten": (
        "hitdet-nni search --config tiny --out runs/mine --resume",
    ),
    "end_to_end/test_end_to_end.py::test_cards_by_the_page_s_config": (
        "hitdet-nni check-data --config my_data.yml",
        "hitdet-nni search --config my_data.yml --out runs/mine",
    ),
    "end_to_end/test_torchrun.py::test_two_processes_leave_one_run": (
        "torchrun --nproc-per-node 2 -m hitdet_nni search --config tiny --out runs/two",
    ),
    "commands/test_cli.py::test_profile_of_the_released_network": (
        "hitdet-nni profile hit_detector --shape 800 1216 --proposals 1000 --convention paper",
    ),
    "repository/test_docs.py::test_searches_of_the_page_on_extending": (
        "hitdet-nni search --config tiny --sub-spaces large_kernels.yml --out runs/large-kernels",
        "hitdet-nni search --config tiny --sub-spaces grouped.yml --out runs/grouped",
        "hitdet-nni profile runs/grouped",
        "hitdet-nni report runs/grouped",
        "hitdet-nni search --config tiny --sub-spaces large_kernels.yml --set skeleton.neck=SumNeck --out runs/sum",
    ),
    "integration/test_experiment.py": ("make search", "nnictl create --config experiments/search.yml"),
}
"""Commands of the pages that tests execute, as they stand there or in little; others are only read by the parsers."""


# ----------------------------------------------------------------------------------------------------------- links


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page):
    text = re.sub(r"`[^`\n]+`", "", prose(page))
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", path):
            continue
        found = (page.parent / path) if path else page
        if not found.exists() or (anchor and anchor not in slugs(found)):
            broken.append(target)
    assert not broken


def test_every_page_is_in_the_table_of_contents():
    listed = {line for block in blocks(DOCS / "index.md") for line in block.text.splitlines() if line[:1] != ":"}
    patterns = {line.strip() for line in listed if line.strip()}
    pages = {page.stem for page in DOCS.glob("*.md")} - {"index"}
    assert {page for page in pages if not any(Path(page).match(pattern) for pattern in patterns)} == set()


# -------------------------------------------------------------------------------------------------------- commands


@pytest.fixture(scope="module")
def user_folder(tmp_path_factory):
    """A folder with every file that a page shows: the YAML blocks whose first line is a file name."""
    folder = tmp_path_factory.mktemp("user")
    for page in PAGES:
        for block in blocks(page, "yaml"):
            if block.name is not None:
                path = folder / block.name
                assert not path.exists() or path.read_text() == block.text, f"{block.name} is two files"
                path.write_text(block.text)
    return folder


def hitdet_nni(words):
    """Read by the command's own parser; the settings that it would have are loaded, and the search space read."""
    options = cli.build_parser().parse_args(words)
    if options.command == "experiment":
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(experiment, "run", lambda config, runs, port: 0)
            patch.setattr(experiment_config, "load_stopped", lambda experiment: None)
            patch.setattr(experiment_config, "load_config", experiment_file)
            assert cli.run(options) == 0
        return
    load_settings(getattr(options, "config", None) or "tiny", parse_overrides(getattr(options, "overrides", [])))
    sub_spaces = getattr(options, "sub_spaces", None)
    if sub_spaces is not None and sub_spaces.parts[0] != "runs":
        load_search_space(sub_spaces)


def torchrun(words):
    assert words[:2] == ["--nproc-per-node", words[1]]
    assert words[1].isdigit()
    assert words[2:4] == ["-m", "hitdet_nni"]
    hitdet_nni(words[4:])


def python(words):
    if words[0] != "-m":
        assert (ROOT / words[0]).is_file(), words[0]
        return
    assert words[1] == "hitdet_nni"
    hitdet_nni(words[2:])


def experiment_file(name):
    """An experiment that is shipped; one with places to fill in is refused for these."""
    path = ROOT / name
    assert path.is_file(), name
    try:
        load_config(path)
    except InputError as error:
        assert "still to be filled in" in str(error)  # noqa: PT017
        assert "<" in path.read_text()


def make(words):
    text = (ROOT / "Makefile").read_text()
    for word in words:
        variable, assigned, value = word.partition("=")
        assert re.search(rf"^{variable} \??=" if assigned else rf"^{variable}:", text, re.MULTILINE), word
        if variable == "CONFIG":
            experiment_file(value)


def nnictl(words):
    assert words[0] in ("create", "resume", "stop", "update")
    if "--config" in words:
        experiment_file(words[words.index("--config") + 1])


def export(words):
    variable, _, value = words[0].partition("=")
    assert variable == "NODE_OPTIONS"
    inner = re.fullmatch(r"\$\((.*)\)", value)
    if inner:
        check(inner[1])


def by_hand(words):
    """A program that is not ours: nothing to hold it to."""


KINDS = {
    "hitdet-nni": hitdet_nni,
    "torchrun": torchrun,
    "python": python,
    "make": make,
    "nnictl": nnictl,
    "export": export,
    **dict.fromkeys(("wget", "unzip", "mkdir", "tar", "ssh", "scp"), by_hand),
}
"""What is asked of a command line, by its first word. A page with any other one fails."""


def check(command):
    program, *words = shlex.split(command)
    KINDS[program](words)


UNPATCHED = [page for page in PAGES if not blocks(page, "diff")]
"""Pages that need no other code; the commands of a page with patches are read by the patched code."""


@pytest.mark.parametrize("page", UNPATCHED, ids=lambda page: page.name)
def test_commands_would_be_taken(page, user_folder, monkeypatch, capsys):
    monkeypatch.chdir(user_folder)
    for command in commands(page):
        try:
            check(command)
        except (SystemExit, InputError, AssertionError, KeyError) as error:
            pytest.fail(f"{command}: {type(error).__name__}: {error} {capsys.readouterr().err}")


def test_a_command_that_no_kind_knows_is_found(user_folder, monkeypatch):
    monkeypatch.chdir(user_folder)
    for wrong in ("hitdet search", "make nothing", "hitdet-nni serch --config tiny --out x", "nnictl destroy"):
        with pytest.raises((KeyError, AssertionError, SystemExit)):
            check(wrong)
    with pytest.raises(InputError):
        check("hitdet-nni search --config tiny --set search.epoch=1 --out x")
    with pytest.raises(InputError):
        check("hitdet-nni search --config absent.yml --out x")


def test_list_of_executed_commands():
    shown = {command for page in PAGES for command in commands(page)}
    for place, executed in EXECUTED.items():
        assert set(executed) <= shown, place
        file, _, function = place.partition("::")
        text = (ROOT / "tests" / file).read_text()
        assert not function or f"def {function}(" in text, place


# -------------------------------------------------------------------------------------------------------- code, data


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_code_and_data_of_the_page_are_whole(page, user_folder):
    assert {block.language for block in blocks(page) if block.language[:1] != "{"} <= set(LANGUAGES)
    for block in blocks(page, "python"):
        compile(block.text, str(page), "exec")
    for block in blocks(page, "yaml"):
        content = yaml.safe_load(block.text)
        if block.name is not None and page in UNPATCHED:
            read = load_search_space if set(content) == {"backbone", "neck", "head"} else load_settings
            read(user_folder / block.name)


def test_code_on_own_data_runs(capsys):
    for block in blocks(DOCS / "your_data.md", "python"):
        exec(compile(block.text, "docs/your_data.md", "exec"), {})
    assert "27.1" in capsys.readouterr().out


def patched(page, folder):
    """Make a copy of the package with the patches of a page, and the files that the page shows."""
    for name in ("hitdet_nni", "search_spaces", "experiments", "baselines"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for block in blocks(page, "diff"):
        header, *hunks = re.split(r"^@@.*\n", block.text, flags=re.MULTILINE)
        file = folder / header.removeprefix("--- ").strip()
        text = file.read_text() if file.exists() else ""
        for hunk in hunks:
            lines = hunk.splitlines(keepends=True)
            old = "".join(line[1:] for line in lines if line[0] != "+")
            new = "".join(line[1:] for line in lines if line[0] != "-")
            assert text.count(old) == 1, f"{file.name}: {old}"
            text = text.replace(old, new)
        file.write_text(text)
    for block in blocks(page, "yaml"):
        (folder / block.name).write_text(block.text)


def test_a_new_family_of_operators_is_one_row_and_one_module():
    _, _, section = (DOCS / "extending.md").read_text().partition("\n## A new family of operators\n")
    section, _, _ = section.partition("\n## ")
    files = re.findall(r"^--- (.+)$", section, re.MULTILINE)
    assert files == ["hitdet_nni/operators/grouped.py", "hitdet_nni/operators/registry.py"]
    assert not (ROOT / files[0]).exists()
    assert len(re.findall(r"^\+ +Family\(", section, re.MULTILINE)) == 1


def run_python(program, folder):
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


WHICH = "import hitdet_nni, pathlib; assert pathlib.Path(hitdet_nni.__file__).parents[1] == pathlib.Path.cwd()\n"


FOLDERS = [str(folder) for folder in Path(__file__).parents[:2]]
DRY_RUN = f"import sys; sys.path += {FOLDERS!r}; import test_docs\ntest_docs.check(%r)\n"


@pytest.mark.parametrize("page", [page for page in PAGES if page not in UNPATCHED], ids=lambda page: page.name)
def test_code_of_a_page_with_patches(page, tmp_path):
    patched(page, tmp_path)
    code = [block.text for block in blocks(page, "python")] + [DRY_RUN % command for command in commands(page)]
    run_python(WHICH + "\n".join(code), tmp_path)


@pytest.mark.slow
def test_searches_of_the_page_on_extending(tmp_path):
    page = DOCS / "extending.md"
    patched(page, tmp_path)
    calls = [["hitdet-nni", *shlex.split(command)[1:]] for command in commands(page)]
    program = f"from hitdet_nni import cli\nfor call in {calls}:\n    assert cli.main(call[1:]) == 0, call\n"
    run_python(WHICH + program, tmp_path)
    for _, *words in calls:
        assert (tmp_path / words[-1] / "architecture.json").is_file()


# ------------------------------------------------------------------------------------------------------------- names


def settings_keys(model=Settings, prefix=""):
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}"
        below = _model_of(field.annotation)
        if below is not None and issubclass(below, BaseModel):
            yield from settings_keys(below, f"{prefix}{name}.")


def is_symbol(name):
    try:
        pkgutil.resolve_name(f"hitdet_nni.{name}")
    except (ImportError, AttributeError):
        return False
    return True


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_dotted_names_are_keys_or_symbols(page):
    keys = set(settings_keys())
    sections = {key.partition(".")[0] for key in keys if "." in key}
    spans = re.findall(r"`(\w+(?:\.\w+)+)`", prose(page))
    names = {
        span
        for span in spans
        if span.partition(".")[0] in sections and not span.endswith((".py", ".yml", ".yaml", ".md"))
    }
    assert {name for name in names if name not in keys and not is_symbol(name)} == set()


def test_paper_map_names_what_exists():
    rows = [line.split(" | ") for line in prose(DOCS / "paper_map.md").splitlines() if line.startswith("| ")]
    symbols = {name for row in rows if len(row) == 4 for name in re.findall(r"`([\w.]+)`", row[2])}
    assert len(symbols) > 40
    assert {name for name in symbols if not is_symbol(name)} == set()
    keys = {name for row in rows if len(row) == 4 for name in re.findall(r"`([\w.]+)`", row[3])}
    assert keys <= set(settings_keys())


def test_reference_has_every_public_name():
    import hitdet_nni as package

    text = (DOCS / "api.md").read_text()
    modules = set(re.findall(r"automodule:: ([\w.]+)", text))
    for name in package.__all__:
        assert f"`{name}`" in text
        assert f"hitdet_nni.{package._HOMES[name]}" in modules
    used = {
        node.module
        for page in PAGES
        for block in blocks(page, "python")
        for node in ast.walk(ast.parse(block.text))
        if isinstance(node, ast.ImportFrom) and node.module.startswith("hitdet_nni.")
    }
    assert used <= modules


# ---------------------------------------------------------------------------------------------------------- messages


def templates():
    """Every text in the code of the package and of `install.py` but docstrings, with `...` for what is filled in.

    A text whose words depend on a number is there in both readings.
    """
    found = []
    for path in (ROOT / "install.py", *(ROOT / "hitdet_nni").rglob("*.py")):
        tree = ast.parse(path.read_text())
        docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                parts = (str(part.value) if isinstance(part, ast.Constant) else "..." for part in node.values)
                found.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                found.append(re.sub(r"%(\.\d)?[sdfg]", "...", node.value))
    return [re.sub(r"\{([^{}|]*)\|([^{}|]*)\}", form, text) for text in found for form in (r"\1", r"\2")]


def test_messages_are_the_product_s():
    """The first column of the tables, with `...` for a part that differs from case to case."""
    messages = re.findall(r"^\| `([^`]+)` \|", prose(DOCS / "troubleshooting.md"), re.MULTILINE)
    assert len(messages) > 50
    known = templates()
    assert [message for message in messages if not any(message in template for template in known)] == []


# --------------------------------------------------------------------------------------------------- generated pages


def script(name, monkeypatch):
    """A script beside the pages, as a module."""
    specification = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, name, module)  # dataclasses look for their module
    specification.loader.exec_module(module)
    return module


def test_generated_pages_are_up_to_date(monkeypatch):
    for name, page in script("generate", monkeypatch).PAGES.items():
        assert (DOCS / name).read_text(encoding="utf-8") == page(), "run: python docs/generate.py"


def test_the_drawing_of_the_wings_is_up_to_date(monkeypatch):
    wings = script("wings", monkeypatch)
    assert wings.DRAWING.read_text(encoding="utf-8") == wings.svg(), "run: python docs/wings.py"
    text = wings.PAGE.read_text(encoding="utf-8")
    assert wings.page(text) == text, "run: python docs/wings.py"


def test_stages_of_the_page_on_coco_are_up_to_date(monkeypatch):
    stages = script("coco_stages", monkeypatch)
    page = (DOCS / "coco.md").read_text(encoding="utf-8")
    assert stages.put(page, "stages", stages.stages_table()) == page, "run: python docs/coco_stages.py"


def test_every_setting_is_described():
    nodes = [Settings.model_json_schema(), *Settings.model_json_schema()["$defs"].values()]
    keys = [(node["title"], key, value) for node in nodes for key, value in node.get("properties", {}).items()]
    assert len(keys) > 100
    assert [
        (section, key) for section, key, value in keys if not value.get("description") and "$ref" not in value
    ] == []


def test_studies_of_the_page_of_results_are_up_to_date(monkeypatch):
    text = (DOCS / "results.md").read_text(encoding="utf-8")
    assert script("evidence", monkeypatch).page(text) == text, "run: python docs/evidence.py"


def test_a_study_is_taken_into_the_page(monkeypatch, tmp_path):
    evidence = script("evidence", monkeypatch)
    monkeypatch.setattr(evidence, "FOLDER", tmp_path / "results")
    run, versions = tmp_path / "parts", {"torch": "2.14.1"}
    run.mkdir()
    command = ["/somewhere/hitdet-nni", "study", "parts", "--run", "/home/me/mine", "--out=/home/me/parts"]
    command += ["--slack", ".5", "--set", "data.root=/home/me/coco", "--set", "seed=3"]
    about = {"command": command, "seed": 3, "started": "2026-01-02T03:04:05", "versions": versions}
    rows = [{"architecture": "all", "mean_mAP": 0.25, "deviation": None}]
    about["seconds"] = {"study": 120}
    for commit, refused in ((None, "from None"), ("0123456789-dirty", "dirty"), ("0123456789", "not ended")):
        (run / "metadata.json").write_text(json.dumps({**about, "git_commit": commit}))
        with pytest.raises(ValueError, match=refused):
            evidence.add(run, None, "Alone.")
    (run / "parts.json").write_text(json.dumps({"study": "parts", "rows": rows, "samples": {}}))
    evidence.add(run, None, "Alone.")
    begin, end = "<!-- begin study parts: written by docs/evidence.py -->", "<!-- end study parts -->"
    page = evidence.page(f"before\n{begin}\nold\n{end}\nafter")
    words = "--run runs/mine --out=runs/parts --slack .5 --set data.root=coco --set seed=3"
    assert f"hitdet-nni study parts {words}\n" in page
    assert "Seed 3, torch 2.14.1, commit 0123456, 2026-01-02, 2 minutes. Alone." in page
    assert "| architecture | mean mAP | deviation |\n| --- | ---: | ---: |\n| all | 0.25 | - |" in page
    assert "old" not in page
    with pytest.raises(ValueError, match="marker"):
        evidence.page("no marker")


def test_costs_of_the_page_on_coco_are_the_cost_model_s(monkeypatch, published):
    """One candidate a layer is the architecture; eight times the same one is eight times the searched part."""
    stages = script("coco_stages", monkeypatch)
    found = load_architecture("hit_detector")
    model = CostModel(found.skeleton, found.num_classes)
    one = {component: names[:1] for component, names in published.items()}
    sample = {layer.label: one[layer.component][0] for layer in model.layers}
    single = stages.supernet_cost(model, one, stages.DETECTOR)
    assert single == model.architecture(sample)["total"]
    eight = stages.supernet_cost(model, {component: names * 8 for component, names in one.items()}, stages.DETECTOR)
    fixed = sum(layer.cost.flops for layer in model.fixed)
    assert eight.flops - fixed == 8 * (single.flops - fixed)


def test_experiments_that_pages_name_are_shipped():
    for page in PAGES:
        for name in re.findall(r"experiments/[\w/]+\.(?:yml|json)", page.read_text()):
            assert shipped("experiments", name.partition("/")[2]).is_file(), f"{page.name}: {name}"
