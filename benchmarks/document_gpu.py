"""The sections of docs/benchmarks.md that gpu.sh's figures make."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from document_tables import Report, number, surroundings, table
from gpu_figures import GPU_STEM, part_runs

LAYERS = """\
## Layers on a GPU

The same as of single layers above for four images of 800 x 1216 and 512 RoIs of each. "Peak" is what torch takes
from the GPU for a step, with what recorded passes hold between steps. ATen's defaults round the convolutions of single
precision to TF32 and leave products of matrices exact: NNI's 1x1 layers are convolutions, ours products, and in fp32
"of GEMM" may exceed 1. In bf16 activations have 16 bits. Commits up to f12d123 recorded passes that did not share their
memory yet ([fused.md](fused.md#on-a-gpu)): "peak" and "GB" of the fused modes, here and below, are of that.
"""

SUPERNETS = """\
## Whole supernets on a GPU

A step of both phases with its updates on random images. "GB" is what torch takes from the GPU for it, over parameters
and optimisers, with what recorded passes hold between steps. The ways to compute a supernet run in turn in one process.
"""

AUTOMATIC = """\
## What `supernet.activations: auto` chooses on a GPU

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

LARGEST = """\
## The largest batch that a GPU has held

A batch counts as held when steps of both phases, optimisers included, have run with it. "GB" is what torch takes from
the GPU over parameters and optimisers.
"""

TESTS = """\
## Tests on a GPU
"""

LISTED = 10
"""Kernels of a profile on the page; the file of figures has more."""


def layers_table(report: Report) -> str:
    """The table of single layers of :mod:`gpu_parts`."""
    header = ("case", "mode", "precision", "candidates", "s a step", "faster", "saved", "of NNI's", "peak", "of NNI's")
    rows = (
        (
            row["case"],
            _mode(row),
            row["precision"],
            str(row["candidates"]),
            number(row["seconds"], 4),
            number(row["speedup"], 2, "x"),
            number(row["saved_mb"], 0, " MB"),
            number(row["saved_share"], 3),
            number(row["peak_mb"], 0, " MB"),
            number(row["peak_share"], 3),
            number(row["gemm_share"], 2),
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
            number(row["seconds"], 3) or "more memory than there is",
            number(row["speedup"], 2, "x"),
            number(row["peak_gb"], 1),
            number(row["peak_share"], 3),
            number(row["gemm_share"], 2),
        )
        for row in report["figures"]
    )
    height, width = report["input_size"]
    return f"`{report['config']}`: {height} x {width}.\n\n{table(header, rows)}"


def automatic_table(report: Report) -> str:
    """The table of what ``auto`` chose."""
    header = ("supernet", "chosen", "precision", "batch", "NNI, s a step", "chosen, s", "faster", "choosing, s")
    rows = (
        (
            row["case"],
            ", ".join(f"{component} `{mode}`" for component, mode in row["modes"].items()),
            row["precision"],
            str(row["batch"]),
            number(row["stock_s"], 3),
            number(row["seconds"], 3),
            number(row["speedup"], 2, "x"),
            number(row["choice_s"], 0),
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
                    number(row["wall_s"], 3),
                    number(row["device_s"], 3),
                    number(row["busy"], 2),
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
            (f"`{_short(kernel['name'])}`", "", str(kernel["calls"]), number(kernel["ms"], 1))
            for kernel in row["kernels"][:LISTED]
        )
        parts.append(f"Longest kernels of {name}:\n\n{table(('kernel', '', 'calls', 'ms'), kernels)}")
    return "\n\n".join(parts)


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
        spent = (number(row["search_s"], 0), number(row["retrain_s"], 0))
        figures = (number(row["map"], 3), number(row["gflops"], 3))
        rows.append((row["data"], row["size"], row["precision"], *spent, *figures, shared))
    return table(header, rows)


def largest_table(report: Report) -> str:
    """The table of the largest batches of :mod:`gpu_parts`."""
    header = ("supernet", "mode", "precision", "batch", "GB", "s a step", "images a second")
    rows = (
        (
            row["case"],
            _mode(row),
            row["precision"],
            f"**{row['batch']}**" if row["largest"] else str(row["batch"]),
            number(row["gb"], 1),
            number(row["seconds"], 3) or "more memory than there is",
            number(row["batch"] / row["seconds"], 2) if row["seconds"] else "",
        )
        for row in report["figures"]
    )
    height, width = report["input_size"]
    return f"`{report['config']}`: {height} x {width}. In bold the largest.\n\n{table(header, rows)}"


def tests_text(report: Report) -> str:
    """Outcome of the tests, and what they measured."""
    failed = "".join(f"\n- failed: `{name}`" for name in report["failed"])
    figures = "".join(f"\n- `{name}`: {text}" for name, text in report["figures"].items())
    numbers = f"{report['passed']} passed, {len(report['failed'])} failed, {report['skipped']} skipped"
    numbers += f", {report['unfinished']} ended by the clock." if report.get("unfinished") else "."
    return numbers + ("\n" + failed + figures if failed or figures else "")


GPU_SECTIONS: Mapping[str, tuple[str, Callable[[Report], str]]] = {
    "layers": (LAYERS, layers_table),
    "supernets": (SUPERNETS, supernets_table),
    "auto": (AUTOMATIC, automatic_table),
    "profile": (PROFILES, profiles_table),
    "search": (SEARCHES, searches_table),
    "largest": (LARGEST, largest_table),
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
    runs = part_runs(name, part)
    missing = part["report"].get("missing")
    left = f"\nNot measured: {'; '.join(missing)}.\n" if missing else ""
    if len(runs) > 1:
        lines = (" ".join(filter(None, (_origin(run), _cases(run), run.get("note")))) for run in runs)
        return f"{text}\n{chr(10).join(f'- {line}' for line in lines)}\n\n{rows(part['report'])}\n{left}"
    note = f"\n{part['note']}\n" if part.get("note") else ""
    return f"{text}\n{_origin(runs[0])}\n\n{rows(part['report'])}\n{left}{note}"


def _origin(run: Report) -> str:
    """On what machine, by what, when and from what commit a run's figures are."""
    made = run["made"]
    where = surroundings(made)
    if made.get("triton"):
        where += f" Triton {made['triton']}."
    if made.get("commit"):
        where += f" Commit {made['commit'][:12]}."
    if made["toy"]:
        where += " At toy sizes, which say nothing but that it runs."
    if run.get("gemm_flops"):
        rates = (f"{rate / 1e12:.3g} TFLOP/s in {precision}" for precision, rate in run["gemm_flops"].items())
        where += f" A large product of matrices: {', '.join(rates)}."
    return where


def _cases(run: Report) -> str:
    """The cases that a run measured, where another measured the rest."""
    return f"It measured: {'; '.join(run['cases'])}."
