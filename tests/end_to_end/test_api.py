"""The Python interface: three lines, the files of the commands, and what goes wrong."""

import io
import shutil
from contextlib import redirect_stdout
from importlib.util import find_spec

import cv2
import numpy as np
import pytest
from layouts import WRITERS, shots
from pages import DOCS, ROOT, blocks

import hitdet_nni
from hitdet_nni import InputError, cli
from hitdet_nni.commands.shared import stages
from hitdet_nni.config import python_arguments
from hitdet_nni.config.search_space import load_search_space
from hitdet_nni.config.settings import load_settings
from hitdet_nni.io import read_json
from hitdet_nni.studies import successive_halving

NAMES = "[ir_k3_d1_e1, sep_k3_d1, conv_k3_d1]"
FEW = {
    "screening.keep": {"backbone": 2, "neck": 2, "head": 2},
    "screening.epochs": 1,
    "screening.warmup_epochs": 0,
    "search.epochs": 1,
    "search.warmup_epochs": 0,
    "retrain.epochs": 1,
    "retrain.milestones": [1],
    "data.seed": 0,
}


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """Settings of a very short search among three operators."""
    file = tmp_path_factory.mktemp("space") / "space.yml"
    file.write_text(f"backbone: {NAMES}\nneck: {NAMES}\nhead: {NAMES}\n")
    return FEW | {"space": str(file)}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The same images as COCO, Roboflow and YOLO folders."""
    root = tmp_path_factory.mktemp("folders")
    parts = {"train": shots(root / "made", 16), "val": shots(root / "made", 4, first=16)}
    for kind in ("coco", "roboflow", "yolo"):
        WRITERS[kind](root / kind, parts, ("zebra", "ant"))
    return root


@pytest.fixture(scope="module")
def said():
    """What the fixture :func:`found` has printed, and how the run looked in a notebook before it was retrained."""
    return {}


@pytest.fixture(scope="module")
def found(said, folders, few, tmp_path_factory):
    """A search, retrained."""
    with redirect_stdout(io.StringIO()) as searching:
        run = hitdet_nni.search(
            folders / "coco",
            preset="tiny",
            budget={"gflops": 0.06},
            out=tmp_path_factory.mktemp("runs") / "coco",
            settings=few,
        )
    said["page"] = run._repr_html_()
    with redirect_stdout(io.StringIO()) as retraining:
        run.retrain()
    said |= {"search": searching.getvalue(), "retrain": retraining.getvalue()}
    return run


def test_three_lines_from_a_folder_to_a_drawing(found, folders, tmp_path):
    detector = found.detector()
    image = folders / "made" / "p000.png"
    prediction = detector.predict(image, 0)
    prediction.save(tmp_path / "out.png")
    assert cv2.imread(str(tmp_path / "out.png")).shape == (48, 64, 3)
    assert set(prediction.names) <= {"zebra", "ant"}
    assert detector.classes == ("zebra", "ant")


def test_a_search_and_a_retraining_end_with_what_they_found(found, said):
    cost = f"{found.metrics['params_m']:.3g} M parameters, {found.metrics['gflops']:.3g} GFLOPs"
    share = f"{found.metrics['gflops'] / 0.06:.0%} of the budget of 0.06 GFLOPs is used"
    assert said["search"].splitlines()[-1] == f"found: {cost}; {share}"
    assert said["retrain"].splitlines()[-1].startswith(f"mAP {found.metrics['mAP']:.3f}, mAP_50 ")
    assert cost in said["page"]
    assert share in said["page"]
    assert "mAP" not in said["page"]
    assert cost in found._repr_html_()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["roboflow", "yolo"])
def test_other_layouts_of_the_same_images_lead_to_the_same(found, folders, few, tmp_path, kind):
    run = hitdet_nni.search(folders / kind, preset="tiny", budget={"gflops": 0.06}, out=tmp_path / kind, settings=few)
    assert run.architecture.sample == found.architecture.sample
    ours, theirs = ((each.path / "search" / "alphas.csv").read_text().splitlines() for each in (run, found))
    for one, other in zip(ours[1:], theirs[1:], strict=True):
        for value, same in zip(one.split(","), other.split(","), strict=True):
            assert value == same or float(value) == pytest.approx(float(same), rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("logger", ["mlflow", "wandb"])
def test_a_logger_has_the_curves_and_changes_nothing(found, folders, few, tmp_path, monkeypatch, logger):
    """Bit by bit what a run without one is, weights of search and retraining among it."""
    monkeypatch.chdir(tmp_path)
    settings = few | {"logger": logger}
    budget = {"gflops": 0.06}
    run = hitdet_nni.search(folders / "coco", preset="tiny", budget=budget, out=tmp_path / "run", settings=settings)
    run.retrain()
    for name in ("search/alphas.csv", "search/supernet.pth", "retrain/weights.pth"):
        assert (run.path / name).read_bytes() == (found.path / name).read_bytes(), name
    steps = read_json(run.path / "logger.json")["steps"]
    assert steps["search/val_loss"] == 1
    assert steps["retrain/AP"] == 1
    if logger == "mlflow":
        from mlflow.tracking import MlflowClient

        kept = MlflowClient().get_run(read_json(run.path / "logger.json")["identity"])
        assert kept.data.metrics["retrain/AP"] == pytest.approx(run.metrics["mAP"], abs=1e-4)
        assert kept.info.status == "FINISHED"
    else:
        assert len(list((tmp_path / "wandb").glob("offline-run-*"))) == 2  # of the search and of the retraining


@pytest.mark.slow
def test_the_command_leaves_the_same_files(found, folders, few, tmp_path):
    out = tmp_path / "by-command"
    values = few | {"data.root": folders / "coco", "search.budget.gflops": 0.06}
    options = [part for key, value in values.items() for part in ("--set", f"{key}={value}")]
    assert cli.main(["search", "--config", "tiny", *options, "--out", str(out)]) == 0
    ours = {file.relative_to(found.path): file for file in found.path.rglob("*") if file.is_file()}
    for file in (path for path in out.rglob("*") if path.is_file()):
        name = file.relative_to(out)
        assert name in ours
        if file.suffix in (".csv", ".yml") and name.name != "metrics.csv":  # which has times
            assert file.read_bytes() == ours[name].read_bytes(), name


def test_a_run_that_ended_is_returned_and_goes_on_by_resume_alone(found, folders, few):
    again = {"preset": "tiny", "budget": {"gflops": 0.06}, "out": found.path, "settings": few}
    times = {file: file.stat().st_mtime_ns for file in found.path.rglob("*.pth")}
    with pytest.raises(InputError, match="holds a run"):
        hitdet_nni.search(folders / "coco", **again)
    with pytest.raises(InputError, match=r"^settings: search.epoch: unknown key"):
        hitdet_nni.search(folders / "coco", **again | {"settings": {"search.epoch": 1}})
    assert hitdet_nni.search(folders / "coco", **again, resume=True).architecture == found.architecture
    found.retrain()
    assert {file: file.stat().st_mtime_ns for file in found.path.rglob("*.pth")} == times


def test_the_home_folder_is_where_the_tilde_stands(found, few, folders, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(found.path, tmp_path / "mine")
    run = hitdet_nni.load("~/mine")
    assert run.path == tmp_path / "mine"
    assert run.export("~/new/mine.pt", kind="torchscript") == tmp_path / "new" / "mine.pt"
    assert run.report("~/new/page.html", images=1) == tmp_path / "new" / "page.html"
    again = {"preset": "tiny", "budget": {"gflops": 0.06}, "settings": few}
    assert hitdet_nni.search(folders / "coco", out="~/mine", resume=True, **again).path == tmp_path / "mine"
    with pytest.raises(InputError, match="over the run's own detector"):
        run.retrain(out="~/mine", force=True)
    assert not (tmp_path / "~").exists()


def test_a_run_stays_where_it_is_when_the_working_folder_changes(found, tmp_path, monkeypatch):
    monkeypatch.chdir(found.path.parent)
    run = hitdet_nni.load(found.path.name)
    monkeypatch.chdir(tmp_path)
    assert run.path == found.path
    assert run.architecture == found.architecture
    assert run.export(kind="torchscript", force=True) == found.path / "detector.pt"
    with pytest.raises(InputError, match=r"^nothing: no such run directory"):
        hitdet_nni.load("nothing")


def test_load_evaluate_export_report(found, tmp_path):
    run = hitdet_nni.load(found.path)
    assert repr(run) == f"Run({str(found.path)!r})"
    measured = run.evaluate()
    assert measured == pytest.approx(run.metrics["metrics"])
    file = run.export(tmp_path / "mine.pt", kind="torchscript")
    with pytest.raises(InputError, match="force=True"):
        run.export(file, kind="torchscript")
    with pytest.raises(InputError, match="torch-export"):
        run.export(tmp_path / "mine.bin", kind="gguf")
    assert run.export(file, force=True) == file  # the kind is that of its name
    with pytest.raises(InputError, match="kind: got 'architecture'"):
        run.export(tmp_path / "mine.json")
    import torch

    boxes, *_ = torch.jit.load(file)(torch.zeros(1, 3, 48, 64, dtype=torch.uint8))
    assert boxes.shape[1] == 4
    assert run.report(tmp_path / "page.html", images=1).stat().st_size > 1000
    page = run._repr_html_()
    assert "zebra, ant" in page
    assert "mAP" in page


@pytest.mark.slow
def test_a_point_of_the_front(found, tmp_path):
    rows = found.front([0.05], samples=8, images=4)
    assert [row.gflops for row in rows] == sorted(row.gflops for row in rows)
    assert found.front(resume=True, budgets=[0.05], samples=8, images=4) == rows
    with pytest.raises(InputError, match="exists already"):
        found.front(samples=8)
    by_size = found.front(cost="params_m", samples=8, images=4, force=True)
    assert [row.params_m for row in by_size] == sorted(row.params_m for row in by_size)
    assert {row.unit for row in by_size} == {"params_m"}
    found.front([0.05], samples=8, images=4, force=True)
    detector = found.retrain(budget=0.05, out=tmp_path / "point")
    point = hitdet_nni.load(tmp_path / "point")
    assert read_json(point.path / "metrics.json")["gflops"] <= 0.05
    assert detector.predict(np.zeros((48, 64, 3), np.uint8)).image.shape == (48, 64, 3)
    with pytest.raises(InputError, match="top"):
        found.retrain(top=2)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ({"preset": "huge"}, "huge"),
        ({"preset": "tiny", "budget": {"flops": 2}}, "^budget: flops: unknown key"),
        ({"preset": "tiny", "budget": {"latency_ms": 5}}, "^budget: latency_ms needs a table"),
        (
            {"preset": "tiny", "budget": {"latency_ms": 5, "table": "nope.json"}},
            "nope.json: search.budget.table: no such file; allowed: a table that hitdet-nni latency",
        ),
        ({"preset": "tiny", "budget": {"gflops": 1e-9}}, "or more"),
        ({"preset": "tiny", "budget": 1e-9}, "gflops.*or more"),
        ({"preset": "tiny", "budget": "2"}, "budget: got '2'; allowed: GFLOPs as a number"),
        ({"preset": "tiny", "budget": True}, "budget: got True"),
        ({"preset": "nano-cpu"}, "the nearest is nano_cpu"),
        ({"preset": "tiny", "settings": {"search.epoch": 2}}, "search.epoch"),
        ({"preset": "tiny", "source": "nowhere"}, "nowhere"),
        ({"preset": "tiny", "seed": -1}, "seed"),
        ({"preset": "tiny", "source": 3}, "^source: got 3; allowed: a path"),
        ({"preset": "tiny", "source": ["cards"]}, "^source: got .'cards'.; allowed: a path"),
        ({"preset": 3}, "^preset: got 3; allowed: a shipped config"),
        ({"preset": "tiny", "out": 5}, "^out: got 5; allowed: a path"),
        ({"preset": "tiny", "settings": ["search.epochs=2"]}, "^settings: got .*dotted keys and their values"),
        ({"preset": "tiny", "settings": {1: 2}}, "^settings: got 1; allowed: a dotted key"),
        ({"preset": "tiny", "sub_spaces": "nowhere.yml"}, "nowhere.yml: no such file"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, monkeypatch, arguments, part):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=part) as error:
        hitdet_nni.search(**{"out": "run", **arguments})
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_what_is_not_there_yet(tmp_path, found):
    with pytest.raises(InputError, match="not a run directory"):
        hitdet_nni.load(tmp_path)
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.yml").write_bytes((found.path / "config.yml").read_bytes())
    begun = hitdet_nni.load(tmp_path / "begun")
    assert "not searched" in begun._repr_html_()
    for call in (lambda: begun.architecture, begun.detector, begun.export, begun.evaluate, begun.retrain, begun.front):
        with pytest.raises(
            InputError, match=r"begun: the search has not ended; allowed: .*search\(\.\.\., resume=True\)"
        ):
            call()
    for options in ({"settings": {"retrain.epochs": 2}}, {"inherit": True}, {"out": found.path, "force": True}):
        with pytest.raises(InputError, match="another directory"):
            found.retrain(**options)
    for both in (lambda **options: hitdet_nni.search(preset="tiny", **options), found.front, found.retrain):
        with pytest.raises(InputError, match="beside resume"):
            both(force=True, resume=True)
    shutil.copytree(found.path, tmp_path / "damaged")
    (tmp_path / "damaged" / "metrics.json").write_text("{}")
    damaged = hitdet_nni.load(tmp_path / "damaged")
    for call in (lambda: damaged.metrics, damaged._repr_html_):
        with pytest.raises(InputError, match=r"damaged.metrics.json: .*metrics"):
            call()
    for options in ({"precision": "int4"}, {"precision": "int8", "calibration": 0}):
        with pytest.raises(InputError, match=r"int4|calibration"):
            found.export(tmp_path / "mine.onnx", **options)
    assert not (tmp_path / "mine.onnx").exists()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda run: hitdet_nni.load(None), "path: got None; allowed: a path"),
        (lambda run: run.export(5), "path: got 5; allowed: a path"),
        (lambda run: run.export(kind=["onnx"]), "kind: got ['onnx']; allowed: "),
        (lambda run: run.report(images="6"), "images: got '6'; allowed: a whole number"),
        (lambda run: run.front(2.5), "budgets: got 2.5; allowed: a list of numbers"),
        (lambda run: run.front(["2"]), "budgets: got '2'; allowed: numbers above 0"),
        (lambda run: run.front(cost="ms"), "cost: got 'ms'; allowed: gflops, params_m, latency_ms"),
        (lambda run: run.front(cost="latency_ms"), "table: is missing; allowed: a file of hitdet-nni latency"),
        (
            lambda run: run.front(table="/no.json"),
            "/no.json: table: no such file; allowed: a table that hitdet-nni lat",
        ),
        (lambda run: run.retrain(budget={"gflops": 2}), "budget: got {'gflops': 2}; allowed: a number above 0"),
        (lambda run: run.evaluate("data.seed=1"), "settings: got 'data.seed=1'; allowed: dotted keys"),
        (lambda run: run.detector("gpu"), "device: got 'gpu'; allowed: cpu"),
        (lambda run: run.detector(None), "device: got None; allowed: cpu"),
        (lambda run: run.detector("cuda:99"), "device: torch finds no GPU"),
    ],
)
def test_arguments_of_another_kind_are_refused(found, call, message):
    with pytest.raises(InputError) as caught:
        call(found)
    assert str(caught.value).startswith(message)


def test_settings_for_a_point_of_the_front_have_a_directory_of_its_own(found, monkeypatch):
    trained = []
    monkeypatch.setattr(stages, "front_points", lambda run, budget, top: [found.architecture])
    monkeypatch.setattr(stages, "run_retraining", lambda out, settings, *_, **__: trained.append((out, settings)))
    with pytest.raises(TypeError):  # nothing was trained that could be told of
        found.retrain(budget=8, settings={"retrain": {"epochs": 2}})
    (out, settings), *_ = trained
    assert out == found.path.with_name("coco-retrained-8")
    assert found.settings.retrain.epochs == 1
    changed = {"epochs": 2, "milestones": tuple(2 * each for each in found.settings.retrain.milestones)}
    assert settings.retrain == found.settings.retrain.model_copy(update=changed)


def test_what_is_chosen_among_inherits_too(found, tmp_path, monkeypatch):
    others = [found.architecture, found.architecture.model_copy(update={"name": "other"})]
    monkeypatch.setattr(stages, "front_points", lambda run, budget, top: others[:top])

    def choose(architectures, settings, folder, processes, inherit):
        raise InputError(
            f"{len(architectures)} from {inherit.relative_to(found.path)}, one at a time: {processes == 1}"
        )

    monkeypatch.setattr(successive_halving, "best_by_halving", choose)
    with pytest.raises(InputError, match=r"2 from search/supernet\.pth, one at a time: True"):
        found.retrain(budget=8, top=2, inherit=True, out=tmp_path / "chosen")


def test_a_search_need_not_screen_again(found, folders, few, tmp_path, monkeypatch):
    again = {"preset": "tiny", "budget": {"gflops": 0.06}, "settings": few | {"search": {"flops_weight": 0.5}}}
    with pytest.raises(InputError) as caught:
        hitdet_nni.search(folders / "coco", out=found.path, resume=True, **again)
    screened = found.path / "screening" / "sub_spaces.yml"
    assert str(caught.value).endswith(f"; a new search with sub_spaces {screened} need not screen again")
    assert "--" not in str(caught.value)
    given = []

    def run_search(out, settings, config, space, **_):
        given.append(space)
        return found.architecture

    monkeypatch.setattr(stages, "run_search", run_search)
    for named in (screened, found.path):
        hitdet_nni.search(folders / "coco", out=found.path, sub_spaces=named, **again)
    assert given == [load_search_space(screened)] * 2


def test_what_the_page_does_with_a_prediction(capsys):
    *_, block = blocks(DOCS / "python.md", "python")
    exec(compile(block.text, "docs/python.md", "exec"), {})
    one, all_of_them = capsys.readouterr().out.splitlines()
    assert one.startswith("fork 0.9")
    assert all_of_them == "Prediction(1 x fork, 1 x cup; 120 x 100 pixels)"


@pytest.mark.slow
def test_the_lines_of_readme_and_page(few, tmp_path, monkeypatch):
    first, *_ = blocks(DOCS / "python.md", "python")
    assert first.text == blocks(ROOT / "README.md", "python")[0].text
    parts = {"train": shots(tmp_path / "made", 16), "val": shots(tmp_path / "made", 4, first=16)}
    WRITERS["yolo"](tmp_path / "my_images", parts, ("zebra", "ant"))
    cv2.imwrite(str(tmp_path / "street.jpg"), np.zeros((300, 400, 3), np.uint8))
    monkeypatch.chdir(tmp_path)
    short = {key: value for key, value in few.items() if key != "data.seed"} | {"precision": "fp32"}
    load = python_arguments.load_settings
    monkeypatch.setattr(python_arguments, "load_settings", lambda config, changed: load(config, short | changed))
    exec(compile(first.text, "docs/python.md", "exec"), {})
    assert cv2.imread("out.jpg").shape == (300, 400, 3)
    run = hitdet_nni.load("runs/my_images")
    assert run.settings.skeleton == load_settings("small", {"data.builtin": "digits"}).skeleton
    assert run.metrics["gflops"] <= 2


def test_the_name_stays_a_function():
    assert find_spec("hitdet_nni.search") is None  # a module of that name would take its place once it is imported
    assert callable(hitdet_nni.search)


def test_what_the_commands_refuse_is_said_in_arguments(found, tmp_path):
    with pytest.raises(InputError, match=r"resume=True.*force=True$"):
        hitdet_nni.search(preset="tiny", out=found.path)
    with pytest.raises(InputError, match=r"^samples: got 1;"):
        found.front(samples=1)
    with pytest.raises(InputError, match=r"^path: got .*mine\.onnx"):
        found.export(tmp_path / "mine.onnx", kind="torch-export")
    with pytest.raises(InputError, match=r"""such as settings=\{"data.root": 'my_images'\}; or COCO files""") as error:
        hitdet_nni.search(preset="nano_cpu", out=tmp_path / "other")
    assert "--" not in str(error.value)
