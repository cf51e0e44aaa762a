"""Pages of runs: every state, every part, numbers as in the files, hostile names, damaged files."""

import base64
import csv
import json
import math
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import astuple, replace
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from PIL import Image
from report_runs import STATES, WARNING, write_run

from hitdet_nni import cli
from hitdet_nni.config.architecture import load_architecture
from hitdet_nni.config.search_space import load_search_space, save_search_space
from hitdet_nni.config.settings import load_settings
from hitdet_nni.cost.cost_model import CostModel
from hitdet_nni.cost.pareto import pareto_front
from hitdet_nni.engine.weights_file import save_weights
from hitdet_nni.io import read_json, write_csv, write_json
from hitdet_nni.model.detector import build_detector
from hitdet_nni.report.architecture_drawing import draw_architecture
from hitdet_nni.report.axes import number
from hitdet_nni.report.candidates import candidate_table
from hitdet_nni.report.page import write_comparison, write_report
from hitdet_nni.report.precisions import AVERAGE_PRECISIONS, percent
from hitdet_nni.runs.benchmark import FileBenchmark, Percentiles, add_benchmark
from hitdet_nni.runs.front import FrontRow, write_front
from hitdet_nni.runs.reading import read_run
from hitdet_nni.runs.reliability import Reliability, write_reliability
from hitdet_nni.runs.result import PRECISIONS
from hitdet_nni.runs.run_directory import RunDirectory
from hitdet_nni.runs.rungs import PausedTraining, write_rungs
from hitdet_nni.runs.samples import TriedArchitecture, write_samples

VOID = {"meta", "link", "input", "br", "img"}
SECTIONS = "architecture accuracy detections cost search alphas screening health settings origin".split()  # noqa: SIM905


class Page(HTMLParser):
    """What a page holds; refuses tags that are not closed in order.

    Attributes:
        elements: Tag, attributes and the text inside, of every element.
    """

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.elements, self._open = [], []
        self.feed(html)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), (tag, names)
        self.elements.append([tag, dict(attrs), ""])
        if tag not in VOID:
            self._open.append(self.elements[-1])

    def handle_startendtag(self, tag, attrs):
        self.elements.append([tag, dict(attrs), ""])

    def handle_endtag(self, tag):
        assert self._open.pop()[0] == tag

    def handle_data(self, data):
        for element in self._open:
            element[2] += data

    def all(self, tag, **attributes):
        wanted = {name.rstrip("_"): value for name, value in attributes.items()}
        return [each for each in self.elements if each[0] == tag and wanted.items() <= each[1].items()]

    def text(self, id_):
        (found,) = (each for each in self.elements if each[1].get("id") == id_)
        return " ".join(found[2].split())

    def rows(self, caption):
        """Cells of the table whose caption begins so."""
        index = next(
            i for i, each in enumerate(self.elements) if each[0] == "caption" and each[2].strip().startswith(caption)
        )
        rows = []
        for tag, _, text in self.elements[index + 1 :]:
            if tag in ("table", "section"):
                break
            if tag == "tr":
                rows.append([])
            elif tag in ("th", "td"):
                rows[-1].append(" ".join(text.split()))
        return rows


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that has everything but weights."""
    return write_run(tmp_path_factory.mktemp("runs") / "mine")


@pytest.fixture(scope="module")
def html(run):
    return write_report(run, images=0).read_text()


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


def rows_of(path):
    return list(csv.DictReader(path.read_text().splitlines()))


# --------------------------------------------------------------------------------------------------------------- states


UNSEARCHED = {"architecture", "accuracy", "detections", "cost", "health", "settings", "origin"}


@pytest.mark.parametrize(
    ("state", "sentence", "absent"),
    [
        ("begun", "Begun; no stage has ended.", set(SECTIONS)),
        ("half screened", "Screening unfinished, done are backbone", set(SECTIONS)),
        ("screened", "Screened; not searched.", UNSEARCHED | {"search", "alphas"}),
        ("searching", "Search unfinished after 3 of 4 epochs", UNSEARCHED),
        ("searched", "Searched; not retrained.", {"accuracy", "detections", "settings"}),
        ("retraining", "Retraining unfinished after 1 of 2 epochs", {"accuracy", "detections", "settings"}),
        ("retrained", "Retrained and evaluated.", {"detections", "settings"}),
    ],
)
def test_every_state_has_a_page_with_every_part(tmp_path, state, sentence, absent):
    page = Page(write_report(write_run(tmp_path / "run", state=state)).read_text())
    assert [attributes["id"] for _, attributes, _ in page.all("section")] == SECTIONS
    for target in SECTIONS:
        assert page.all("a", href=f"#{target}")
        assert page.text(f"{target}-title")
    assert page.all("p", class_="state")[0][2].strip().startswith(sentence)
    parts = (each[1] for each in page.elements if each[0] == "section" or each[1].get("class") == "absent")
    section, saying = "", set()
    for attributes in parts:
        section = attributes.get("id", section)
        saying |= {section} if "id" not in attributes else set()
    assert saying == absent
    assert bool(page.all("svg", class_="architecture")) == (STATES.index(state) >= 4)


def test_an_architecture_from_elsewhere_and_given_sub_spaces(tmp_path):
    run = RunDirectory(write_run(tmp_path / "run"))
    for component in ("backbone", "neck", "head"):
        run.scores(component).unlink()
    page = Page(write_report(run.path, images=0).read_text())
    assert "This run was not screened; its sub search spaces were given" in page.text("screening")
    for file in (run.alphas, run.search_metrics, run.sub_spaces, run.metadata, run.metrics):
        file.unlink()
    page = Page(write_report(run.path, images=0).read_text())
    assert "Retraining unfinished after 1 of 2 epochs" in page.all("p", class_="state")[0][2]
    assert "not noted" in page.text("origin")


# ------------------------------------------------------------------------------------------------------- self-contained


def test_why_there_is_no_screening(tmp_path):
    whole, given = load_search_space("full"), load_search_space("hit_detector")
    run = RunDirectory(write_run(tmp_path / "given", state="half screened"))
    save_search_space(given, run.sub_spaces)  # as a resume with --sub-spaces does
    text = Page(write_report(run.path, images=0).read_text()).text("screening")
    assert f"The neck was not screened here; its operators were given: {', '.join(given['neck'])}." in text
    assert "The backbone" not in text

    save_search_space({**whole, "head": whole["head"][:8]}, tmp_path / "space.yml")
    half = write_run(tmp_path / "half", state="half screened", overrides={"space": str(tmp_path / "space.yml")})
    text = Page(write_report(half, images=0).read_text()).text("screening")
    assert "The screening of the neck has not ended." in text
    assert "The head needs no screening: it has no more operators than are kept." in text

    save_search_space({component: names[:8] for component, names in whole.items()}, tmp_path / "space.yml")
    begun = write_run(tmp_path / "begun", state="begun", overrides={"space": str(tmp_path / "space.yml")})
    save_search_space(load_search_space(tmp_path / "space.yml"), RunDirectory(begun).sub_spaces)
    assert "This run needed no screening" in Page(write_report(begun, images=0).read_text()).text("screening")


def test_nothing_is_fetched_and_nothing_runs_but_the_slider(html, page):
    for _, attributes, _ in page.elements:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "xlink:href", "data", "srcset"):
            assert attributes.get(name, "#").startswith(("#", "data:"))
    assert re.findall(r"url\((?!#)", html) == []
    assert "@import" not in html
    assert "http:" not in html
    assert "https:" not in html
    assert [each[1].get("type") for each in page.all("script")] == ["application/json", None]


def test_it_says_what_charts_show(page):
    drawings = [each[1] for each in page.all("svg") if each[1].get("aria-hidden") != "true"]
    assert len(drawings) > 15
    assert all(each["role"] == "img" and len(each["aria-label"]) > 20 for each in drawings)
    assert len(page.all("table")) == len(page.all("caption"))
    regions = page.all("div", role="region")
    assert all(each[1]["tabindex"] == "0" and each[1]["aria-label"] for each in regions)
    ids = [each[1]["id"] for each in page.elements if "id" in each[1]]
    assert len(ids) == len(set(ids))
    levels = [int(each[0][1]) for each in page.elements if re.fullmatch("h[1-6]", each[0])]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_a_large_run_is_a_small_page(tmp_path):
    paths = {f"data.{split}_{kind}": "x" for split in ("train", "val") for kind in ("ann", "images")}
    run = write_run(tmp_path / "run", config="coco_release", overrides=paths, epochs=24)
    assert write_report(run, images=0).stat().st_size < 2e6


# -------------------------------------------------------------------------------------------------- numbers as in files


def test_average_precisions(run, page):
    content = read_json(run / "metrics.json")
    _, before, after = page.rows("Percent")
    assert before[1:] == [percent(content["metrics_before_training"][name]) for name in AVERAGE_PRECISIONS]
    assert after[1:] == ["12.3", "23.4", "10.0", "5.0", "20.0", "–"]


def test_headline_figures(run, page):
    content = read_json(run / "metrics.json")
    text = " ".join(page.all("dl", class_="tiles")[0][2].split())
    tiles = dict(re.findall(r"(mAP|Parameters|Cost|λ|Time) ([\d.]+)", text))
    assert tiles == {
        "mAP": "12.3",
        "Parameters": number(content["params_m"]),
        "Cost": number(content["gflops"]),
        "λ": "0.01",
        "Time": "42.8",
    }


def test_numbers_of_the_search(run, page):
    expected = rows_of(run / "search" / "metrics.csv")
    head, *rows = page.rows("search/metrics.csv")
    assert head == list(expected[0])
    assert len(rows) == len(expected) == 4
    for shown, row in zip(rows, expected, strict=True):
        assert shown[0] == str(int(row["epoch"]) + 1)
        assert [float(cell) for cell in shown[1:]] == pytest.approx([float(row[name]) for name in head[1:]], rel=6e-4)


def test_probabilities(run, page):
    expected = rows_of(run / "search" / "alphas.csv")
    titles = {each[1]["title"] for each in page.all("td") if "title" in each[1]}
    last = [row for row in expected if row["epoch"] == "3"]
    assert titles == {
        "{label}, {operator}: probability {probability:.4f}, alpha {alpha:.4f}".format(
            **row | {name: float(row[name]) for name in ("probability", "alpha")}
        )
        for row in last
    }
    data = json.loads(page.all("script", type="application/json")[0][2])
    assert data["epochs"] == [1, 2, 3, 4]
    for epoch, found in enumerate(data["values"]):
        values = Counter(tuple(value) for row in found.values() for value in row)
        assert values == Counter(
            (round(float(row["probability"]), 4), round(float(row["alpha"]), 4))
            for row in expected
            if row["epoch"] == str(epoch)
        )
    layers = len({row["label"] for row in expected})
    assert sum("best" in each[1].get("class", "").split() for each in page.all("td")) == layers


def test_removals(run, page):
    for component in ("backbone", "neck", "head"):
        expected = rows_of(run / "screening" / f"{component}.csv")
        _, *rows = page.rows(f"{component}: which operators left")
        for epoch, removed, left in rows[:-1]:
            active = [row for row in expected if int(row["epoch"]) + 1 == int(epoch)]
            assert removed.split(", ") == [row["operator"] for row in active if row["removed"] == "1"]
            assert int(left) == sum(row["removed"] == "0" for row in active)
        kept = [row["operator"] for row in expected if row["epoch"] == "2" and row["removed"] == "0"]
        assert rows[-1] == ["kept", ", ".join(kept), "8"]


def test_cost_by_both_conventions(run, page):
    architecture = load_architecture(run / "architecture.json")
    for convention in ("macs", "paper"):
        model = CostModel(architecture.skeleton, architecture.num_classes, convention=convention)
        total = model.architecture(architecture.sample)["total"]
        start = next(i for i, each in enumerate(page.elements) if f"count-{convention}" in each[1].get("class", ""))
        view = Page.__new__(Page)
        view.elements = page.elements[start:]
        assert view.rows("By component")[-1] == ["total", number(total.flops / 1e9), number(total.params / 1e6)]
        layers = {row[0]: row[1:] for row in view.rows("By layer;")[1:]}
        assert len(layers) == len(model.rows(architecture.sample))
        for _, layer, name, cost in model.rows(architecture.sample):
            assert layers[layer] == [name or "not searched", number(cost.flops / 1e9), number(cost.params / 1e6)]


def test_warnings_in_full(page):
    place, text = WARNING.rsplit(": ", 1)
    assert [each[2] for each in page.all("ul", class_="warnings")] == [f"{place.replace(': ', ', ')} {text}"]
    assert "1 warning about" in page.all("p", class_="state")[0][2]


def test_every_warning_that_is_shown_is_counted(tmp_path):
    run = RunDirectory(write_run(tmp_path / "run"))
    run.note_warnings("screening", ["the loss has not fallen"])
    agreement = {"supernets": 2, "operators": 8, "kept": 4, "spearman": 0.1, "spearman_p": 0.4}
    write_reliability(run.reliability("neck"), Reliability(**agreement, common=2, chance=2, common_p=0.5))
    page = Page(write_report(run.path, images=0).read_text())
    shown = {section: page.text(section).count("says nothing about your data") for section in ("screening", "health")}
    assert shown == {"screening": 1, "health": 0}
    links = {each[1]["href"]: each[2] for each in page.all("a") if "warning" in each[2]}
    assert links == {
        "#health": "2 warnings about the signs of health.",
        "#screening": "1 warning about the screening.",
    }


def test_budget_is_drawn(tmp_path):
    for key, unit in (("gflops", "GFLOPs"), ("params_m", "M parameters")):
        run = write_run(tmp_path / key, overrides={f"search.budget.{key}": 0.5})
        page = Page(write_report(run, images=0).read_text())
        assert f"Budget 0.5 {unit}" in " ".join(page.all("dl", class_="tiles")[0][2].split())
        marked = [each[1]["aria-label"] for each in page.all("svg") if "budget 0.5" in each[1].get("aria-label", "")]
        # FLOPs keep to a budget by one convention only, parameters are the same in both.
        assert len(marked) == {"gflops": 1, "params_m": 2}[key]
        assert all(label.startswith(unit) for label in marked)


# ---------------------------------------------------------------------------------------------------------- the drawing


@pytest.mark.parametrize("config", ["tiny", "coco_release", "coco_paper", "digits_retinanet"])
def test_every_operator_is_drawn_with_its_numbers(tmp_path, draw, published, config):
    paths = {f"data.{split}_{kind}": "x" for split in ("train", "val") for kind in ("ann", "images")}
    run = write_run(tmp_path / "run", config=config, overrides=paths if config.startswith("coco") else None, epochs=12)
    architecture = load_architecture(run / "architecture.json")
    page = Page(f"<div>{draw_architecture(architecture)}</div>")
    blocks = [each for each in page.all("g") if each[1]["class"].startswith("block fam-")]
    expected = []
    for label, name in architecture.sample.items():
        family, kernel, *rest = name.split("_")
        size = kernel[1:]
        expected.append((f"{label}: {name}", f"fam-{family}", " ".join([family.upper(), f"{size}×{size}", *rest])))
    found = [(each[2].split(",")[0], each[1]["class"].split()[1], each[2].rsplit("GFLOPs", 1)[1]) for each in blocks]
    assert sorted(found) == sorted(expected)
    width, height = map(float, page.all("svg")[0][1]["viewbox"].split()[2:])
    for _, attributes, _ in page.all("rect"):
        assert 0 <= float(attributes["x"]) <= float(attributes["x"]) + float(attributes["width"]) <= width
        assert 0 <= float(attributes["y"]) <= float(attributes["y"]) + float(attributes["height"]) <= height


# -------------------------------------------------------------------------------------------------------- hostile names

EVIL = "<script>alert(1)<!--\"'&{{7*7}}"


def test_names_in_files_are_text(tmp_path):
    name = EVIL
    run = RunDirectory(write_run(tmp_path / name, classes=(f"{EVIL}</script>", "\ud800", "b")))
    for file, old in ((run.scores("neck"), "sep_k3_d1"), (run.alphas, "backbone/l01"), (run.alphas, "ir_k3_d1_e6")):
        quoted = '"{}"'.format(f"{old}</script>{EVIL}".replace('"', '""'))
        file.write_text(file.read_text().replace(f",{old},", f",{quoted},"))
    metadata = read_json(run.metadata)
    metadata.update(warnings={EVIL: [EVIL]}, git_commit=EVIL, machine=EVIL, command=[EVIL], versions={EVIL: EVIL})
    metadata["seconds"] = {EVIL: 1.0}
    write_json(run.metadata, metadata)
    html = write_report(run.path, images=0).read_text()
    page = Page(html)
    assert len(page.all("script")) == 2
    assert page.all("h1")[0][2].strip() == name
    for part in ("screening", "alphas", "health", "origin"):
        assert EVIL in page.text(part)
    assert "49" not in page.text("origin").replace(metadata["started"], "")
    data = json.loads(page.all("script", type="application/json")[0][2])
    assert len(data["values"]) == 4
    comparison = Page(write_comparison([run.path], tmp_path / "all.html").read_text())
    assert not comparison.all("script")
    assert EVIL in comparison.text("table-title") or any(EVIL in each[2] for each in comparison.all("th"))


# --------------------------------------------------------------------------------------------------------------- damage


def spoil_rows(path, column, value):
    rows = rows_of(path)
    rows[1][column] = value
    lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
    path.write_text("\n".join(lines))


DAMAGE = {
    "config": (lambda run: run.config.write_text("[1, 2]"), "config.yml"),
    "yaml": (lambda run: run.config.write_text("a: [1"), "config.yml"),
    "settings": (lambda run: run.config.write_text("seed: x"), "config.yml"),
    "metadata": (lambda run: run.metadata.write_text("{"), "metadata.json"),
    "seconds": (lambda run: write_json(run.metadata, {"seconds": {"search": "long"}}), "seconds.search"),
    "infinite": (lambda run: run.metadata.write_text('{"seconds": {"search": -1}}'), "seconds.search"),
    "columns": (lambda run: run.scores("neck").write_text("a,b\n1,2\n"), "neck.csv"),
    "score": (lambda run: spoil_rows(run.scores("neck"), "score", "nan"), "line 3"),
    "epoch": (lambda run: spoil_rows(run.search_metrics, "epoch", "-1"), "line 3"),
    "metric": (lambda run: spoil_rows(run.search_metrics, "val_loss", "good"), "val_loss"),
    "cells": (lambda run: run.search_metrics.write_text("epoch,loss\n1\n"), "metrics.csv"),
    "probability": (lambda run: spoil_rows(run.alphas, "probability", "1.5"), "probability"),
    "bytes": (lambda run: run.alphas.write_bytes(b"\xff\xfe"), "alphas.csv"),
    "quotes": (lambda run: run.alphas.write_text('epoch,"label\n'), "alphas.csv"),
    "space": (lambda run: run.sub_spaces.write_text("backbone: []"), "sub_spaces.yml"),
    "architecture": (lambda run: run.architecture.write_text("{}"), "architecture.json"),
    "result": (lambda run: run.metrics.write_text("[]"), "metrics.json"),
    "pauses": (lambda run: write_rungs(run.rung_table, [PausedTraining(1, 1, "a", math.nan, True)]), "rungs.csv"),
    "mAP": (
        lambda run: write_json(run.metrics, {"params_m": 1, "gflops": 1, "shape": [1, 1], "metrics": {}}),
        "metrics.mAP",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_files_are_refused_in_a_line(tmp_path, capsys, kind):
    spoil, name = DAMAGE[kind]
    run = RunDirectory(write_run(tmp_path / "run"))
    spoil(run)
    for command in (["report", str(run.path)], ["compare", str(run.path), "--out", str(tmp_path / "all.html")]):
        assert cli.main(command) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1
        assert name in err
    assert not list(tmp_path.rglob("*.html"))


def test_commands(run, tmp_path, capsys):
    out = tmp_path / "page.html"
    tensorboard = tmp_path / "events"
    command = ["report", str(run), "--out", str(out), "--images", "0", "--tensorboard", str(tensorboard)]
    assert cli.main(command) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == str(out)
    assert [str(file) for file in tensorboard.iterdir()] == said[1:]
    assert cli.main(command) == 2
    assert "exists already" in capsys.readouterr().err
    assert cli.main([*command, "--force"]) == 0
    for wrong in ("-1", "41"):
        assert cli.main(["report", str(run), "--images", wrong]) == 2
        assert "0 to 40" in capsys.readouterr().err
    assert cli.main(["report", str(tmp_path)]) == 2
    assert "is not a run directory" in capsys.readouterr().err
    assert cli.main(["report", str(tmp_path / "none")]) == 2
    assert "none: no such run directory" in capsys.readouterr().err
    assert cli.main(["compare", str(run), str(run), "--out", str(tmp_path / "all.html")]) == 2
    assert "is named twice" in capsys.readouterr().err
    assert cli.main(["report", str(run), "--out", str(out / "below.html"), "--images", "0"]) == 2
    assert "cannot be written" in capsys.readouterr().err


# ----------------------------------------------------------------------------------------------------------- comparison


def test_comparison(tmp_path):
    states = {"first": "retrained", "second": "retrained", "third": "searching"}
    same = {"data.seed": 0}
    runs = [
        write_run(tmp_path / name, seed=seed, state=state, overrides=same)
        for seed, (name, state) in enumerate(states.items())
    ]
    page = Page(write_comparison(runs, tmp_path / "all.html").read_text())
    contents = {path.name: read_json(path / "metrics.json") for path in runs[:2]}
    points = [(content["gflops"], content["mAP"]) for content in contents.values()]
    front = [list(contents)[index] for index in pareto_front(points)]
    _, *rows = page.rows("Average precisions")
    for row, name in zip(rows, states, strict=True):
        assert row[0] == (f"{name} front" if name in front else name)
        content = contents.get(name)
        assert row[1] == (percent(content["mAP"]) if content else "–")
        assert row[6:8] == ([number(content["params_m"]), number(content["gflops"])] if content else ["–", "–"])
        assert row[8] == ("42.8 s" if content else "–")
        assert row[9] == str(list(states).index(name))
    (scatter,) = page.all("svg")
    assert scatter[1]["aria-label"].endswith(f"by ascending cost: {', '.join(front)}")
    assert sorted(each[2] for each in page.all("text", class_="point-name")) == ["first", "second"]
    assert len(page.all("circle", class_="point best")) == len(front)


def test_a_front_is_of_the_same_images_and_may_be_of_several_input_sizes(tmp_path):
    one = write_run(tmp_path / "one")
    small = write_run(tmp_path / "small", overrides={"skeleton.input_size": [128, 128]})
    html = write_comparison([one, small], tmp_path / "sizes.html").read_text()
    assert "and so the front compares detectors together with their inputs" in html
    assert "On the Pareto front" in html
    other = write_run(tmp_path / "other", overrides={"data.val": 5})
    page = Page(write_comparison([one, other], tmp_path / "images.html").read_text())
    (sentence,) = [each[2] for each in page.all("p", class_="absent")]
    assert sentence.startswith("No Pareto front is drawn: the runs were evaluated on different images (the embedded")
    assert "digits, 5 of " in sentence
    assert not page.all("circle", class_="point best")
    assert len(page.all("circle", class_="point")) == 2
    assert not page.all("polyline", class_="front")
    assert not page.all("tr", class_="front")


def test_numbers_of_images_that_the_run_has_noted(tmp_path):
    run = RunDirectory(write_run(tmp_path / "run", overrides={"data.builtin": None, "data.root": "/data/pond"}))
    html = write_report(run.path, images=0).read_text()
    assert "<dd>/data/pond, for training and validation</dd>" in html
    run.note_images(131, 33)
    html = write_report(run.path, images=0).read_text()
    assert "<dd>/data/pond: 131 for training, 33 for validation</dd>" in html


def test_comparison_of_runs_without_results(tmp_path):
    run = write_run(tmp_path / "run", state="screened")
    page = Page(write_comparison([run], tmp_path / "all.html").read_text())
    assert "no accuracy to draw" in page.all("p", class_="absent")[0][2]


# -------------------------------------------------------------------------------------------------------------- studies

STUDY_ROWS = [
    {"architecture": "searched", "mean_mAP": 0.56312607579804, "deviation": None, "seeds": 3},
    {"architecture": "random-01", "mean_mAP": 0.5, "deviation": 0.0125, "seeds": 3},
]


def write_study(run, kind="random", rows=STUDY_ROWS):
    """The files that a study leaves in its run directory."""
    write_csv(run / f"{kind}.csv", list(rows[0]), rows)
    write_json(run / f"{kind}.json", {"study": kind, "rows": rows, "summary": {"searched": 0.563}})


def test_a_study_has_a_page_of_its_table_and_figure(tmp_path):
    run = write_run(tmp_path / "study", state="begun")
    write_study(run)
    (run / "notes.json").write_text("{}")
    (run / "notes.csv").write_text("a\n1\n")
    page = Page(write_report(run).read_text())
    assert page.all("p", class_="state")[0][2] == "A finished study: random."
    assert [attributes["id"] for _, attributes, _ in page.all("section")] == ["findings", "settings", "origin"]
    assert page.rows("random.csv") == [
        ["architecture", "mean mAP", "deviation", "seeds"],
        ["searched", "0.5631", "–", "3"],
        ["random-01", "0.5", "0.0125", "3"],
    ]
    assert "random.png is not there" in page.text("findings")
    Image.new("RGB", (40, 30)).save(run / "random.png")
    html = write_report(run).read_text()
    [source] = re.findall(r'<img src="data:image/png;base64,([^"]*)" alt="[^"]{20,}">', html)
    assert base64.b64decode(source) == (run / "random.png").read_bytes()
    assert "is not there" not in html


def test_a_study_that_has_not_finished_says_so(tmp_path):
    run = RunDirectory(write_run(tmp_path / "study", state="begun"))
    write_json(run.metadata, {**read_json(run.metadata), "command": ["hitdet-nni", "study", "random"]})
    page = Page(write_report(run.path).read_text())
    assert page.all("p", class_="state")[0][2] == "A study, going on or interrupted."
    assert "has no table yet" in page.text("findings")


def test_a_damaged_study_is_refused_in_a_line(tmp_path, capsys):
    run = write_run(tmp_path / "study", state="begun")
    write_study(run)
    write_json(run / "random.json", {"study": "random", "rows": []})
    assert cli.main(["report", str(run)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "random.json: rows" in line
    assert not (run / "report.html").exists()


# --------------------------------------------------------------------------------------------- detections, real weights


def test_why_there_are_no_images(tmp_path, capsys, caplog):
    lost = write_run(tmp_path / "lost")
    damaged = write_run(tmp_path / "damaged", overrides={"data.train": 16, "data.val": 4})
    paths = {f"data.{split}_{kind}": str(tmp_path / "gone") for split in ("train", "val") for kind in ("ann", "images")}
    moved = write_run(tmp_path / "moved", overrides={"data.builtin": None, **paths})
    for run in (damaged, moved):
        (run / "retrain" / "weights.pth").write_bytes(b"no weights")
    for run, why in (
        (lost, "The weights of a retrained detector are not there."),
        (damaged, "weights.pth: cannot be read as weights"),
        (moved, f"could not be run on validation images: {tmp_path / 'gone'}: cannot be read"),
    ):
        caplog.clear()
        assert cli.main(["report", str(run)]) == 0
        assert capsys.readouterr().out == f"{run / 'report.html'}\n"
        [warning] = caplog.messages
        assert warning.startswith(f"{run}: the page shows no detections. ")
        assert why in warning
        assert why in Page((run / "report.html").read_text()).text("detections")


def test_a_page_that_lacks_nothing_has_no_warning(tmp_path, caplog):
    write_report(write_run(tmp_path / "asked for none"), images=0)
    write_report(write_run(tmp_path / "begun", state="searched"))
    assert caplog.messages == []


def test_images_are_named_as_in_the_annotations(tmp_path, tiny_data):
    names = ["cam 1/bild 0.png", "cam 2/bild 0.png"]
    document = read_json(tiny_data.val.ann)
    document["images"] = document["images"][:2]
    kept = {each["id"]: name for each, name in zip(document["images"], names, strict=True)}
    for each in document["images"]:
        file = tmp_path / "images" / kept[each["id"]]
        file.parent.mkdir(parents=True)
        shutil.copy(tiny_data.val.images / each["file_name"], file)
        each["file_name"] = kept[each["id"]]
    document["annotations"] = [each for each in document["annotations"] if each["image_id"] in kept]
    write_json(tmp_path / "all.json", document)
    paths = {f"data.{split}_ann": str(tmp_path / "all.json") for split in ("train", "val")}
    paths |= {f"data.{split}_images": str(tmp_path / "images") for split in ("train", "val")}
    run = write_run(
        tmp_path / "run", overrides={"data.builtin": None, **paths}, classes=tiny_data.val.classes_in_file_order
    )
    architecture = load_architecture(run / "architecture.json")
    save_weights(
        build_detector(architecture.skeleton, architecture.sample, len(architecture.provenance.classes)),
        run / "retrain" / "weights.pth",
    )
    page = Page(write_report(run).read_text())
    captions = [each[2] for each in page.all("figcaption") if each[2].endswith(".png")]
    assert captions == names
    assert len(page.all("svg", class_="image")) == 4


@pytest.mark.slow
def test_a_real_retraining(tmp_path, capsys):
    run = write_run(tmp_path / "run", state="searched", overrides={"data.train": 16, "data.val": 4})
    command = ["retrain", "--config", "tiny", "--out", str(run), "--architecture", str(run / "architecture.json")]
    overrides = ["data.train=16", "data.val=4", "search.epochs=4"]
    assert cli.main([*command, "--resume", *(part for each in overrides for part in ("--set", each))]) == 0
    capsys.readouterr()
    found, content = read_run(run), read_json(run / "metrics.json")
    assert [epoch for epoch, _ in found.training.evaluations] == [0, 1, 2]
    assert found.training.evaluations[0][1] == pytest.approx(content["metrics_before_training"], abs=5e-4)
    assert found.training.evaluations[-1][1] == pytest.approx(content["metrics"], abs=5e-4)
    assert len(found.training.losses) >= 2
    assert (found.metadata.images.train, found.metadata.images.val) == (16, 4)
    page = Page(write_report(run, images=3).read_text())
    images = page.all("svg", class_="image")
    assert len(images) == 6
    for image in page.all("image"):
        assert base64.b64decode(image[1]["href"].partition(",")[2]).startswith(b"\xff\xd8\xff")
    annotations = json.loads(open_annotations())
    boxes = Counter(each["image_id"] for each in annotations["annotations"])
    truth = Counter(each[1]["class"] for each in page.all("g") if each[1].get("class", "").startswith("box"))
    shown = [each["id"] for each in annotations["images"]]
    assert truth["box truth"] == sum(boxes[shown[k * 4 // 3]] for k in range(3))


def open_annotations():
    from hitdet_nni.data.sources import open_data

    return open_data(load_settings("tiny", {"data.train": 16, "data.val": 4}).data, 0).val.ann.read_text()


@pytest.mark.slow
def test_a_page_without_weights_loads_no_mmdet(run, tmp_path):
    code = (
        "import sys; from hitdet_nni import cli; "
        f"assert cli.main(['report', {str(run)!r}, '--out', {str(tmp_path / 'page.html')!r}]) == 0; "
        "print([m for m in ('mmdet', 'mmengine', 'nni', 'pytorch_lightning') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[-1] == "[]"
    assert found.stderr == f"{run}: the page shows no detections. The weights of a retrained detector are not there.\n"


def test_architectures_that_were_tried_are_shown(tmp_path):
    run = write_run(tmp_path / "by-samples", overrides={"search.decode": "samples"})
    found = RunDirectory(run)
    sample = load_architecture(found.architecture).sample
    losses = [3.5, 2.25, 2.5, 2.75, 3.0, 3.25, 2.0, 2.6, 2.7, 900.0]
    tried = [
        TriedArchitecture(loss, loss + 0.5 * (loss != 2.25), 0.1 * place, 0.2, loss == 2.25, sample)
        for place, loss in enumerate(losses, 1)
    ]
    write_samples(found.samples, tried)
    page = Page(write_report(run, images=0).read_text())
    circles = page.all("circle", class_="point")
    assert len(circles) == 8
    assert len(page.all("circle", class_="point best")) == 1
    text = page.text("search")
    assert "10 architectures by the weights of the supernet" in text
    assert "The found one, number 2, has the least loss with what its cost adds: 2.25, 2.25 with cost. 1 of a" in text
    assert "decided by them, but by the architectures that were tried" in page.text("alphas")


def test_what_was_chosen_among_by_trainings_is_shown(tmp_path):
    run = RunDirectory(write_run(tmp_path / "run"))
    assert "Chosen among" not in write_report(run.path, images=0).read_text()
    rows = [
        (1, 3, "b", 0.5, 1),
        (1, 3, "a", 0.75, 1),
        (1, 3, "<i>", math.inf, 0),
        (2, 6, "a", 0.25, 1),
        (2, 6, "b", 0.4, 0),
    ]
    write_rungs(run.rung_table, [PausedTraining(*values, bool(kept)) for *values, kept in rows])
    assert [astuple(one) for one in read_run(run.path).trainings] == rows
    table = candidate_table(read_run(run.path).trainings)
    assert table.pauses == (3, 6)
    assert [(row.name, row.losses, row.outcome, row.chosen) for row in table.rows] == [
        ("a", ("0.75", "0.25"), "goes on to the end", True),
        ("b", ("0.5", "0.4"), "out after epoch 6", False),
        ("<i>", ("diverged", "–"), "out after epoch 3", False),
    ]
    page = Page(write_report(run.path, images=0).read_text())
    assert page.rows("Chosen among 3")[1] == ["a", "0.75", "0.25", "goes on to the end"]


def test_a_front_and_the_exported_file_are_shown(tmp_path):
    run = write_run(tmp_path / "with-front")
    found = RunDirectory(run)
    architecture = load_architecture(found.architecture)
    other = {**architecture.sample, "head/l01": "conv_k3_d1"}
    rows = [
        FrontRow("point-01", "model", 2.5, 0.05, 0.2, 3.0, "gflops", True, other),
        FrontRow("other-01", "search", 2.75, 0.06, 0.2, 4.0, "gflops", False, architecture.sample),
        FrontRow("point-02", "sample", 2.0, 0.07, 0.3, 5.0, "gflops", True, {**other, "head/l01": "sep_k3_d1"}),
        FrontRow("other-02", "sample", 90.0, 0.08, 0.3, 5.0, "gflops", False, {**other, "head/l02": "sep_k3_d1"}),
    ]
    found.front.mkdir()
    write_front(found.front_table, rows)
    (found.front / "budget-0.055.json").write_text("{}")
    add_benchmark(found.benchmark, measured("found.onnx", 4.25))
    page = Page(write_report(run, images=0).read_text())
    text = page.text("search")
    assert "4 architectures, compared by the weights of the supernet" in text
    assert "What the search found has loss 2.75 at 0.06 GFLOPs." in text
    assert "1 of a larger loss are beyond the upper end" in text
    assert len(page.all("circle", class_="ring")) == 1
    assert len(page.all("circle", class_="point best")) == 2
    labels = [each[1]["aria-label"] for each in page.all("svg") if "aria-label" in each[1]]
    assert "loss against GFLOPs of 3 architectures, 2 of them on the Pareto front" in labels
    _, first, second = page.rows("front/front.csv")
    assert (first[0], second[0]) == ("point-01 within 0.055 GFLOPs", "point-02")
    assert tile(page) == (
        "4.25 ms an image in the median (5.5 at the 90th percentile): found.onnx, onnxruntime 1.0, 2 threads, a phone; "
        "mAP of this file 43.2 percent"
    )
    without, other = write_run(tmp_path / "without", seed=1), RunDirectory(write_run(tmp_path / "other", seed=2))
    other.front.mkdir()
    timed = [replace(row, unit="latency_ms") for row in rows if row.on_front]
    write_front(other.front_table, timed)
    pages = Page(write_comparison([run, without, other.path], tmp_path / "fronts.html").read_text())
    [drawn] = [each[1]["aria-label"] for each in pages.all("svg") if "Fronts" in each[1].get("aria-label", "")]
    assert "with-front from 2.5 to 2" in drawn
    assert "1 of other units are left out" in pages.all("p", class_="remark")[0][2]


def measured(file, median, precision=None, runtime="onnxruntime 1.0"):
    """What `benchmark` has measured of a file."""
    how = {"runtime": runtime, "threads": 2, "machine": "a phone", "rounds": 7, "pause_ms": 500, "runs": 28}
    times = Percentiles(p50=median, p90=5.5, p99=9.0)
    metrics = dict.fromkeys(PRECISIONS, 0.4321)
    about = {"file": file, "precision": precision, "sha256": "0" * 64, "images": 4}
    return FileBenchmark(**about, metrics=metrics, latency_ms=times, **how)


def tile(page):
    """The headline figure of the exported files."""
    tiles = " ".join(page.all("dl", class_="tiles")[0][2].split())
    return re.search(r"Exported file (.*? percent)\b", tiles)[1]


def test_every_exported_file_is_named_with_its_precision(tmp_path):
    run, without = write_run(tmp_path / "run"), write_run(tmp_path / "without", seed=1)
    file = RunDirectory(run).benchmark
    for one in (measured("a.onnx", 4.0, "fp32"), measured("b.xml", 2.0, "int8"), measured("a.onnx", 3.0, "fp32")):
        add_benchmark(file, one)
    page = Page(write_report(run, images=0).read_text())
    conditions = "onnxruntime 1.0, 2 threads, a phone"
    rows = [["a.onnx", "fp32", "43.2", "3", "5.5", conditions], ["b.xml", "int8", "43.2", "2", "5.5", conditions]]
    assert page.rows("Exported files")[1:] == rows
    assert tile(page).startswith("2 ms an image in the median")
    assert "b.xml (int8), the fastest of 2" in tile(page)
    compared = Page(write_comparison([run, without], tmp_path / "all.html").read_text())
    assert compared.rows("Exported files")[1:] == [["run", *row] for row in rows]
    assert "Milliseconds" not in " ".join(each[2] for each in compared.all("p", class_="absent"))
    add_benchmark(file, measured("b.xml", 2.0, "int8", runtime="openvino 1.0"))
    compared = Page(write_comparison([run, without], tmp_path / "all.html").read_text())
    assert "Milliseconds were measured in different ways" in compared.all("p", class_="absent")[-1][2]


def test_the_goal_of_a_search_is_not_that_of_a_retraining(tmp_path):
    """What was searched elsewhere says nothing of the settings that it is retrained with."""
    searched = RunDirectory(write_run(tmp_path / "searched", overrides={"search.budget": {"gflops": 2.5}}))
    other = RunDirectory(write_run(tmp_path / "other", state="begun", overrides={"search.budget": {"gflops": 2.5}}))
    for file in (searched.architecture, searched.metrics):
        shutil.copy(file, other.path)
    goals = []
    for run in (searched, other):
        page = Page(write_report(run.path, images=0).read_text())
        tiles = " ".join(page.all("dl", class_="tiles")[0][2].split())
        drawn = any("budget 2.5" in each[1].get("aria-label", "") for each in page.all("svg"))
        goals.append(("Budget 2.5 GFLOPs" in tiles, drawn, "λ" in tiles))
    assert goals == [(True, True, False), (False, False, False)]
    page = Page(write_comparison([searched.path, other.path], tmp_path / "all.html").read_text())
    assert [row[10] for row in page.rows("Average precisions")[1:]] == ["2.5 GFLOPs", "–"]


def test_captions_of_detections_stay_in_the_drawing():
    from hitdet_nni.report.detections import Box, _drawn

    boxes = [
        Box((600, 2, 640, 90), 2, "Käfer", 0.99),
        Box((601, 3, 640, 80), 1, "fish", 0.7),
        Box((0, 0, 9, 9), 12, "a"),
    ]
    page = Page(f"<div>{_drawn((640, 480), 'data:,', boxes, 'found', 'one')}</div>")
    width, height = map(float, page.all("svg")[0][1]["viewbox"].split()[2:])
    captions = page.all("g", class_="caption")
    assert {each[2] for each in captions} == {"Käfer 0.99" * 2, "fish 0.70" * 2, "a" * 2}  # tooltip and text
    grounds = [each[1] for each in page.all("rect") if "fill" in each[1]]
    for ground in grounds:
        x, y, long, tall = (float(ground[name]) for name in ("x", "y", "width", "height"))
        assert 0 <= x < x + long <= width + 0.01
        assert 0 <= y < y + tall <= height + 0.01
    frames = page.all("g", class_="box found")
    assert len(frames) == len(grounds) == 3
    assert len({ground["fill"] for ground in grounds}) == 2  # class 12 has the colour of class 2
