"""Write docs/benchmarks.md from what the benchmarks printed with ``--json``, and from what gpu.sh wrote.

python benchmarks/supernet_step.py --json > docs/benchmarks/supernet_step.json
python benchmarks/supernet_step.py --json --device cuda --layers > docs/benchmarks/supernet_step_gpu.json
python benchmarks/full_size.py --json --precision fp32 --implementations NNI > docs/benchmarks/full_size.json
python benchmarks/peers.py --json > docs/benchmarks/peers.json
python benchmarks/largest_batch.py --json > docs/benchmarks/largest_batch.json
python benchmarks/start_up.py --json > docs/benchmarks/start_up.json
python benchmarks/document.py
bash benchmarks/gpu.sh OUT && python benchmarks/document.py --gpu OUT/gpu.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[1] / "docs"
FIGURES = DOCS / "benchmarks"
PAGE = DOCS / "benchmarks.md"
GPU_STEM = "gpu"
"""Stem of the file of what gpu.sh wrote."""

Report = Mapping[str, Any]

INTRODUCTION = """\
# Benchmarks

Written by `python benchmarks/document.py` from the figures in `docs/benchmarks/`, which
the scripts in `benchmarks/` print with `--json`. Ours and NNI's run in turn in one process, so that what disturbs the
machine hits both; a ratio is the median of the ratios of the rounds. Times alone say little about another machine.
"""

STEP = """\
## A search step: ours against NNI's

A step is what first-order DARTS does with a pair of batches: forward and backward for the architecture parameters,
then for the weights. NNI's own mixed layer computes all gradients in both; ours, those that the phase trains. `mid`,
`slim` and `lean` are values of `supernet.saving` ([fused.md](fused.md)): the same sum and the same gradients, keeping
less. "Saved" is what autograd keeps between forward and backward, "peak" the largest resident memory in a step over
idle; "of GEMM" is the FLOP/s of the passes that no implementation can leave out, over those of a product of matrices
on the same machine by the faster of torch's two libraries.
"""

STEP_GPU = """\
## Layers on a GPU

The same for four pictures of 800 x 1216 and 512 RoIs of each, in single precision. ATen's defaults round convolutions
to TF32 and leave products of matrices exact: NNI's 1x1 layers are convolutions, ours are products, and "of GEMM" may
exceed 1. What is saved has the same share of NNI's as on a CPU. Time is another matter: many small operations cost
more to start than to compute ([fused.md](fused.md#on-a-gpu)).
"""

LAYERS = """\
## Layers on a GPU

The same as of single layers above for four pictures of 800 x 1216 and 512 RoIs of each. "Peak" is what torch takes
from the GPU for a step, with what recorded passes hold between steps. ATen's defaults round the convolutions of single
precision to TF32 and leave products of matrices exact: NNI's 1x1 layers are convolutions, ours products, and in fp32
"of GEMM" may exceed 1. In bf16 activations have 16 bits.
"""

SUPERNETS = """\
## Whole supernets on a GPU

A step of both phases with its updates on random pictures. "GB" is what torch takes from the GPU for it, over parameters
and optimisers, with what recorded passes hold between steps. The ways to compute a supernet run in turn in one process.
"""

AUTOMATIC = """\
## What `supernet.saving: auto` chooses on a GPU

By timing a step of each component in each mode, then of those chosen ([fused.md](fused.md#which-mode)); the steps of
the last columns are taken in turn with NNI's after that.
"""

PROFILES = """\
## What a step on a GPU consists of

The time that the GPU computes, by its profiler, over the wall time of a step without it. Where it is short of three
quarters, starting the kernels is what limits the step.
"""

SEARCHES = """\
## A whole search on a GPU, in two precisions

Screening, search and retraining by the `hitdet-nni` command, both precisions side by side on one GPU, one seed. How far
seeds alone move such figures is in [results.md](results.md).
"""

TESTS = """\
## Tests on a GPU
"""

FULL_SIZE = """\
## Whole supernets on a GPU

A step of both phases with its updates, pictures of 800 x 1216, all tensors over parameters and optimisers. Only NNI's
own layers have been run at this size; ours are further down, by estimate.
"""

PEERS = """\
## Other ways to afford a supernet

One mixed layer by the means that others use. Two paths (ProxylessNAS) and partial channels (PC-DARTS) compute another,
cheaper sum: their rows say what the approximation buys.
"""

LARGEST_BATCH = """\
## The largest batch on one GPU

By the estimate that a search prints before its first step, not by running it: the tensors of a step counted without
data, without what the driver and libraries hold. It is too large: for NNI's own layers by 27 and 37 percent where
they have been run (above: a further picture of the trinity takes 38.2 GB, of the backbone's screening 20.7), for the
fused modes by more, as it lets what passes within a layer grow with the maps where the layer would work in pieces.
They hold at least the batch named.
"""

START_UP = """\
## Start-up

From the start of a command to its end, or to its first line, against `import torch` alone: the best of three. What
needs no network loads none, and a mistake in an option, a config or a path is told before anything heavy is imported.
"""


def surroundings(report: Report) -> str:
    """One line that says where and when a report was made, and what its ``remark``, if it was given one, adds."""
    device = "" if report["device"] == "cpu" else f", {report['device']}"
    nni = f", NNI {report['nni']}" if "nni" in report else ""
    remark = f" {report['remark']}" if "remark" in report else ""
    return (
        f"{report['processor']}{device}, threads: {report['threads']}, torch {report['torch']}{nni}, "
        f"Python {report['python']}, {report['date'][:10]}, {report['clock']} clock.{remark}"
    )


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table whose first two columns are words."""
    marks = ["---" if index < 2 else "---:" for index in range(len(header))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, marks, *rows))


def _number(value: float | None, digits: int, unit: str = "") -> str:
    return "" if value is None else f"{value:.{digits}f}{unit}"


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
                _number(row["seconds"], 3),
                _number(row["speedup"], 2, "x"),
                _number(row["saved_mb"], 0, " MB"),
                _number(row["saved_share"], 3),
                _number(row["peak_mb"], 0, " MB"),
                _number(row["peak_share"], 3),
                _number(row["gemm_share"], 2),
            )
            for row in report["figures"]
        ),
    )


def full_size_table(report: Report) -> str:
    """The table of :mod:`full_size`."""
    header = ("supernet", "mode", "candidates", "precision", "batch", "s a step", "GB", "pictures a s", "largest")
    rows = (
        (
            row["case"],
            row["implementation"] if row["implementation"] == "NNI" else f"`{row['implementation']}`",
            str(row["candidates"]),
            row["precision"],
            str(row["batch"]),
            _number(row["seconds"], 2),
            _number(row["gb"], 1),
            _number(row["seconds"] and row["batch"] / row["seconds"], 2),
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
            _number(row["seconds"], 3),
            _number(row["speedup"], 2, "x"),
            _number(row["saved_mb"], 0, " MB"),
            _number(row["peak_mb"], 0, " MB"),
        )
        for row in report["figures"]
    )
    case = report["case"]
    layer = f"[{case['count']}, {case['channels']}, {case['height']}, {case['width']}]"
    return f"Layer of the {case['name']}, input {layer}, {report['candidates']} candidates.\n\n{table(header, rows)}"


def largest_batch_table(report: Report) -> str:
    """The table of :mod:`largest_batch`."""
    header = ("supernet", "`supernet.saving`", "candidates", "GB a picture", "GB besides", "largest batch")
    rows = (
        (
            row["case"],
            f"`{row['implementation']}`",
            str(row["candidates"]),
            _number(row["picture_gb"], 2),
            _number(row["fixed_gb"], 2),
            str(row["largest"]),
        )
        for row in report["figures"]
    )
    height, width = report["input_size"]
    setting = f"`{report['config']}`: pictures of {height} x {width} or upright, {report['precision']}, a GPU of"
    return f"{setting} {report['memory_gb']:g} GB.\n\n{table(header, rows)}"


def start_up_table(report: Report) -> str:
    """The table of :mod:`start_up`."""
    rows = ((row["command"], "", _number(row["seconds"], 3), _number(row["of_torch"], 2)) for row in report["figures"])
    return table(("command", "", "s", "of import torch"), rows)


def layers_table(report: Report) -> str:
    """The table of single layers of :mod:`gpu_parts`."""
    header = ("case", "mode", "precision", "candidates", "s a step", "faster", "saved", "of NNI's", "peak", "of NNI's")
    rows = (
        (
            row["case"],
            _mode(row),
            row["precision"],
            str(row["candidates"]),
            _number(row["seconds"], 4),
            _number(row["speedup"], 2, "x"),
            _number(row["saved_mb"], 0, " MB"),
            _number(row["saved_share"], 3),
            _number(row["peak_mb"], 0, " MB"),
            _number(row["peak_share"], 3),
            _number(row["gemm_share"], 2),
        )
        for row in report["figures"]
    )
    return table((*header, "of GEMM"), rows)


def supernets_table(report: Report) -> str:
    """The table of whole supernets of :mod:`gpu_parts`."""
    header = ("supernet", "mode", "precision", "candidates", "batch", "s a step", "faster", "GB", "of NNI's", "of GEMM")
    rows = (
        (
            row["case"],
            _mode(row),
            row["precision"],
            str(row["candidates"]),
            str(row["batch"]),
            _number(row["seconds"], 3) or "more memory than there is",
            _number(row["speedup"], 2, "x"),
            _number(row["peak_gb"], 1),
            _number(row["peak_share"], 3),
            _number(row["gemm_share"], 2),
        )
        for row in report["figures"]
    )
    height, width = report["input_size"]
    rates = ", ".join(f"{rate / 1e12:.3g} TFLOP/s in {precision}" for precision, rate in report["gemm_flops"].items())
    return f"`{report['config']}`: {height} x {width}. A large product of matrices: {rates}.\n\n{table(header, rows)}"


def automatic_table(report: Report) -> str:
    """The table of what ``auto`` chose."""
    header = ("supernet", "chosen", "precision", "batch", "NNI, s a step", "chosen, s", "faster", "choosing, s")
    rows = (
        (
            row["case"],
            ", ".join(f"{component} `{mode}`" for component, mode in row["modes"].items()),
            row["precision"],
            str(row["batch"]),
            _number(row["stock_s"], 3),
            _number(row["seconds"], 3),
            _number(row["speedup"], 2, "x"),
            _number(row["choice_s"], 0),
        )
        for row in report["figures"]
    )
    return table(header, rows)


def profiles_table(report: Report) -> str:
    """The table of profiles of :mod:`gpu_parts`, and the longest kernels of each."""
    header = ("supernet", "mode", "precision", "batch", "s a step", "s of kernels", "share", "kernels", "limited by")
    parts = [
        table(
            header,
            (
                (
                    row["case"],
                    _mode(row),
                    row["precision"],
                    str(row["batch"]),
                    _number(row["wall_s"], 3),
                    _number(row["device_s"], 3),
                    _number(row["busy"], 2),
                    str(row["launches"]),
                    row["limit"],
                )
                for row in report["figures"]
            ),
        )
    ]
    for row in report["figures"]:
        name = f"{row['case']}, {_mode(row)}, {row['precision']}"
        kernels = (
            (f"`{_short(kernel['name'])}`", "", str(kernel["calls"]), _number(kernel["ms"], 1))
            for kernel in row["kernels"][:LISTED]
        )
        parts.append(f"Longest kernels of {name}:\n\n{table(('kernel', '', 'calls', 'ms'), kernels)}")
    return "\n\n".join(parts)


LISTED = 10
"""Kernels of a profile on the page; the file of figures has more."""


def _short(name: str) -> str:
    """A kernel's name without what would break a table, cut to a line."""
    clean = " ".join(name.replace("|", "/").replace("`", "'").split())
    return clean if len(clean) <= 80 else clean[:77] + "..."


def _mode(row: Report) -> str:
    name = row["implementation"]
    return "NNI" if name in ("stock", "NNI") else f"`{name}`"


def searches_table(report: Report) -> str:
    """The table of :mod:`gpu_search`."""
    header = ("data", "size", "precision", "search, s", "retraining, s", "mAP", "GFLOPs", "same operators")
    first: dict[str, Mapping[str, str]] = {}
    rows = []
    for row in report["figures"]:
        sample = row["sample"] or {}
        reference = first.setdefault(row["data"], sample)
        same = sum(reference.get(label) == name for label, name in sample.items())
        shared = f"{same} of {len(sample)}" if sample else row["problem"] or ""
        spent = (_number(row["search_s"], 0), _number(row["retrain_s"], 0))
        figures = (_number(row["map"], 3), _number(row["gflops"], 3))
        rows.append((row["data"], row["size"], row["precision"], *spent, *figures, shared))
    return table(header, rows)


def tests_text(report: Report) -> str:
    """Outcome of the tests, and what they measured."""
    failed = "".join(f"\n- failed: `{name}`" for name in report["failed"])
    figures = "".join(f"\n- `{name}`: {text}" for name, text in report["figures"].items())
    numbers = f"{report['passed']} passed, {len(report['failed'])} failed, {report['skipped']} skipped."
    return numbers + ("\n" + failed + figures if failed or figures else "")


GPU_SECTIONS: Mapping[str, tuple[str, Callable[[Report], str]]] = {
    "layers": (LAYERS, layers_table),
    "supernets": (SUPERNETS, supernets_table),
    "auto": (AUTOMATIC, automatic_table),
    "profile": (PROFILES, profiles_table),
    "search": (SEARCHES, searches_table),
    "tests": (TESTS, tests_text),
}
"""Text and table of each part of gpu.sh."""

REPLACED = {"supernet_step_gpu": "layers", "full_size": "supernets"}
"""Files of figures that a part of gpu.sh stands in for, by stem."""


def gpu_parts(folder: Path) -> dict[str, Report]:
    """The parts of gpu.sh that have figures, in the order of the page."""
    path = folder / f"{GPU_STEM}.json"
    if not path.is_file():
        return {}
    parts = json.loads(path.read_text(encoding="utf-8"))["parts"]
    return {name: parts[name] for name in GPU_SECTIONS if "report" in parts.get(name, {})}


def gpu_section(name: str, part: Report) -> str:
    """The section of one part of gpu.sh."""
    text, rows = GPU_SECTIONS[name]
    made = part["made"]
    where = surroundings(made)
    if made.get("triton"):
        where += f" Triton {made['triton']}."
    if made.get("commit"):
        where += f" Commit {made['commit'][:12]}."
    if made["toy"]:
        where += " At toy sizes, which say nothing but that it runs."
    missing = part["report"].get("missing")
    left = f"\nNot measured: {'; '.join(missing)}.\n" if missing else ""
    note = f"\n{part['note']}\n" if part.get("note") else ""
    return f"{text}\n{where}\n\n{rows(part['report'])}\n{left}{note}"


def take_gpu(written: Path, folder: Path = FIGURES) -> None:
    """Keep what gpu.sh wrote: parts that have figures replace those of an earlier file, the others stay.

    Args:
        written: Its gpu.json.
        folder: Where figures are kept.
    """
    path = folder / f"{GPU_STEM}.json"
    kept = json.loads(path.read_text(encoding="utf-8"))["parts"] if path.is_file() else {}
    report = json.loads(written.read_text(encoding="utf-8"))
    made = {key: value for key, value in report.items() if key != "parts"}
    new = {name: {"made": made, **part} for name, part in report["parts"].items() if "report" in part}
    path.write_text(json.dumps({"parts": kept | new}, indent=1) + "\n", encoding="utf-8")


SECTIONS: Mapping[str, tuple[str, Callable[[Report], str]]] = {
    "supernet_step": (STEP, step_table),
    "supernet_step_gpu": (STEP_GPU, step_table),
    "full_size": (FULL_SIZE, full_size_table),
    "peers": (PEERS, peers_table),
    "largest_batch": (LARGEST_BATCH, largest_batch_table),
    "start_up": (START_UP, start_up_table),
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
    parser.add_argument("--gpu", type=Path, help="gpu.json of gpu.sh: its parts are kept in docs/benchmarks")
    options = parser.parse_args()
    if options.gpu is not None:
        take_gpu(options.gpu)
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
