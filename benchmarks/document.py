"""Write docs/benchmarks.md from what the benchmarks printed with ``--json``, and from what gpu.sh wrote.

python benchmarks/supernet_step.py --json > docs/benchmarks/supernet_step.json
python benchmarks/supernet_step.py --json --device cuda --layers > docs/benchmarks/supernet_step_gpu.json
python benchmarks/full_size.py --json --precision fp32 --implementations NNI > docs/benchmarks/full_size.json
python benchmarks/peers.py --json > docs/benchmarks/peers.json
torchrun --nproc-per-node 2 benchmarks/synced_layer.py --json > docs/benchmarks/synced_layer.json
python benchmarks/largest_batch.py --json > docs/benchmarks/largest_batch.json
python benchmarks/start_up.py --json > docs/benchmarks/start_up.json
python benchmarks/front_methods.py runs/mine --json > docs/benchmarks/front_methods.json
python benchmarks/two_settings.py --first ... --second ... --json > docs/benchmarks/precision.json
python benchmarks/document.py
bash benchmarks/gpu.sh OUT && python benchmarks/document.py --gpu OUT/gpu.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path

from document_gpu import REPLACED, gpu_parts, gpu_section
from document_tables import DOCS, FIGURES, Report, number, surroundings, table
from gpu_figures import take_gpu

PAGE = DOCS / "benchmarks.md"
INTRODUCTION = """\
# Benchmarks

Written by `python benchmarks/document.py` from the figures in `docs/benchmarks/`, which
the scripts in `benchmarks/` print with `--json`. Ours and NNI's run in turn in one process, so that what disturbs the
machine hits both; a ratio is the median of the ratios of the rounds. Times alone say little about another machine.
"""

STEP = """\
## A search step: ours against NNI's

A step is what first-order DARTS does with a pair of batches: forward and backward for the architecture parameters,
then for the weights. NNI's own mixed layer computes all gradients in both; ours, those that the phase trains. `fused`,
`fused-low` and `fused-min` are values of `supernet.activations` ([fused.md](fused.md)): the same sum and the same
gradients, keeping less.
"Saved" is what autograd keeps between forward and backward, "peak" the largest resident memory in a step over idle; "of
GEMM" is the FLOP/s of the passes that no implementation can leave out, over those of a product of matrices on the same
machine by the faster of torch's two libraries.
"""

STEP_GPU = """\
## Layers on a GPU

The same for four images of 800 x 1216 and 512 RoIs of each, in single precision. ATen's defaults round convolutions
to TF32 and leave products of matrices exact: NNI's 1x1 layers are convolutions, ours are products, and "of GEMM" may
exceed 1. What is saved has the same share of NNI's as on a CPU. Time is another matter: many small operations cost
more to start than to compute ([fused.md](fused.md#on-a-gpu)).
"""

FULL_SIZE = """\
## Whole supernets on a GPU

A step of both phases with its updates, images of 800 x 1216, all tensors over parameters and optimisers. Only NNI's
own layers have been run at this size; ours are further down, by estimate.
"""

PEERS = """\
## Other ways to afford a supernet

One mixed layer by the means that others use. Two paths (ProxylessNAS) and partial channels (PC-DARTS) compute another,
cheaper sum: their rows say what the approximation buys.
"""

SYNCED_LAYER = """\
## Layers in several processes

Layers of several processes that share the statistics of batch normalisation (`batch_norm: synced`), each process with
its own maps. A step of both phases takes as long as in the slowest process. "Exchanges" is how often it speaks to the
others: each normalisation once a pass; a mixture's expansions together, but each piece of large maps by itself. NNI's
layer is given this project's synced normalisation.
"""

LARGEST_BATCH = """\
## The largest batch on one GPU

By the estimate that a search prints before its first step, not by running it: the tensors of a step counted without
data, those of the fused modes as a GPU's programs make them, with what recorded passes hold between steps. One image is
counted at the input size, over parameters and optimisers as what was run above; the images of a batch as squares, since
a batch with upright images is padded to one. `all` keeps what NNI's layers keep, and with one image is 7 to 11 percent
below what these took: 40.3 GB for the trinity, 21.7 for the backbone's screening, 98.3 for the joint one. The fused
modes have not been run since their passes share memory ([fused.md](fused.md#on-a-gpu)). What they took before the same
count gave to between 74 and 100 percent.
"""

START_UP = """\
## Start-up

From the start of a command to its end, or to its first line, against `import torch` alone: the best of three. What
needs no network loads none, and a mistake in an option, a config or a path is told before anything heavy is imported.
"""

FRONT_METHODS = """\
## Ways to find a front

How good a [front](pareto.md) each way finds in one trained supernet with equally many evaluations: what
`hitdet-nni front` tries, NSGA-II (optuna's, 24 a generation) and drawing at random. All try architectures on the same
images; what each has found is then evaluated on other images, and the hypervolume is of those losses: the share of the
box of all costs (on a logarithmic axis) and all losses that the front beats. "Of ours" is the median over the seeds.
"""

PRECISION = """\
## A search in another precision

Does `precision: bf16` change what a search finds more than another seed does? The digits of
[results.md](results.md#on-the-digits), screened, searched and retrained with several seeds in both
precisions, on a CPU that multiplies in bf16. Compared are pairs of searches: "rho" is the rank correlation of the
screenings' scores of all operators, "kept" how many of the kept operators both have, "same layers" the share of layers
with one operator in both architectures. [What it says](results.md#in-bf16)
"""


def step_table(report: Report) -> str:
    """The table of :mod:`supernet_step`."""
    header = ("case", "mode", "candidates", "s a step", "faster", "saved", "of NNI's", "peak", "of NNI's", "of GEMM")
    return table(
        header,
        (
            (
                row["case"],
                "NNI" if row["implementation"] == "stock" else f"`{row['implementation']}`",
                str(row["candidates"]),
                number(row["seconds"], 3),
                number(row["speedup"], 2, "x"),
                number(row["saved_mb"], 0, " MB"),
                number(row["saved_share"], 3),
                number(row["peak_mb"], 0, " MB"),
                number(row["peak_share"], 3),
                number(row["gemm_share"], 2),
            )
            for row in report["figures"]
        ),
    )


def full_size_table(report: Report) -> str:
    """The table of :mod:`full_size`."""
    header = ("supernet", "mode", "candidates", "precision", "batch", "s a step", "GB", "images a s", "largest")
    rows = (
        (
            row["case"],
            row["implementation"] if row["implementation"] == "NNI" else f"`{row['implementation']}`",
            str(row["candidates"]),
            row["precision"],
            str(row["batch"]),
            number(row["seconds"], 2),
            number(row["gb"], 1),
            number(row["seconds"] and row["batch"] / row["seconds"], 2),
            "yes" if row["largest"] else "",
        )
        for row in report["figures"]
    )
    height, width = report["input_size"]
    setting = f"`{report['config']}`: {height} x {width}, a GPU of {report['memory_gb']:.1f} GB."
    return f"{setting}\n\n{table(header, rows)}"


def peers_table(report: Report) -> str:
    """The table of :mod:`peers`."""
    header = ("implementation", "computes", "s a step", "faster", "saved", "peak")
    rows = (
        (
            "NNI" if row["implementation"] == "stock" else row["implementation"],
            "the sum" if row["exact"] else "an approximation",
            number(row["seconds"], 3),
            number(row["speedup"], 2, "x"),
            number(row["saved_mb"], 0, " MB"),
            number(row["peak_mb"], 0, " MB"),
        )
        for row in report["figures"]
    )
    case = report["case"]
    layer = f"[{case['count']}, {case['channels']}, {case['height']}, {case['width']}]"
    return f"Layer of the {case['name']}, input {layer}, {report['candidates']} candidates.\n\n{table(header, rows)}"


def synced_layer_table(report: Report) -> str:
    """The table of :mod:`synced_layer`."""
    rows = (
        (
            row["case"],
            f"`{row['implementation']}`"
            if row["implementation"].startswith("fused")
            else row["implementation"].replace("stock", "NNI"),
            str(row["candidates"]),
            number(row["seconds"], 3),
            number(row["speedup"], 2, "x"),
            number(row["exchanges"], 0),
        )
        for row in report["figures"]
    )
    header = ("case", "mode", "candidates", "s a step", "faster", "exchanges")
    return f"{report['processes']} processes of one machine.\n\n{table(header, rows)}"


def largest_batch_table(report: Report) -> str:
    """The table of :mod:`largest_batch`."""
    header = (
        "supernet",
        "`supernet.activations`",
        "candidates",
        "GB of one",
        "GB an image",
        "GB besides",
        "largest batch",
    )
    rows = (
        (
            row["case"],
            f"`{row['implementation']}`",
            str(row["candidates"]),
            number(row["one_gb"], 2),
            number(row["image_gb"], 2),
            number(row["fixed_gb"], 2),
            str(row["largest"]),
        )
        for row in report["figures"]
    )
    height, width = report["input_size"]
    setting = f"`{report['config']}`: images of {height} x {width} or upright, {report['precision']}, a GPU of"
    return f"{setting} {report['memory_gb']:g} GB.\n\n{table(header, rows)}"


def start_up_table(report: Report) -> str:
    """The table of :mod:`start_up`."""
    rows = ((row["command"], "", number(row["seconds"], 3), number(row["of_torch"], 2)) for row in report["figures"])
    return table(("command", "", "s", "of import torch"), rows)


def front_methods_table(report: Report) -> str:
    """The table of :mod:`front_methods`."""
    rows = (
        (
            one["way"],
            number(one["hypervolume"], 3),
            number(one["deviation"], 3),
            number(one["of_ours"], 3),
            number(one["points"], 1),
            number(one["evaluations"], 0),
        )
        for one in report["figures"]
    )
    setting = f"{report['seeds']} seeds of each, cost: {report['cost']}."
    header = ("way", "hypervolume", "deviation", "of ours", "points", "evaluations")
    return f"{setting}\n\n{table(header, rows)}"


def precision_table(report: Report) -> str:
    """The tables of :mod:`two_settings`."""
    rows = (
        (
            one["component"],
            one["pairs"],
            str(one["number"]),
            f"{one['spearman']:+.2f}",
            number(one["deviation"], 2),
            f"{one['common']:.1f} of {one['kept']}",
            number(one["chance"], 1),
            number(one["layers"], 2),
        )
        for one in report["figures"]
    )
    retrained = (
        (
            one["name"],
            number(one["mean"], 3),
            number(one["deviation"], 3),
            "" if one["difference"] is None else f"{one['difference']:+.3f}",
            number(one["difference_deviation"], 3),
        )
        for one in report["retrained"]
    )
    changed = ", ".join(f"`{key}`: first {one}, second {other}" for key, (one, other) in report["settings"].items())
    agreement = table(("part", "pairs", "number", "rho", "deviation", "kept", "by chance", "same layers"), rows)
    header = ("retrained", "mAP", "deviation", "against the first", "deviation")
    return f"{report['seeds']} seeds; {changed}.\n\n{agreement}\n\n{table(header, retrained)}"


SECTIONS: Mapping[str, tuple[str, Callable[[Report], str]]] = {
    "supernet_step": (STEP, step_table),
    "supernet_step_gpu": (STEP_GPU, step_table),
    "full_size": (FULL_SIZE, full_size_table),
    "peers": (PEERS, peers_table),
    "synced_layer": (SYNCED_LAYER, synced_layer_table),
    "largest_batch": (LARGEST_BATCH, largest_batch_table),
    "start_up": (START_UP, start_up_table),
    "front_methods": (FRONT_METHODS, front_methods_table),
    "precision": (PRECISION, precision_table),
}
"""Text and table of each file of figures, by the file's stem."""


def page(folder: Path = FIGURES) -> str:
    """The whole page."""
    parts = [INTRODUCTION]
    gpu = gpu_parts(folder)
    for stem, (text, rows) in SECTIONS.items():
        if stem == "peers":
            parts += [gpu_section(name, part) for name, part in gpu.items()]
        if REPLACED.get(stem) in gpu:
            continue
        report = json.loads((folder / f"{stem}.json").read_text(encoding="utf-8"))
        parts.append(f"{text}\n{surroundings(report)}\n\n{rows(report)}\n")
    return "\n".join(parts)


def main() -> None:
    """Take figures in, if any are given, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpu", type=Path, help="gpu.json of gpu.sh: its figures are kept in docs/benchmarks")
    parser.add_argument("--note", default="", help="words for the page beside the figures of --gpu")
    options = parser.parse_args()
    if options.gpu is not None:
        take_gpu(options.gpu, note=options.note)
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
