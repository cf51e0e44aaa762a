"""Run directories for the tests of pages: written by the package's own writers, with numbers made up from a seed."""

import math
import random
from types import SimpleNamespace

from hitdet_nni.config.architecture import save_architecture
from hitdet_nni.config.search_space import load_search_space, save_search_space
from hitdet_nni.config.settings import load_settings
from hitdet_nni.config.skeleton import COMPONENTS
from hitdet_nni.cost.cost_model import CostModel
from hitdet_nni.io import read_json, write_json, write_text
from hitdet_nni.nas.epoch_record import EpochRecord
from hitdet_nni.nas.health.permutation_test import PermutationResult
from hitdet_nni.nas.health.stats import SearchStats
from hitdet_nni.nas.provenance import cost_records, describe_architecture
from hitdet_nni.nas.screening import Screened
from hitdet_nni.pipeline.search import write_epoch
from hitdet_nni.runs.run_directory import RunDirectory
from hitdet_nni.training.coco_evaluation import METRICS

STATES = ("begun", "half screened", "screened", "searching", "searched", "retraining", "retrained")
CLASSES = tuple(map(str, range(10)))
WARNING = "search, epoch 4: neck: entropy 0.9 is above 0.8"

LOG = """\
2026/01/01 00:00:00 - mmengine - INFO - Epoch(val) [0][2/2]    coco/bbox_mAP: 0.0000  coco/bbox_mAP_50: 0.0010
2026/01/01 00:00:01 - mmengine - INFO - Epoch(train)  [1][ 8/16]  lr: 1.0e-02  loss: 2.5000  loss_cls: 1.0000  acc: 50.0
2026/01/01 00:00:02 - mmengine - INFO - Epoch(train)  [1][16/16]  lr: 1.0e-02  loss: 2.0000  loss_cls: 0.9000  acc: 50.0
2026/01/01 00:00:03 - mmengine - INFO - Epoch(val) [1][2/2]    coco/bbox_mAP: 0.1230  coco/bbox_mAP_50: 0.2340
"""


def write_run(folder, *, seed=0, state="retrained", config="tiny", overrides=None, classes=CLASSES, epochs=4):
    """Write a run directory in a state; returns its path."""
    settings = load_settings(config, {"search.epochs": epochs, "seed": seed, **(overrides or {})})
    run, reached, rng = RunDirectory(folder), STATES.index(state), random.Random(seed)
    run.open(settings)
    whole, space = load_search_space("full"), load_search_space("hit_detector")
    model = CostModel(settings.skeleton, len(classes))
    if reached >= 1:
        for component in COMPONENTS if reached >= 2 else COMPONENTS[:1]:
            run.write_scores(component, screened_rows(component, whole[component], space[component], rng))
    if reached >= 2:
        save_search_space(space, run.sub_spaces)
    if reached >= 3:
        for record in records(settings.skeleton, space, model, epochs if reached >= 4 else epochs - 1, rng):
            write_epoch(run, record)
    if reached >= 4:
        sample = record.health.decoded
        save_architecture(
            describe_architecture(folder.name, sample, space, settings, classes, source="search"), run.architecture
        )
        run.note_warnings("search", [WARNING])
        add_seconds(run, {"screening": 12.5, "search": 30.25})
    if reached >= 5:
        write_text(run.retrain / "20260101_000000" / "20260101_000000.log", LOG)
    if reached >= 6:
        costs = cost_records(settings.skeleton, sample, len(classes))[0]
        values = (0.123 + seed / 10, 0.234, 0.1, 0.05, 0.2, -1.0)
        precisions = dict(zip(METRICS, values, strict=True))
        result = {
            "architecture": folder.name,
            "mAP": precisions["mAP"],
            "params_m": sum(costs.params[part] for part in ("backbone", "neck", "rpn", "head")) / 1e6,
            "gflops": sum(costs.flops[part] for part in ("backbone", "neck", "rpn", "head")) / 1e9,
            "shape": list(costs.shape),
            "metrics": precisions,
            "metrics_before_training": dict.fromkeys(precisions, 0.0),
            "weights": "retrain/weights.pth",
        }
        write_json(run.metrics, result)
    return folder


def add_seconds(run, seconds):
    write_json(run.metadata, {**read_json(run.metadata), "seconds": seconds})


def screened_rows(component, whole, kept, rng, epochs=3):
    """Scores of a screening that removes all in its last epochs, half of them each."""
    gone = [name for name in whole if name not in kept]
    active = [whole, whole, [name for name in whole if name not in gone[: len(gone) // 2]]]
    scores = [{name: rng.uniform(0.5, 1.5) for name in names} for names in active]
    taken = tuple(SimpleNamespace(epoch=epoch, scores={component: row}) for epoch, row in enumerate(scores))
    return Screened({component: tuple(kept)}, taken).scores(component)


def records(skeleton, space, model, epochs, rng):
    """Epochs of a search whose probabilities part more and more."""
    layers = skeleton.searched_layers()
    goal = {layer.label: [rng.gauss(0, 1) for _ in space[layer.component]] for layer in layers}
    for epoch in range(epochs):
        alphas, probabilities = {}, {}
        for layer in layers:
            row = [value * epoch for value in goal[layer.label]]
            total = sum(map(math.exp, row))
            alphas[layer.label] = dict(zip(space[layer.component], row, strict=True))
            probabilities[layer.label] = {name: math.exp(alpha) / total for name, alpha in alphas[layer.label].items()}
        decoded = {label: max(row, key=row.get) for label, row in probabilities.items()}
        gflops = model.architecture(decoded)["total"].flops / 1e9
        share = dict.fromkeys(COMPONENTS, rng.random())
        health = SearchStats(
            epoch=epoch,
            searching=epoch > 0,
            candidates={component: len(space[component]) for component in COMPONENTS},
            decoded=decoded,
            entropy=dict.fromkeys(COMPONENTS, 1 / (1 + epoch)),
            changed=share,
            gradient_norm=share,
            expected_gflops=gflops * 1.1,
            cost_gap=dict.fromkeys(COMPONENTS, -gflops * 0.1 / 3),
            evidence={kind: PermutationResult(rng.random(), 10.0**-epoch, 8) for kind in ("annotations", "categories")},
        )
        yield EpochRecord(epoch, 3 - epoch / 4, 3.1 - epoch / 4, 0.01, health, probabilities, alphas, {}, 7.5)
