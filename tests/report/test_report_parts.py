"""What pages are made of: the Pareto front, axes, labels, tables, logs, differences of settings, event files."""

import csv
import random
import struct
from itertools import pairwise

import pytest
from report_runs import write_run

from hitdet_nni.config.settings import load_settings
from hitdet_nni.errors import InputError
from hitdet_nni.report.axes import Scale, span
from hitdet_nni.report.comparison import unique_names
from hitdet_nni.report.config_view import config_view, shipped_base
from hitdet_nni.report.event_file import Scalar, crc32c, event_file
from hitdet_nni.report.heat_map import MAX_VALUES, heat_maps
from hitdet_nni.report.pareto import pareto_front
from hitdet_nni.report.scalars import write_scalars
from hitdet_nni.report.screening_chart import LINE_HEIGHT, spread
from hitdet_nni.report.tables import Alpha, read_scores
from hitdet_nni.report.training_log import read_training_log
from hitdet_nni.runs.run_directory import RunDirectory


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


def test_ticks_are_round_and_inside():
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


# ------------------------------------------------------------------------------------------------- the retraining's log


def test_later_logs_count_and_odd_lines_do_not(tmp_path):
    run = RunDirectory(write_run(tmp_path / "run", state="retraining"))
    (run.retrain / "20270101_000000").mkdir()
    (run.retrain / "20270101_000000" / "a.log").write_text(
        "Epoch(train)  [1][16/16]  lr: 1  loss: 1.7500  loss_cls: 1\n"
        "Epoch(train)  [2][16/16]  lr: 1  loss: nan  loss_cls: 1\n"
        "Epoch(train)  [2][ 4/ 0]  lr: 1  loss: 1.0\n"
        "mmengine - ERROR - The testing results of the whole dataset is empty.\n"
        "Epoch(val) [2][2/2]    coco/bbox_mAP: 0.4000  coco/bbox_mAP_50: 0.5\n"
        "Epoch(val) [3][2/2]    coco/bbox_mAP: 0.5000  coco/bbox_mAP_50: 0.6"
    )
    training = read_training_log(run.retrain)
    assert training.losses == ((0.5, 2.5), (1.0, 1.75))
    assert [epoch for epoch, _ in training.evaluations] == [0, 1, 2, 3]
    assert set(training.evaluations[2][1].values()) == {0.0}
    assert training.evaluations[3][1] == {"mAP": 0.5, "mAP_50": 0.6}
    assert training.evaluations[1][1] == {"mAP": 0.123, "mAP_50": 0.234}
    assert read_training_log(tmp_path).losses == ()


# ---------------------------------------------------------------------------------------------------------- TensorBoard


def read_events(content):
    """Tag, step and value of each event: a reader of its own, which checks lengths and checksums."""

    def masked(part):
        crc = crc32c(part)
        return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF

    def fields(message):
        place = 0
        while place < len(message):
            key, place = varint(message, place)
            if key & 7 == 0:
                value, place = varint(message, place)
            else:
                size = {1: 8, 5: 4}.get(key & 7)
                if size is None:
                    size, place = varint(message, place)
                value, place = message[place : place + size], place + size
            yield key >> 3, value

    def varint(message, place):
        value = shift = 0
        while True:
            value |= (message[place] & 0x7F) << shift
            place, shift = place + 1, shift + 7
            if message[place - 1] < 0x80:
                return value, place

    place, events = 0, []
    while place < len(content):
        (length,) = struct.unpack_from("<Q", content, place)
        message = content[place + 12 : place + 12 + length]
        assert struct.unpack_from("<I", content, place + 8)[0] == masked(content[place : place + 8])
        assert struct.unpack_from("<I", content, place + 12 + length)[0] == masked(message)
        place += 16 + length
        event = dict(fields(message))
        if 5 in event:
            value = dict(fields(dict(fields(event[5]))[1]))
            events.append((value[1].decode(), event[2], struct.unpack("<f", value[2])[0]))
        else:
            assert event[3] == b"brain.Event:2"
    return events


def test_scalars_for_tensorboard(tmp_path):
    assert crc32c(b"123456789") == 0xE3069283  # the check value of CRC-32C
    assert crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, appendix B.4
    run = RunDirectory(write_run(tmp_path / "run"))
    file = write_scalars(run.path, tmp_path / "events" / "here")
    assert "tfevents" in file.name
    events = read_events(file.read_bytes())
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


def test_numbers_of_several_bytes():
    scalars = [Scalar("ö" * length, step, 0.5) for length in (1, 100) for step in (0, 127, 128, 300, 2**40)]
    assert read_events(event_file(scalars, 0.0)) == [(each.tag, each.step, each.value) for each in scalars]


def test_a_longer_run_only_adds_events(tmp_path):
    run = RunDirectory(write_run(tmp_path / "run", state="searched"))
    whole = write_scalars(run.path, tmp_path / "events").read_bytes()
    lines = run.search_metrics.read_text().splitlines()
    run.search_metrics.write_text("\n".join(lines[:3]))
    part = write_scalars(run.path, tmp_path / "events").read_bytes()
    assert len(part) < len(whole)
    assert whole.startswith(part)
