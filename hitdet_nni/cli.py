"""The ``hitdet-nni`` command: its arguments. What the commands do is in :mod:`hitdet_nni.commands`.

Exit status: 0 done, 2 bad input (one line on standard error), 1 anything else.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from hitdet_nni import __version__
from hitdet_nni.deployment import FORMATS
from hitdet_nni.errors import InputError, StoppedError, escape_unprintable

EXAMPLES = {
    "data": "hitdet-nni data digits --out digits --train 300 --val 60 --size 128 --seed 0",
    "check-data": "hitdet-nni check-data --config my_data.yml",
    "pretrain": "hitdet-nni pretrain --config my_data.yml --set pretrain.train_images=imagenet/train "
    "--set pretrain.val_images=imagenet/val --component-screening --out runs/pretrained",
    "screen": "hitdet-nni screen --config tiny --out runs/mine",
    "search": "hitdet-nni search --config tiny --set search.flops_weight=0.1 --out runs/mine",
    "export": "hitdet-nni export runs/mine-retrained --format onnx --out mine.onnx",
    "export-config": "hitdet-nni export-config mine.json --config tiny -o hit.py",
    "profile": "hitdet-nni profile hit_detector --shape 800 1216 --proposals 1000 --convention paper",
    "retrain": "hitdet-nni retrain --architecture mine.json --config tiny --out runs/mine-retrained",
    "train-baseline": "hitdet-nni train-baseline fpn_r50_2fc --config coco2017 --set data.root=/data/coco "
    "--set retrain.pretrained=resnet50.pth --out runs/fpn",
    "evaluate": "hitdet-nni evaluate --architecture mine.json --weights weights.pth --config tiny",
    "study": "hitdet-nni study random --run runs/mine --architectures 8 --seeds 3 --out runs/study",
    "tables": "hitdet-nni tables 2",
    "report": "hitdet-nni report runs/mine --out mine.html",
    "compare": "hitdet-nni compare runs/mine runs/other --out runs.html",
}

HELP = {
    "data": "make the embedded data set, or COCO annotation files of PASCAL VOC",
    "check-data": "read annotations and pictures fully and list every defect",
    "pretrain": "train the backbone of a supernet (the config's space), or of an architecture, as a classifier",
    "screen": "screen the sub search space of each component",
    "search": "search the three components together (screens first where that has not been done)",
    "export": "write a run's architecture, or a trained detector as a file that runs without this package",
    "export-config": "write a self-contained mmdet config of an architecture",
    "profile": "print parameters and FLOPs of an architecture, a run, or any mmdet config",
    "retrain": "train an architecture, from scratch or from the supernet's weights, and evaluate it as COCO does",
    "train-baseline": "train a baseline, or any mmdet config, as `retrain` trains a found detector, and evaluate it",
    "evaluate": "evaluate a trained architecture as COCO does",
    "study": "compare with random architectures, or take the method apart as section 4.4 does",
    "tables": "print the paper's cost tables, counted again, beside the published figures",
    "report": "write a page of a run in any state: one HTML file that needs no network",
    "compare": "write a page of several runs: their figures, and accuracy against cost",
}


def build_parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    parser = argparse.ArgumentParser(prog="hitdet-nni", description="Hit-Detector: search a whole object detector.")
    parser.add_argument("--version", action="version", version=f"hitdet-nni {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    parsers = {
        name: commands.add_parser(name, help=text, description=text, epilog=f"example: {EXAMPLES[name]}")
        for name, text in HELP.items()
    }

    data = parsers["data"]
    data.add_argument("set", choices=["digits", "voc"], help="the embedded set; COCO files of PASCAL VOC 07+12")
    data.add_argument("--out", type=Path, help="folder to write (voc: by default the one of --voc)")
    data.add_argument("--voc", type=Path, metavar="DIR", help="VOCdevkit: the folder that holds VOC2007 and VOC2012")
    data.add_argument(
        "--difficult",
        choices=["crowd", "keep", "drop"],
        default="crowd",
        help="objects marked difficult: ignored like crowds, ordinary, or left out (default: %(default)s)",
    )
    data.add_argument("--train", type=int, default=300, help="training pictures (default: %(default)s)")
    data.add_argument("--val", type=int, default=60, help="validation pictures (default: %(default)s)")
    data.add_argument("--size", type=int, default=128, help="side of the pictures, pixels (default: %(default)s)")
    data.add_argument("--seed", type=int, default=0, help="seed (default: %(default)s)")
    data.add_argument("--force", action="store_true", help="replace what is there")

    training = ("pretrain", "screen", "search", "retrain", "train-baseline")
    for name in ("check-data", *training, "export-config", "evaluate"):
        parsers[name].add_argument("--config", required=True, help="config file, or a shipped config's name")
        _add_overrides(parsers[name])
    parsers["check-data"].add_argument(
        "--fix",
        type=Path,
        metavar="OUT",
        help="write corrected annotation files into this folder, and list each change",
    )
    for name in training:
        _add_run_directory(parsers[name])
    parsers["retrain"].add_argument(
        "--architecture", help="architecture JSON, or a shipped one's name; with --inherit by default the run's"
    )
    parsers["retrain"].add_argument(
        "--inherit", type=Path, metavar="RUN", help="start from the weights of the supernet that this run searched"
    )
    parsers["evaluate"].add_argument("--architecture", required=True, help="architecture JSON, or a shipped one's name")
    parsers["train-baseline"].add_argument("baseline", help="mmdet config (.py), or a shipped baseline's name")
    for name in ("check-data", "pretrain", "profile", "retrain", "train-baseline", "evaluate", "tables"):
        parsers[name].add_argument("--json", action="store_true", help="print JSON")
    backbone = parsers["pretrain"].add_mutually_exclusive_group()
    backbone.add_argument("--architecture", help="the backbone of an architecture JSON, or of a shipped one's name")
    backbone.add_argument("--sub-spaces", type=Path, help="the supernet of this search space file, as `search` has it")
    backbone.add_argument(
        "--component-screening", action="store_true", help="the supernet as `screen` has it: screening.depths blocks"
    )
    parsers["search"].add_argument("--sub-spaces", type=Path, help="search space file to use instead of screening")
    parsers["evaluate"].add_argument("--weights", type=Path, required=True, help="weights of a retraining")

    _add_studies(parsers["study"])

    export = parsers["export"]
    export.add_argument("source", help="run directory; with weights also an architecture JSON, or a shipped one's name")
    export.add_argument("--out", "-o", type=Path, required=True, metavar="FILE", help="file to write")
    export.add_argument(
        "--format",
        choices=["architecture", *FORMATS],
        default="architecture",
        help="architecture JSON of a run, or model file of a trained detector (default: %(default)s)",
    )
    export.add_argument("--epoch", type=int, help="architecture: decode the alphas after this epoch (from 0)")
    export.add_argument(
        "--weights", type=Path, metavar="FILE", help="model file: weights of a retraining (default: those of the run)"
    )
    export.add_argument(
        "--raw-heads", action="store_true", help="model file: what the heads say, before decoding and suppression"
    )
    export.add_argument("--force", action="store_true", help="overwrite the file")

    config = parsers["export-config"]
    config.add_argument("architecture", help="architecture JSON, or a shipped one's name")
    config.add_argument("--out", "-o", type=Path, required=True, metavar="FILE", help="mmdet config to write")
    config.add_argument("--force", action="store_true", help="overwrite the file")

    profile = parsers["profile"]
    profile.add_argument("target", help="architecture JSON, run directory, mmdet config (.py), or a shipped name")
    profile.add_argument(
        "--shape",
        type=int,
        nargs=2,
        metavar=("H", "W"),
        help="input size (default: the skeleton's; a config: 800 1216)",
    )
    profile.add_argument("--proposals", type=int, help="RoIs that the head sees (default: as many as in testing)")
    profile.add_argument("--convention", choices=["macs", "paper"], default="macs", help="how FLOPs are counted")
    profile.add_argument("--layers", action="store_true", help="list every layer (of an architecture)")

    tables = parsers["tables"]
    tables.add_argument("number", nargs="?", type=int, choices=[1, 2, 5, 6], help="one table (default: all)")
    tables.add_argument(
        "--run",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="run directory of a retrained row, whose accuracies are shown too",
    )
    tables.add_argument(
        "--markdown", type=Path, metavar="FILE", help="write all tables between the markers in FILE instead of printing"
    )

    tables.add_argument("--count", action="store_true", help="count the baselines again, on mmdet's modules")

    report = parsers["report"]
    report.add_argument("run", type=Path, help="run directory")
    report.add_argument("--out", "-o", type=Path, metavar="FILE", help="page to write (default: RUN/report.html, anew)")
    report.add_argument(
        "--pictures",
        type=int,
        default=6,
        metavar="N",
        help="validation pictures to show detections on, 0 for none (default: %(default)s)",
    )
    report.add_argument("--tensorboard", type=Path, metavar="DIR", help="write the curves for TensorBoard there, too")
    compare = parsers["compare"]
    compare.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run directories")
    compare.add_argument("--out", "-o", type=Path, required=True, metavar="FILE", help="page to write")
    for name in ("report", "compare"):
        parsers[name].add_argument("--force", action="store_true", help="overwrite the file")
    return parser


def _add_overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides", help="set a dotted key"
    )


def _add_run_directory(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="run directory")
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--force", action="store_true", help="remove the results that are there")
    group.add_argument("--resume", action="store_true", help="go on exactly where an earlier run stopped")


STUDIES = {
    "random": "the found architecture against random ones of its cost, all retrained under one protocol",
    "operators": "one operator at a random layer of one part of the baseline (Fig. 3)",
    "sparsity": "the scores of screening with several weights of the column-sparse term (Fig. 4)",
    "sub-spaces": "one sub search space for all components against one each (Table 4)",
    "parts": "each searched part alone in the baseline (Table 5)",
}


def _add_studies(parser: argparse.ArgumentParser) -> None:
    """The kinds of ``study``, each with what it needs: a run, or a config."""
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    for name, text in STUDIES.items():
        kind = kinds.add_parser(name, help=text, description=text)
        if name in ("operators", "sparsity"):
            kind.add_argument("--config", required=True, help="config file, or a shipped config's name")
        else:
            kind.add_argument("--run", type=Path, required=True, metavar="RUN", help="run directory of the search")
            kind.add_argument(
                "--seeds", type=int, default=3, help="retrainings of each architecture (default: %(default)s)"
            )
        if name != "sparsity":
            kind.add_argument("--jobs", type=int, default=1, help="retrainings side by side (default: %(default)s)")
        _add_overrides(kind)
        _add_run_directory(kind)
        kind.add_argument("--json", action="store_true", help="print JSON")
    rivals, operators, sparsity = (kinds.choices[name] for name in ("random", "operators", "sparsity"))
    rivals.add_argument("--architectures", type=int, default=8, help="random architectures (default: %(default)s)")
    rivals.add_argument(
        "--slack",
        type=float,
        default=0.1,
        help="random ones cost at most as much as the searched one, and at most this share less (default: %(default)s)",
    )
    parts = ("backbone", "neck", "head")
    operators.add_argument("--repeats", type=int, default=6, help="layers tried (default: %(default)s)")
    operators.add_argument("--operators", nargs="+", metavar="NAME", help="operators (default: the twelve of Fig. 3)")
    operators.add_argument("--parts", nargs="+", choices=parts, help="parts (default: all)")
    sparsity.add_argument("--part", choices=parts, default="backbone", help="what is screened (default: %(default)s)")
    sparsity.add_argument(
        "--weights", type=float, nargs="+", default=[0.0, 0.01, 0.1], metavar="MU", help="mu (default: 0 0.01 0.1)"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; errors of the user end with status 2 and one line on standard error."""
    escape_unprintable()
    options = build_parser().parse_args(arguments)
    # Only now, so that --help loads neither torch nor mmdet.
    commands = importlib.import_module("hitdet_nni.commands")
    try:
        commands.run(options)
    except InputError as error:
        sys.stderr.write(f"hitdet-nni: {error}\n")
        return 2
    except StoppedError as error:
        sys.stderr.write(f"hitdet-nni: {error}\n")
        return 1
    except KeyboardInterrupt:
        way = "; the same command with --resume goes on from there" if hasattr(options, "resume") else ""
        sys.stderr.write(f"hitdet-nni: interrupted{way}\n")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
