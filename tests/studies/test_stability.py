"""The stability of a screening and of a search: what is repeated, what is read of it, and the whole command."""

import csv
import json
import random
import shutil
from pathlib import Path

import pytest

from hitdet_nni.cli import main
from hitdet_nni.config.architecture import load_architecture
from hitdet_nni.config.search_space import layer_candidates, load_search_space, save_search_space
from hitdet_nni.config.settings import load_settings
from hitdet_nni.config.shipped import shipped
from hitdet_nni.config.skeleton import COMPONENTS
from hitdet_nni.nas.health.rank_agreement import Agreement, Pair
from hitdet_nni.runs.run_directory import RunDirectory
from hitdet_nni.runs.samples import TriedArchitecture, write_samples
from hitdet_nni.runs.tables import Score, read_alphas
from hitdet_nni.studies.stability import (
    agreement_rows,
    judgement,
    preferences,
    repetitions,
    sampled_preferences,
    screened_preferences,
    searched_preferences,
)

SPACE = {
    "backbone": ["ir_k3_d1_e3", "conv_k3_d1", "sep_k3_d1"],
    "neck": ["sep_k3_d1", "sep_k5_d1"],
    "head": ["ir_k3_d1_e1", "sep_k5_d1"],
}
SMALL = {
    "data.train": 8,
    "data.val": 2,
    "screening.joint": "true",
    **{f"screening.keep.{component}": 1 for component in COMPONENTS},
}


@pytest.fixture
def space_file(tmp_path):
    save_search_space(SPACE, tmp_path / "space.yml")
    return tmp_path / "space.yml"


def arguments(space, out, *more):
    pairs = {**SMALL, "space": space}
    return ["--config", "tiny", "--out", str(out), *(f"--set={key}={value}" for key, value in pairs.items()), *more]


def study(space, out, *more):
    return main(["study", "stability", *arguments(space, out, "--seeds", "2", *more)])


def finished(out):
    """When the tables of every run were written."""
    return {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*.csv")}


def test_screenings_of_several_seeds_from_the_command_line(space_file, tmp_path, capsys):
    out = tmp_path / "study"
    assert study(space_file, out) == 0
    printed = capsys.readouterr().out
    table = [line for line in printed.splitlines() if line[:1] in "┏┃┡│└"]
    assert table
    assert max(map(len, table)) <= 80
    assert "backbone: 2 seeds are too few to tell" in printed
    report = json.loads((out / "stability.json").read_text())
    assert (report["study"], report["stage"], report["seeds"]) == ("stability", "screening", [0, 1])
    assert [(row["part"], row["seeds"]) for row in report["rows"]] == [
        (component, seeds) for component in COMPONENTS for seeds in ("0 1", "mean")
    ]
    assert list(report["agreement"]) == list(COMPONENTS)
    assert all(sentence in printed for sentence in report["findings"])
    rows = list(csv.DictReader((out / "stability.csv").open()))
    assert [row["rho"] for row in rows] == [str(row["rho"]) for row in report["rows"]]
    assert (out / "stability.png").read_bytes().startswith(b"\x89PNG")
    ranks = list(csv.DictReader((out / "ranks.csv").open()))
    assert len(ranks) == 2 * sum(map(len, SPACE.values()))
    first, second = (RunDirectory(out / "runs" / f"screening-seed-{seed}") for seed in (0, 1))
    for seed, run in enumerate((first, second)):
        for component in COMPONENTS:
            own = [row for row in ranks if (row["part"], row["seed"]) == (component, str(seed))]
            assert [row["operator"] for row in own if row["chosen"] == "1"] == run.kept_operators(component)
            assert sorted(float(row["rank"]) for row in own) == list(range(1, 1 + len(SPACE[component])))
    # Other weights and another order of the same images in the same halves. (After a step or two, Adam's being about
    # the learning rate each, a component may have the same scores by chance.)
    halves = "screening/backbone+neck+head_halves.json"
    assert (first.path / halves).read_text() == (second.path / halves).read_text()
    assert any(first.scores(part).read_text() != second.scores(part).read_text() for part in COMPONENTS)
    settings = [load_settings(run.config) for run in (first, second)]
    assert [(one.seed, one.data.seed) for one in settings] == [(0, 0), (1, 0)]
    # The first is the screening that the settings describe.
    plain = RunDirectory(tmp_path / "plain")
    assert main(["screen", *arguments(space_file, plain.path)]) == 0
    for component in COMPONENTS:
        assert first.scores(component).read_text() == plain.scores(component).read_text()
    # What is finished is not repeated; what is missing comes out as before.
    before = finished(out)
    shutil.rmtree(second.path)
    capsys.readouterr()
    assert study(space_file, out, "--resume", "--json") == 0
    assert json.loads(capsys.readouterr().out) == json.loads((out / "stability.json").read_text()) == report
    assert {path for path, time in finished(out).items() if before[path] == time} == {
        first.scores(component) for component in COMPONENTS
    }


@pytest.mark.slow
def test_searches_of_several_seeds_from_the_command_line(space_file, tmp_path, capsys):
    out = tmp_path / "study"
    fixed = {**SPACE, "neck": ["sep_k3_d1"]}
    save_search_space(fixed, tmp_path / "sub_spaces.yml")
    more = ("--stage", "search", "--sub-spaces", str(tmp_path / "sub_spaces.yml"))
    assert study(space_file, out, *more) == 0
    report = json.loads((out / "stability.json").read_text())
    assert {row["part"] for row in report["rows"]} == {"backbone", "head"}  # the neck has no choice
    runs = [RunDirectory(out / "runs" / f"search-seed-{seed}") for seed in (0, 1)]
    assert runs[0].halves.read_text() == runs[1].halves.read_text()
    one, other = (load_architecture(run.architecture).sample for run in runs)
    labels = load_settings("tiny").skeleton.labels("backbone")
    mean = report["rows"][1]
    assert (mean["part"], mean["seeds"], mean["of"]) == ("backbone", "mean", len(labels))
    assert mean["common"] == sum(one[label] == other[label] for label in labels)
    assert mean["chance"] == pytest.approx(len(labels) / 3)
    found = searched_preferences(runs[0], labels, SPACE["backbone"])
    last = read_alphas(runs[0].alphas)[1]
    assert found.scores.tolist() == [[last[label][name].probability for name in SPACE["backbone"]] for label in labels]
    assert found.scores.sum(axis=1) == pytest.approx(1)
    assert [SPACE["backbone"][row.argmax()] for row in found.chosen] == [one[label] for label in labels]
    # Finished searches are read, and their spaces are those that the study began with.
    before = finished(out)
    assert study(space_file, out, "--stage", "search", "--resume") == 0
    assert finished(out) == before
    assert json.loads((out / "stability.json").read_text()) == report
    save_search_space(SPACE, tmp_path / "sub_spaces.yml")
    capsys.readouterr()
    assert study(space_file, out, *more, "--resume") == 2
    assert "sub_spaces.yml: the run has other sub-spaces than the given ones" in capsys.readouterr().err


def test_searches_by_samples_agree_by_what_they_have_tried(tmp_path):
    skeleton = load_settings("tiny").skeleton
    candidates = layer_candidates(skeleton, SPACE)
    run = RunDirectory(tmp_path)
    run.samples.parent.mkdir()
    better = {"backbone": "conv_k3_d1", "neck": "sep_k5_d1", "head": "ir_k3_d1_e1"}
    generator = random.Random(0)
    samples = [{label: generator.choice(names) for label, names in candidates.items()} for _ in range(60)]
    losses = [3 - sum(name == better[label.split("/")[0]] for label, name in one.items()) for one in samples]
    least = losses.index(min(losses))
    write_samples(
        run.samples,
        [
            TriedArchitecture(loss, loss, 0.1, 0.1, number == least, sample)
            for number, (loss, sample) in enumerate(zip(losses, samples, strict=True))
        ],
    )
    found = sampled_preferences(run, skeleton, SPACE, COMPONENTS)
    for component in COMPONENTS:
        labels = skeleton.labels(component)
        assert found[component].scores.shape == (len(labels), len(SPACE[component]))
        assert {SPACE[component][row.argmax()] for row in found[component].scores} == {better[component]}
        assert [SPACE[component][row.argmax()] for row in found[component].chosen] == [
            samples[least][label] for label in labels
        ]


@pytest.mark.slow
def test_searches_share_one_screening_and_run_side_by_side(space_file, tmp_path):
    out = tmp_path / "study"
    assert study(space_file, out, "--stage", "search", "--jobs", "2", "--set", "screening.keep.backbone=2") == 0
    report = json.loads((out / "stability.json").read_text())
    shared = load_search_space(out / "screening" / "sub_spaces.yml")
    assert {component: len(names) for component, names in shared.items()} == {"backbone": 2, "neck": 1, "head": 1}
    assert [row["chance"] for row in report["rows"]] == [len(load_settings("tiny").skeleton.labels("backbone")) / 2] * 2
    for seed in (0, 1):
        assert load_search_space(out / f"runs/search-seed-{seed}/screening/sub_spaces.yml") == shared


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--seeds", "1"], "--seeds: got 1; allowed: 2 or more"),
        (["--seeds", "0"], "--seeds: got 0"),
        (["--jobs", "0"], "--jobs: got 0"),
        (["--sub-spaces", "hit_detector"], "--sub-spaces: got a file, and screening starts from the whole space"),
        (["--stage", "search", "--sub-spaces", "nosuch.yml"], "nosuch.yml: no such file"),
        (["--set", "screening.keep.neck=3"], "screening.keep.neck: got 3"),
        (
            ["--set", "screening.keep={backbone: 3, neck: 2, head: 2}"],
            "screening.keep: keeps all operators; allowed: fewer",
        ),
    ],
)
def test_what_cannot_be_studied_is_refused(space_file, tmp_path, capsys, more, message):
    out = tmp_path / "study"
    assert main(["study", "stability", *arguments(space_file, out), *more]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not out.exists()


def test_an_unknown_stage_is_refused(space_file, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        study(space_file, tmp_path / "study", "--stage", "retraining")
    assert ended.value.code == 2
    assert "invalid choice: 'retraining'" in capsys.readouterr().err


def test_all_seeds_have_the_data_of_the_first(tiny_settings):
    settings = tiny_settings.model_copy(update={"seed": 2**32 - 1})
    found = repetitions(settings, "search", SPACE, 3, Path("study"))
    assert [one.settings.seed for one in found] == [2**32 - 1, 0, 1]
    assert {one.settings.data.seed for one in found} == {2**32 - 1}
    assert len({one.folder for one in found}) == 3
    own = settings.model_copy(update={"data": settings.data.model_copy(update={"seed": 5})})
    assert {one.settings.data.seed for one in repetitions(own, "search", SPACE, 3, found[0].folder)} == {5}


def write_scores(run, *rows):
    run.screening.mkdir(exist_ok=True)
    run.write_scores("neck", [Score(*row) for row in rows])


def test_what_is_kept_whole_has_no_part(tmp_path, tiny_settings):
    run = RunDirectory(tmp_path)
    write_scores(run, (0, "sep_k3_d1", 0.1, 2, True), (0, "sep_k5_d1", 0.5, 1, False))
    keep = tiny_settings.screening.keep.model_copy(update={"backbone": 3, "neck": 1, "head": 2})
    screening = tiny_settings.screening.model_copy(update={"keep": keep})
    (one, _) = repetitions(tiny_settings.model_copy(update={"screening": screening}), "screening", SPACE, 2, tmp_path)
    assert set(preferences(run, one)) == {"neck"}


def test_who_is_removed_later_stands_higher(tmp_path, refused):
    run = RunDirectory(tmp_path)
    write_scores(
        run,
        (0, "a", 0.1, 5, True),  # removed first, with a score that is larger than later ones
        (0, "b", 0.5, 1, False),
        (0, "c", 0.4, 2, False),
        (0, "d", 0.3, 3, False),
        (0, "e", 0.2, 4, False),
        (1, "b", 0.03, 3, True),
        (1, "c", 0.02, 4, True),
        (1, "d", 0.05, 1, False),
        (1, "e", 0.05, 2, False),  # as good as the other one that is kept
    )
    found = screened_preferences(run, "neck", ["e", "d", "c", "b", "a"])
    assert found.ranks().tolist() == [[1.5, 1.5, 4, 3, 5]]
    assert found.chosen.tolist() == [[True, True, False, False, False]]
    with refused("neck.csv", "other operators", "the 4 operators"):
        screened_preferences(run, "neck", ["a", "b", "c", "d"])


def test_a_table_of_alphas_that_lacks_an_operator_is_refused(tmp_path, refused):
    run = RunDirectory(tmp_path)
    run.alphas.parent.mkdir()
    run.alphas.write_text("epoch,label,operator,alpha,probability\n0,neck/l01,sep_k3_d1,0.1,0.5\n")
    shutil.copy(shipped("search_spaces", "architectures/hit_detector.json"), run.architecture)
    with refused("alphas.csv", "neck/l01 sep_k5_d1"):
        searched_preferences(run, ["neck/l01"], SPACE["neck"])


def agreement(common_p, spearman_p, least_p):
    return Agreement((Pair(0, 1, 0.5, 3),), 0.5, spearman_p, 3.0, 2.0, 8, common_p, least_p)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (agreement(0.01, 0.5, 1e-9), "agree better than chance (3 of 8 kept operators, 2 by chance, p 0.01)"),
        (agreement(0.02, 0.01, 1e-9), "agree better than chance on the order of the operators (rho +0.50, p 0.01)"),
        (agreement(0.02, 0.01, 1e-9), "but not on the kept operators (3 of 8 kept operators, 2 by chance, p 0.02)"),
        (agreement(0.02, 0.01, 0.02), "and are too few to tell of the kept operators"),
        (agreement(0.02, 0.02, 1e-9), "agree no better than chance"),
        (agreement(0.02, 0.02, 0.02), "are too few to tell"),
        (agreement(1.0, 0.02, 1.0), "every operator is kept"),
    ],
)
def test_the_judgement_in_words(found, words):
    (line,) = judgement({"neck": found}, "screening", 2)
    assert line.startswith("neck: ")
    assert words in line
    assert ("say nothing about your data" in line) == ("no better" in words)


def test_the_rows_hold_pairs_and_their_mean():
    pairs = (Pair(0, 1, 0.5, 3), Pair(0, 2, 0.1, 1), Pair(1, 2, 0.0, 2))
    rows = agreement_rows({"neck": Agreement(pairs, 0.2, 0.3, 2.0, 1.5, 4, 0.4, 1e-9)}, [7, 8, 9])
    assert [row["seeds"] for row in rows] == ["7 8", "7 9", "8 9", "mean"]
    assert [row["rho"] for row in rows] == [0.5, 0.1, 0.0, 0.2]
    assert [row["common"] for row in rows] == [3, 1, 2, 2]
    assert [row["rho_p"] for row in rows] == [None, None, None, 0.3]
    assert [row["common_p"] for row in rows] == [None, None, None, 0.4]
    assert {(row["part"], row["of"], row["chance"]) for row in rows} == {("neck", 4, 1.5)}
