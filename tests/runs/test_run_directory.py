"""Run directories: what may be opened, resumed and overwritten."""

import json
import logging
import shlex
import threading
import time

import pytest
import yaml

from hitdet_nni.config.lengths import for_images
from hitdet_nni.config.settings import load_settings, parse_overrides
from hitdet_nni.errors import InputError
from hitdet_nni.io import append_epoch, locked, write_csv
from hitdet_nni.runs import run_directory as run_directory_module
from hitdet_nni.runs.run_directory import RunDirectory, find_run
from hitdet_nni.runs.same_settings import plain
from hitdet_nni.runs.tables import read_alphas, read_metrics


def test_a_new_run_holds_settings_and_environment(tmp_path, tiny_settings):
    run = RunDirectory(tmp_path / "a" / "run")
    run.open(tiny_settings)
    assert yaml.safe_load(run.config.read_text()) == plain(tiny_settings)
    assert load_settings(run.config) == tiny_settings
    metadata = json.loads(run.metadata.read_text())
    assert metadata["seed"] == tiny_settings.seed
    assert {"torch", "nni", "mmdet"} <= set(metadata["versions"])
    assert find_run(run.path) == run


def test_a_missing_result_is_refused_with_the_command_that_makes_it(tmp_path, refused):
    run = RunDirectory(tmp_path / "run")
    with refused(f"{run.path}: has no front/front.csv; allowed: a run of which hitdet-nni front has ended"):
        run.require(run.front_table, "front")
    run.front.mkdir(parents=True)
    run.front_table.touch()
    assert run.require(run.front_table, "front") == run.front_table


def test_time_adds_up_by_stage(tmp_path, tiny_settings):
    run = RunDirectory(tmp_path / "run")
    run.open(tiny_settings)
    for _ in range(2):
        with run.timed("search"):
            pass
    assert set(json.loads(run.metadata.read_text())["seconds"]) == {"search"}


def test_a_stage_that_opens_the_directory_has_its_time_too(tmp_path, tiny_settings):
    run = RunDirectory(tmp_path / "run")
    with run.timed("study"):
        run.open(tiny_settings)
    metadata = json.loads(run.metadata.read_text())
    assert set(metadata["seconds"]) == {"study"}
    run.metadata.write_text(json.dumps({**metadata, "seconds": {"study": 5000.0}}))
    with run.timed("study"):
        run.open(tiny_settings, force=True)
    assert json.loads(run.metadata.read_text())["seconds"]["study"] < 1000


def test_a_stage_s_time_is_without_that_of_stages_inside_it(tmp_path, tiny_settings, monkeypatch):
    clock = iter([0.0, 10.0, 14.0, 20.0, 30.0, 33.0])
    monkeypatch.setattr(run_directory_module.time, "monotonic", lambda: next(clock))
    run = RunDirectory(tmp_path / "run")
    with run.timed("screening"), run.timed("pretraining"):
        pass  # nothing is written where nothing is open
    assert not run.metadata.exists()
    clock = iter([0.0, 10.0, 14.0, 20.0, 30.0, 33.0])
    run.open(tiny_settings)
    with run.timed("screening"), run.timed("pretraining"):
        pass
    with run.timed("screening"):
        pass
    assert json.loads(run.metadata.read_text())["seconds"] == {"pretraining": 4.0, "screening": 19.0}


def test_the_time_of_an_interrupted_stage_counts(tmp_path, tiny_settings, monkeypatch):
    clock = iter([0.0, 10.0, 20.0, 25.0])
    monkeypatch.setattr(run_directory_module.time, "monotonic", lambda: next(clock))
    run = RunDirectory(tmp_path / "run")
    run.open(tiny_settings)
    with pytest.raises(KeyboardInterrupt), run.timed("search"):
        raise KeyboardInterrupt
    with run.timed("search"):
        pass
    assert run.seconds("search") == 15.0


def test_a_stage_that_is_refused_leaves_the_metadata_alone(tmp_path, tiny_settings):
    run = RunDirectory(tmp_path / "run")
    run.open(tiny_settings)
    before = run.metadata.read_bytes()
    with pytest.raises(InputError, match="holds"), run.timed("study"):
        raise InputError("holds a run")
    assert run.metadata.read_bytes() == before


def test_damaged_metadata_do_not_hide_why_a_stage_ended(tmp_path, tiny_settings):
    run = RunDirectory(tmp_path / "run")
    run.open(tiny_settings)

    def spoil():
        run.metadata.write_text("{")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), run.timed("search"):
        spoil()


def test_results_are_kept_unless_forced(tmp_path, tiny_settings, refused):
    run = RunDirectory(tmp_path / "run")
    run.open(tiny_settings)
    result = run.path / "architecture.json"
    result.write_text("{}")
    with refused(run.path, "--force"):
        run.open(tiny_settings)
    run.open(tiny_settings, resume=True)
    assert result.exists()
    other = tiny_settings.model_copy(update={"seed": 1})
    with refused(run.path, "settings"):
        run.open(other, resume=True)
    run.open(other, force=True)
    assert not result.exists()


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        (
            {"retrain.epochs": 24},
            [
                "retrain.epochs is 2 there and 24 here (and 1 more); ",  # the milestones go along
                "longer or shorter",
                "--set retrain.epochs=2 --set 'retrain.milestones=[1]' to",
            ],
        ),
        (
            {"retrain.epochs": 9, "retrain.milestones": [7, 8]},
            [
                "here (and 1 more); ",
                "longer or shorter",
                "--set retrain.epochs=2 --set 'retrain.milestones=[1]' to resume",
            ],
        ),
        (
            {"search.epochs": 9},
            ["search.epochs is 2 there and 9", "longer or shorter", "--sub-spaces", "sub_spaces.yml"],
        ),
        (
            {"seed": 4, "retrain.epochs": 9},
            ["seed is 0 there and 4 here (and 2 more); allowed: --set seed=0 --set ret"],
        ),
        ({"search.budget": {"gflops": 5}}, ["search.budget is null there and", "--set search.budget=null to resume"]),
        ({"data.val": 7}, ["data.val is ", "--set data.val="]),
    ],
)
def test_a_run_with_other_settings_says_how_to_go_on(tmp_path, changes, names):
    run = RunDirectory(tmp_path / "run")
    settings = load_settings("tiny")
    run.open(settings)
    run.screening.mkdir()
    run.sub_spaces.touch()
    with pytest.raises(InputError, match="the run there has other settings: ") as caught:
        run.open(load_settings("tiny", changes), resume=True)
    message = str(caught.value)
    for name in names:
        assert name in message, message
    assert ("longer or shorter" in message) == ("longer or shorter" in names)
    # What it says puts every setting back.
    words = shlex.split(message.partition("allowed: ")[2].partition(" to resume")[0])
    back = load_settings("tiny", {**changes, **parse_overrides(words[1::2])})
    assert (set(words[::2]), back) == ({"--set"}, settings)
    run.open(back, resume=True)


def test_a_run_goes_on_whoever_is_sent_the_curves(tmp_path, tiny_settings):
    run = RunDirectory(tmp_path / "run")
    run.open(tiny_settings.model_copy(update={"logger": "mlflow"}))
    run.open(tiny_settings, resume=True)
    assert load_settings(run.config).logger is None
    run.open(tiny_settings.model_copy(update={"logger": "wandb"}), resume=True)
    assert load_settings(run.config).logger == "wandb"


def test_another_number_of_images_is_said_as_such(tmp_path):
    run, settings = RunDirectory(tmp_path / "run"), load_settings("small", {"data.builtin": "digits"})
    run.open(for_images(settings, 100))
    with pytest.raises(InputError, match="has 100 training images and epochs for so many, here are 101; allow"):
        run.open(for_images(settings, 101), resume=True)
    elsewhere = load_settings("small", {"data.builtin": "digits_dense"})
    with pytest.raises(InputError, match=r"data\.builtin is digits there"):
        run.open(for_images(elsewhere, 101), resume=True)


def test_a_key_that_has_come_since_has_its_default(tmp_path, tiny_settings):
    run = RunDirectory(tmp_path / "run")
    run.open(tiny_settings)
    content = yaml.safe_load(run.config.read_text())
    del content["data"]["augment"], content["data"]["filter_empty_gt"], content["retrain"]["ema"]
    run.config.write_text(yaml.safe_dump(content))
    run.open(tiny_settings, resume=True)
    changed = tiny_settings.model_copy(update={"data": tiny_settings.data.model_copy(update={"augment": "strong"})})
    with pytest.raises(InputError, match=r"data\.augment is flip there and strong here"):
        run.open(changed, resume=True)


def test_force_never_removes_what_is_not_a_run(tmp_path, tiny_settings, refused):
    (tmp_path / "thesis.tex").write_text("years of work")
    with refused(tmp_path, "no run"):
        RunDirectory(tmp_path).open(tiny_settings, force=True)
    assert (tmp_path / "thesis.tex").exists()


@pytest.mark.parametrize("content", ["", "epoch,operator\n0,a\n", "epoch,operator,score,rank,removed\nx,a,1,1,0\n"])
def test_broken_scores_are_refused(tmp_path, content, refused):
    run = RunDirectory(tmp_path)
    run.screening.mkdir()
    run.scores("neck").write_text(content)
    with refused(run.scores("neck")):
        run.kept_operators("neck")


COLUMNS = ("epoch", "label", "alpha")


def table(*epochs, rows=3):
    return [{"epoch": epoch, "label": f"l{n}", "alpha": (epoch + n) / 7} for epoch in epochs for n in range(rows)]


@pytest.fixture
def grown(tmp_path):
    """A table of four epochs, added one by one."""
    path = tmp_path / "search" / "alphas.csv"
    for epoch in range(4):
        append_epoch(path, epoch, table(epoch))
    return path


def expected(tmp_path, *epochs):
    write_csv(tmp_path / "expected.csv", COLUMNS, table(*epochs))
    return (tmp_path / "expected.csv").read_bytes()


def test_a_table_grows_by_epochs(tmp_path, grown):
    assert grown.read_bytes() == expected(tmp_path, 0, 1, 2, 3)
    there, written = grown.stat().st_ino, []
    for epoch in range(4, 50):
        before = grown.stat().st_size
        append_epoch(grown, epoch, table(epoch))
        written.append(grown.stat().st_size - before)
    assert grown.stat().st_ino == there  # the same file, not a new one in its place
    assert grown.read_bytes() == expected(tmp_path, *range(50))
    assert max(written) < 100


@pytest.mark.parametrize("epoch", [0, 1, 3])
def test_an_epoch_that_is_made_again_replaces_it_and_those_after(tmp_path, grown, epoch, caplog):
    append_epoch(grown, epoch, table(epoch))
    assert grown.read_bytes() == expected(tmp_path, *range(epoch + 1))
    assert not caplog.records


def test_wherever_a_crash_cut_the_table_it_ends_equal(tmp_path, grown, caplog):
    """Cut anywhere in its last epoch: in a line, between lines, or in the number of the epoch."""
    whole = grown.read_bytes()
    begin = len(expected(tmp_path, 0, 1, 2))
    for end in range(begin, len(whole)):
        grown.write_bytes(whole[:end])
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            append_epoch(grown, 3, table(3))
        assert grown.read_bytes() == whole
        assert len(caplog.records) == (whole[end - 1 : end] != b"\n")
        assert all("cut off" in record.message for record in caplog.records)


@pytest.mark.parametrize("rest", [b"\0" * 100, b"3,l0,0.1\0\0\n3", b"x,y,z\n", b"99999999999999999999,l0,1\n"])
def test_rubbish_behind_the_last_whole_epoch_goes(tmp_path, grown, rest):
    grown.write_bytes(expected(tmp_path, 0, 1, 2) + rest)
    append_epoch(grown, 3, table(3))
    assert grown.read_bytes() == expected(tmp_path, 0, 1, 2, 3)


@pytest.mark.parametrize("start", [b"", b"epo", b"epoch,label,alpha"])
def test_a_table_without_a_whole_first_line_begins_anew(tmp_path, grown, start):
    grown.write_bytes(start)
    append_epoch(grown, 0, table(0))
    assert grown.read_bytes() == expected(tmp_path, 0)


def test_long_epochs_are_found_again(tmp_path):
    """Epochs longer than what is looked at first."""
    path = tmp_path / "long.csv"
    for epoch in (0, 1, 2, 1, 2, 3):
        append_epoch(path, epoch, table(epoch, rows=1000))
    write_csv(tmp_path / "expected.csv", COLUMNS, table(0, 1, 2, 3, rows=1000))
    assert path.read_bytes() == (tmp_path / "expected.csv").read_bytes()


def test_a_table_with_other_columns_is_refused(grown, refused):
    before = grown.read_bytes()
    with refused(grown, "has other columns", "epoch,loss"):
        append_epoch(grown, 4, [{"epoch": 4, "loss": 1.0}])
    assert grown.read_bytes() == before


def test_what_is_being_written_is_left_out_of_pages(grown):
    whole = grown.read_text().replace("label,alpha", "label,operator,alpha,probability")
    lines = [line if line.startswith("epoch") else f"{line},0.5" for line in whole.splitlines()]
    lines = [line.replace(",l", ",backbone/l,op", 1) if not line.startswith("epoch") else line for line in lines]
    for kept, left_out in ((len(lines), ""), (len(lines) - 1, ""), (len(lines) - 2, lines[-2][:-3])):
        grown.write_text("\n".join(lines[:kept]) + "\n" + left_out)
        assert list(read_alphas(grown)) == ([0, 1, 2, 3] if kept == len(lines) else [0, 1, 2])
        assert [row["epoch"] for row in read_metrics_epochs(grown)][:1] == [0.0]


def read_metrics_epochs(path):
    """The first column alone, as a table of metrics."""
    text = path.read_text()
    end = text.endswith("\n")
    cells = [line.partition(",")[0] for line in text.splitlines()]
    path.write_text("\n".join(cells) + "\n" * end)
    return read_metrics(path)


def test_a_run_goes_on_where_its_data_were_moved(tmp_path, refused):
    """Whether they are the same is asked by what goes on with them; data that are there are another set."""
    folders = [tmp_path / name for name in ("one", "two")]
    before, after = (load_settings("first_try", {"data.root": str(folder)}) for folder in folders)
    for folder in folders:
        folder.mkdir()
    run = RunDirectory(tmp_path / "run")
    run.open(before)
    with refused("data.root is"):
        run.open(after, resume=True)
    folders[0].rmdir()
    run.open(after, resume=True)
    assert load_settings(run.config).data.root == folders[1]
    with refused("search.epochs is"):
        run.open(load_settings("first_try", {"data.root": str(folders[1]), "search.epochs": 50}), resume=True)
    folders[1].rename(tmp_path / "three")
    moved = load_settings("first_try", {"data.root": str(tmp_path / "three"), "search.epochs": 50})
    with pytest.raises(InputError, match=r"search\.epochs is .*cannot be made longer") as caught:
        run.open(moved, resume=True)
    assert "data.root" not in str(caught.value)


def test_a_lock_whose_file_is_removed_is_held_by_one(tmp_path):
    """Who waits for it takes the file that is at its path then, not the one that is gone."""
    path, order = tmp_path / "lock", []

    def wait_and_hold():
        with locked(path):
            order.append("second")
            time.sleep(0.3)
            order.append("second ends")

    with locked(path):
        thread = threading.Thread(target=wait_and_hold)
        thread.start()
        time.sleep(0.2)
        path.unlink()
    time.sleep(0.1)
    with locked(path):
        order.append("third")
    thread.join()
    assert order == ["second", "second ends", "third"]
