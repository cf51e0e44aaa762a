"""What pages are made of: the Pareto front, axes, labels, tables, logs, differences of settings, event files."""

import csv
import random
import re
from itertools import pairwise, product
from pathlib import Path

import pytest
from report_runs import write_run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

from hitdet_nni.config.settings import load_settings
from hitdet_nni.cost.pareto import pareto_front
from hitdet_nni.errors import InputError
from hitdet_nni.loggers import packages
from hitdet_nni.loggers.tensorboard import write_scalars
from hitdet_nni.report.axes import Scale, number, span
from hitdet_nni.report.comparison import unique_names
from hitdet_nni.report.config_view import config_view, shipped_base
from hitdet_nni.report.heat_map import MAX_VALUES, heat_maps
from hitdet_nni.report.screening_chart import LINE_HEIGHT, show_screening, spread
from hitdet_nni.report.search_curves import health_charts
from hitdet_nni.report.summary import images_of, validation_of
from hitdet_nni.report.warning_kinds import warning_kinds
from hitdet_nni.runs.reading import ImageCounts
from hitdet_nni.runs.run_directory import RunDirectory
from hitdet_nni.runs.tables import Alpha, Score, append_metrics, read_metrics, read_scores
from hitdet_nni.runs.training_log import read_training_log


def rows_of(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def test_pareto_front_in_closed_form():
    assert pareto_front([]) == []
    assert pareto_front([(1, 5)]) == [0]
    # cheaper and better; equal cost, worse; dearer, no better; dearer and better; the same point twice
    assert pareto_front([(2, 5), (1, 6), (1, 4), (3, 6), (4, 9), (4, 9)]) == [1, 4, 5]


def test_pareto_front_against_its_definition():
    rng = random.Random(0)
    points = [(rng.randrange(12), rng.randrange(12)) for _ in range(80)]

    def beaten(one):
        return any(o != one and o[0] <= one[0] and o[1] >= one[1] for o in points)

    expected = [index for index, point in enumerate(points) if not beaten(point)]
    front = pareto_front(points)
    assert sorted(front) == expected
    assert [points[index][0] for index in front] == sorted(points[index][0] for index in front)


def test_epochs_of_a_long_search_are_thinned():
    row = {f"conv_k{2 * k + 1}_d1": Alpha(0.0, 1 / 32) for k in range(32)}
    found = heat_maps({epoch: {f"backbone/l{k:02d}": row for k in range(20)} for epoch in range(1000)})
    assert len(found.epochs) * 32 * 20 <= MAX_VALUES
    assert len(found.epochs) > 100
    assert found.epochs[0] == 1
    assert found.epochs[-1] == found.all_epochs == 1000
    assert len(set(found.epochs)) == len(found.epochs)


def test_names_are_told_apart(tmp_path):
    paths = [tmp_path / "a" / "run", tmp_path / "b" / "run", tmp_path / "other"]
    assert unique_names(paths[:1]) == ["run"]
    assert unique_names(paths[:2]) == ["a/run", "b/run"]
    assert unique_names([paths[0], paths[2]]) == ["run", "other"]


def test_scores_are_checked(tmp_path):
    file = tmp_path / "neck.csv"
    file.write_text("epoch,operator,score,rank,removed\n0,a,inf,1,0\n")
    with pytest.raises(InputError, match="line 2: got 'inf'; allowed: a finite number"):
        read_scores(file)


# ----------------------------------------------------------------------------------------------------- settings, charts


def test_differences_from_the_shipped_config(tmp_path):
    settings = load_settings("tiny", {"search.epochs": 5, "data.train": 8})
    view = config_view(settings, ["hitdet-nni", "search", "--config", "tiny"])
    assert {each.key: (each.value, each.shipped) for each in view.changed} == {
        "search.epochs": ("5", "2"),
        "data.train": ("8", "32"),
    }
    own, above = tmp_path / "own.yml", tmp_path / "above.yml"
    above.write_text("extends: digits\n")
    own.write_text("extends: above.yml\nseed: 3\n")
    assert shipped_base(["x", f"--config={own}"]) == "digits"
    assert [each.key for each in config_view(load_settings(own), ["--config", str(own)]).changed] == ["seed"]
    above.write_text("seed: 1\n")
    for unknown in (["--config", str(own)], ["--config", str(tmp_path / "gone.yml")], ["trial.py"], []):
        assert shipped_base(unknown) is None
        assert config_view(settings, unknown).changed == ()


def test_a_section_that_the_shipped_config_leaves_out_is_compared_with_its_defaults(monkeypatch):
    command = ["hitdet-nni", "search", "--config", "tiny"]
    view = config_view(load_settings("tiny", {"search.budget.gflops": 0.25}), command)
    assert [(each.key, each.value, each.shipped) for each in view.changed] == [("search.budget.gflops", "0.25", "null")]
    other = {"search.budget.gflops": 0.25, "search.budget.other_machine": True}
    changed = {each.key: each.shipped for each in config_view(load_settings("tiny", other), command).changed}
    assert changed == {"search.budget.gflops": "null", "search.budget.other_machine": "false"}
    shipped = load_settings("tiny", {"search.budget.gflops": 0.25})
    monkeypatch.setattr("hitdet_nni.report.config_view.load_settings", lambda name: shipped)
    (budget,) = config_view(load_settings("tiny"), command).changed
    assert (budget.key, budget.value) == ("search.budget", "null")
    assert "gflops: 0.25" in budget.shipped


def test_where_images_are_from_and_how_many(tmp_path):
    known, unknown = ImageCounts(train=131, val=33), ImageCounts()
    data = load_settings("tiny").data
    assert images_of(data, unknown) == "the embedded digits, 32 for training, 8 for validation, 96 pixels"
    root = data.model_copy(update={"builtin": None, "root": tmp_path / "a" / ".." / "pond"})
    assert images_of(root, known) == f"{tmp_path / 'pond'}: 131 for training, 33 for validation"
    assert images_of(root, ImageCounts(val=33)) == f"{tmp_path / 'pond'}: 33 for validation"
    assert images_of(root, unknown) == f"{tmp_path / 'pond'}, for training and validation"
    files = {f"{split}_{kind}": Path(f"{split}.{kind}") for split in ("train", "val") for kind in ("ann", "images")}
    paths = data.model_copy(update={"builtin": None, **files, "val_ids": Path("ids.txt")})
    sources = "train.ann for training, val.ann (those of ids.txt) for validation"
    assert images_of(paths, unknown) == sources
    assert images_of(paths, known) == f"{sources}: 131 for training, 33 for validation"


def test_runs_on_the_same_images_are_told_from_others(tmp_path):
    tiny = load_settings("tiny")

    def validation(**changes):
        return validation_of(tiny.model_copy(update={"data": tiny.data.model_copy(update=changes)}))

    files = {"val_ann": Path("val.json"), "val_images": Path("val"), "builtin": None}
    root = {"builtin": None, "root": tmp_path / "a" / ".." / "pond"}
    assert validation(**root) == validation(**{**root, "root": tmp_path / "pond"})
    others = [{}, {"seed": 5}, root, {**root, "val_seed": 1}, {**root, "root": tmp_path / "sea"}, files]
    others.append({**files, "val_ids": Path("ids.txt")})
    assert len({validation(**changes) for changes in others}) == len(others)
    # The embedded images are drawn by the run's seed, unless they have one of their own.
    assert validation_of(tiny.model_copy(update={"seed": 5})) == validation(seed=5)


def test_a_kind_of_warning_is_said_once_with_its_places():
    found = warning_kinds(
        [
            ("screening neck 1", "screening neck 1, epoch 2: all components: 4 batches (threshold 8) are too few"),
            ("search", "search, epoch 3: all components: 5 batches (threshold 8) are too few"),
            ("search", "search, epoch 3: head: conv_k3_d1 costs 0.5 GFLOPs"),
            ("search", "search, epoch 3: neck: conv_k5_d1 costs 0.5 GFLOPs"),
            ("screening neck", "neck: rho -0.01, p 0.5; what is kept says nothing"),
            ("screening head", "head: rho +0.10, p 3e-2; what is kept says nothing"),
            ("odd", "something else"),
            ("odd", "something else"),
        ]
    )
    assert [(kind.text, kind.places) for kind in found] == [
        ("4 to 5 batches (threshold 8) are too few", ("screening neck 1, epoch 2", "search, epoch 3")),
        ("conv_k3_d1 costs 0.5 GFLOPs", ("search, epoch 3, head",)),
        ("conv_k5_d1 costs 0.5 GFLOPs", ("search, epoch 3, neck",)),
        ("rho -0.01 to +0.10, p 3e-2 to 0.5; what is kept says nothing", ("screening neck", "screening head")),
        ("something else", ("odd",)),
    ]


def test_a_screening_of_one_epoch_has_a_row_an_operator():
    names = [
        f"{family}_k{kernel}_d{dilation}" for family in ("sep", "conv") for kernel in (3, 5) for dilation in (1, 2)
    ]
    rows = [Score(0, name, 1 - rank / 10, rank + 1, removed=rank > 2) for rank, name in enumerate(names)]
    drawing = show_screening("neck", rows).chart.drawing
    texts = re.findall(r'<text x="([^"]*)" y="([^"]*)" text-anchor="end" class="end(?: gone)?">([^<]*)<', drawing)
    assert [name for *_, name in texts] == names
    assert len({x for x, *_ in texts}) == 1
    assert all(float(below[1]) - float(above[1]) == pytest.approx(LINE_HEIGHT) for above, below in pairwise(texts))
    assert drawing.count("<circle") == 3
    assert drawing.count('class="cross"') == 5
    height = float(re.search(r'viewBox="0 0 \S+ ([^"]*)"', drawing)[1])
    assert max(float(y) for _, y, _ in texts) < height


def test_the_names_of_all_that_is_kept_are_inside():
    families, kernels, dilations = ("sep", "conv", "ir"), (3, 5, 7), (1, 2, 3)
    names = [f"{family}_k{kernel}_d{dilation}" for family, kernel, dilation in product(families, kernels, dilations)]
    rows = [Score(epoch, name, 1 + rank / 10, rank + 1, False) for epoch in (0, 1) for rank, name in enumerate(names)]
    drawing = show_screening("neck", rows).chart.drawing
    heights = sorted(float(y) for y in re.findall(r'<text x="[^"]*" y="([^"]*)" class="end">', drawing))
    assert len(heights) == len(names)
    assert all(below - above >= LINE_HEIGHT - 0.11 for above, below in pairwise(heights))
    assert 0 < heights[0] < heights[-1] < float(re.search(r'viewBox="0 0 \S+ ([^"]*)"', drawing)[1])


def test_ticks_are_round_and_inside():
    assert [number(value) for value in (20_000, 1_500_000, 9_999.6, 0.00012345, 12.3456)] == [
        *("20000", "1500000", "10000", "0.0001234", "12.35")
    ]
    assert Scale(0, 1, 0, 100).ticks(5) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    assert Scale(1, 4, 0, 100).ticks(6, whole=True) == [1, 2, 3, 4]
    assert Scale(1, 1000, 0, 100).ticks(6, whole=True) == [200, 400, 600, 800, 1000]
    assert Scale(1e-4, 1, 0, 100, log=True).ticks(5) == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1, 1])
    assert Scale(1e-4, 1, 0, 100, log=True)(1e-2) == pytest.approx(50)
    assert Scale(2, 4, 100, 0)(3) == pytest.approx(50)


@pytest.mark.parametrize("values", [[0.0], [5.0, 5.0], [-1.0, 3.0], [1e-9, 1e9]])
def test_spans_hold_their_values(values):
    for arguments in ({}, {"zero": True}, {"log": True} if min(values) > 0 else {}):
        low, high = span(values, **arguments)
        assert low < high
        assert low <= min(values)
        assert max(values) <= high


def test_labels_do_not_overlap():
    wanted = {"a": 50.0, "b": 50.5, "c": 51.0, "d": 199.0, "e": 200.0}
    places = spread(wanted, 0, 200)
    heights = [places[name] for name in wanted]
    assert all(after - before >= LINE_HEIGHT - 1e-9 for before, after in pairwise(heights))
    assert heights[0] >= 0
    assert heights[-1] <= 200


def test_scores_of_either_sign_keep_their_order():
    names = ["ir_k3_d1_e3", "sep_k3_d1", "conv_k3_d1", "sep_k5_d1"]
    rows = [
        Score(7, name, score, rank, removed=rank > 2)
        for rank, (name, score) in enumerate(zip(names, [0.3, 0.1, -0.1, -0.3], strict=True), 1)
    ]
    shown = show_screening("head", rows)
    assert shown.kept == tuple(names[:2])
    assert (shown.replaced, shown.replacements) == ((), ())
    changed = show_screening("head", rows, ["ir_k3_d1_e3", "sep_k5_d1"])
    assert (changed.kept, changed.replaced, changed.replacements) == (shown.kept, ("sep_k3_d1",), ("sep_k5_d1",))
    (gone,) = shown.removals
    assert (gone.epoch, gone.operators, gone.left) == (8, tuple(names[2:]), 2)
    heights = [float(y) for y in re.findall(r'<circle cx="[^"]*" cy="([^"]*)"', shown.chart.drawing)]
    assert heights == sorted(heights)  # the best first, and upwards is less
    assert len(set(heights)) == 2
    assert ">score<" in shown.chart.drawing


# ------------------------------------------------------------------------------------------------- the retraining's log


def test_later_logs_count_and_odd_lines_do_not(tmp_path):
    run = RunDirectory(write_run(tmp_path / "run", state="retraining"))
    (run.retrain / "20270101_000000").mkdir()
    (run.retrain / "20270101_000000" / "a.log").write_text(
        "Epoch(train)  [1][16/16]  lr: 1  loss: 1.7500  loss_cls: 1\n"
        "Epoch(train)  [2][16/16]  lr: 1  loss: nan  loss_cls: 1\n"
        "Epoch(train)  [2][ 4/ 0]  lr: 1  loss: 1.0\n"
        "Epoch(val) [2][2/2]    coco/bbox_mAP: 0.4000  coco/bbox_mAP_50: 0.5\n"
        "Epoch(val) [3][2/2]    coco/bbox_mAP: 0.5000  coco/bbox_mAP_50: 0.6"
    )
    training = read_training_log(run.retrain)
    assert training.losses == ((0.5, 2.5), (1.0, 1.75))
    assert [epoch for epoch, _ in training.evaluations] == [0, 1, 2, 3]
    assert training.evaluations[2][1] == {"mAP": 0.4, "mAP_50": 0.5}
    assert training.evaluations[3][1] == {"mAP": 0.5, "mAP_50": 0.6}
    assert training.evaluations[1][1] == {"mAP": 0.123, "mAP_50": 0.234}
    assert read_training_log(tmp_path).losses == ()


# ---------------------------------------------------------------------------------------------------------- TensorBoard


def read_events(file):
    """Tag, step and value of each event, in order, by TensorBoard's own reader, which checks lengths and checksums."""
    events = [event for event in LegacyEventFileLoader(str(file)).Load() if event.summary.value]
    return [(event.summary.value[0].tag, event.step, event.summary.value[0].simple_value) for event in events]


def test_scalars_for_tensorboard(tmp_path):
    run = RunDirectory(write_run(tmp_path / "run"))
    file = write_scalars(run.path, tmp_path / "events" / "here")
    assert "tfevents" in file.name
    events = read_events(file)
    expected = [
        (f"screening {component}/{row['operator']}", int(row["epoch"]) + 1, float(row["score"]))
        for component in ("backbone", "neck", "head")
        for row in rows_of(run.scores(component))
    ]
    for row in rows_of(run.search_metrics):
        expected += [(f"search/{name}", int(row["epoch"]) + 1, float(row[name])) for name in row if name != "epoch"]
    expected += [("retrain/AP", 0, 0.0), ("retrain/AP50", 0, 0.001), ("retrain/loss", 1, 2.0)]
    expected += [("retrain/AP", 1, 0.123), ("retrain/AP50", 1, 0.234)]
    assert [event[:2] for event in events] == [event[:2] for event in expected]
    assert [event[2] for event in events] == pytest.approx([event[2] for event in expected], rel=1e-6)

    shown = EventAccumulator(str(file.parent)).Reload()
    assert set(shown.Tags()["scalars"]) == {tag for tag, _, _ in expected}
    losses = shown.Scalars("search/val_loss")
    assert [event.step for event in losses] == [1, 2, 3, 4]
    assert {event.wall_time for event in losses} == {run.config.stat().st_mtime}


def test_a_longer_run_only_adds_events(tmp_path):
    run = RunDirectory(write_run(tmp_path / "run", state="searched"))
    file = write_scalars(run.path, tmp_path / "events")
    whole, events = file.read_bytes(), read_events(file)
    lines = run.search_metrics.read_text().splitlines()
    run.search_metrics.write_text("\n".join(lines[:3]))
    assert write_scalars(run.path, tmp_path / "events") == file
    part = file.read_bytes()
    assert len(part) < len(whole)
    assert events[: len(read_events(file))] == read_events(file)
    # Behind the first record, which says when the file was made: a length, its checksum, a message, its checksum.
    first = 16 + int.from_bytes(part[:8], "little")
    assert int.from_bytes(whole[:8], "little") == first - 16
    assert whole[first:].startswith(part[first:])
    assert list(file.parent.iterdir()) == [file]


def test_without_the_package_of_tensorboard_it_is_named(tmp_path, monkeypatch, refused):
    run = RunDirectory(write_run(tmp_path / "run", state="searched"))
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    with refused("--tensorboard", "pip install 'hitdet-nni[tensorboard]'"):
        write_scalars(run.path, tmp_path / "events")
    assert not (tmp_path / "events").exists()


def test_a_new_number_of_an_epoch_is_a_column_a_chart_and_a_curve(tmp_path):
    """Nothing but what is measured names it."""
    run = RunDirectory(write_run(tmp_path / "run", state="searched"))
    columns = rows_of(run.search_metrics)
    run.search_metrics.unlink()
    for row in columns:
        metrics = {name: float(value) for name, value in row.items() if name != "epoch"}
        append_metrics(run.search_metrics, int(row["epoch"]), {**metrics, "temperature": 0.5})
    assert [row["temperature"] for row in rows_of(run.search_metrics)] == ["0.5"] * len(columns)
    assert [row["temperature"] for row in read_metrics(run.search_metrics)] == [0.5] * len(columns)
    assert [chart.title for chart in health_charts(read_metrics(run.search_metrics))][-1] == "temperature"
    events = read_events(write_scalars(run.path, tmp_path / "events"))
    assert [event[1:] for event in events if event[0] == "search/temperature"] == [(e, 0.5) for e in (1, 2, 3, 4)]
