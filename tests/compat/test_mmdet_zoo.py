"""The families of configs that mmdet ships: the page about them, what a try finds wrong, and every line of the page."""

import importlib.util
import json
import sys
from dataclasses import asdict

import pytest
import torch
from mmdet.models import BaseDetector
from pages import DOCS
from torch import nn

from hitdet_nni import cli

KINDS = ("fault", "file", "op", "package")
ROWS = json.loads((DOCS / "mmdet_zoo.json").read_text(encoding="utf-8"))
AROUND_DETECTORS = {"mask2former_vis", "masktrack_rcnn", "qdtrack", "soft_teacher"}
"""Families that run and are refused by the counter: trackers, and a teacher with its pupil."""


@pytest.fixture(scope="module")
def zoo():
    """The script that writes the page."""
    specification = importlib.util.spec_from_file_location("mmdet_zoo", DOCS / "mmdet_zoo.py")
    module = importlib.util.module_from_spec(specification)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(DOCS)  # as for a script, which finds what lies beside it
        patch.setitem(sys.modules, "mmdet_zoo", module)  # dataclasses look for their module
        specification.loader.exec_module(module)
        yield module


def test_the_page_has_every_family_that_mmdet_ships(zoo):
    rows = zoo.read_rows()
    assert [row.family for row in rows] == zoo.families()
    assert zoo.PAGE.read_text(encoding="utf-8") == zoo.page(rows), "run: python docs/mmdet_zoo.py --page"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["family"])
def test_a_line_of_the_page_is_well_formed(row, zoo):
    shipped = len(list((zoo.CONFIGS / row["family"]).rglob("*.py")))
    assert 0 <= row["built"] <= row["configs"] <= shipped
    assert all(need.partition(" ")[0] in KINDS and need.partition(" ")[2] for need in row["needs"])
    assert bool(row["config"]) == (row["built"] > 0)
    assert not row["config"] or (zoo.CONFIGS / row["config"]).is_file()
    assert bool(row["needs"]) >= (row["configs"] > 0 and not row["runs"])  # what does not run says why
    assert bool(row["needs"]) >= (row["built"] < row["configs"])
    assert (row["flops"] > 0) == (row["runs"] and row["family"] not in AROUND_DETECTORS)


def test_what_is_missing_is_read_from_the_error(zoo):
    assert zoo.reason(NotImplementedError("class `X`: mmcv.ops.CARAFE is not available: and so on")) == "op CARAFE"
    assert zoo.reason(ImportError("Please install Detectron2 first")) == "package detectron2"
    missing = FileNotFoundError(2, "No such file", str(zoo.CONFIGS / "sort" / "absent.py"))
    assert zoo.reason(missing) == "file sort/absent.py"
    assert zoo.reason(AttributeError("'PISASSDHead' object has no attribute 'loss_cls'")).startswith("fault SSDHead")
    with pytest.raises(ValueError, match="a mistake of ours"):
        zoo.reason(ValueError("a mistake of ours"))


def test_every_excuse_is_used(zoo):
    """A package that is installed, or a fault that is mended, has no place in the tables."""
    given = {need for row in ROWS for need in row["needs"]}
    assert {f"package {package}" for package in zoo.PACKAGES.values()} == {
        need for need in given if need.startswith("package")
    }
    assert {f"fault {fault}" for fault in zoo.FAULTS.values()} == {need for need in given if need.startswith("fault")}


class Stub(BaseDetector):
    """A detector whose loss is a function of one weight."""

    def __init__(self, loss_of, prediction=0.0):
        super().__init__({"type": "DetDataPreprocessor", "_scope_": "mmdet"})
        self.weight = nn.Parameter(torch.ones(2))
        self.loss_of = loss_of
        self.prediction = prediction

    def loss(self, inputs, samples):
        return {"loss": self.loss_of(self.weight)}

    def predict(self, inputs, samples):
        for sample in samples:
            sample.pred_instances = type(sample.gt_instances)(scores=torch.full((3,), self.prediction))
        return samples

    def _forward(self, inputs, samples):
        raise AssertionError("not asked for")

    extract_feat = _forward


@pytest.mark.parametrize(
    ("stub", "problem"),
    [
        (Stub(lambda weight: weight.sum() / 0), "the loss is inf"),
        (Stub(lambda weight: (weight - 1).abs().sqrt().sum()), "a gradient is not finite"),
        (Stub(lambda weight: (0 * weight).sum()), "all gradients are zero"),
        (Stub(lambda weight: weight.sum(), float("nan")), "a prediction is not finite"),
        (Stub(lambda weight: weight.sum()), None),
    ],
)
def test_a_detector_that_computes_nonsense_does_not_pass(stub, problem, zoo, monkeypatch):
    monkeypatch.setattr(zoo, "build_initialised", lambda config: stub)
    model = {"type": "Stub", "data_preprocessor": {}}
    if problem is None:
        zoo.exercise(model)
        return
    with pytest.raises(AssertionError, match=problem):
        zoo.exercise(model)


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["family"])
def test_a_line_of_the_page_is_true(row, zoo):
    assert json.loads(json.dumps(asdict(zoo.tried(row["family"])))) == row


@pytest.mark.slow
def test_what_profile_counts_of_the_families(zoo, capsys):
    """All that run and are detectors by themselves; others are refused in a line."""
    counted = 0
    for row in (row for row in ROWS if row["runs"]):
        shape, proposals = [str(side) for side in zoo.COUNTED_SHAPE], zoo.proposals_of(row["config"])
        options = ["--json", "--shape", *shape, *(["--proposals", str(proposals)] if proposals else [])]
        status = cli.main(["profile", str(zoo.CONFIGS / row["config"]), *options])
        said = capsys.readouterr()
        if row["flops"]:
            assert (status, json.loads(said.out)["flops"]["total"]) == (0, row["flops"]), row["family"]
            assert json.loads(said.out)["params"]["total"] == row["params"], row["family"]
            counted += 1
        else:
            assert status == 2
            assert said.err.count("\n") == 1
            assert "is around detectors, or none" in said.err
    assert counted == sum(row["flops"] > 0 for row in ROWS)
    with capsys.disabled():
        sys.stdout.write(f"{counted} families of mmdet's counted\n")
