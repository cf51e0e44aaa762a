"""``profile``: what a detector costs."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hitdet_nni.commands.shared.options import add_json

if TYPE_CHECKING:
    from rich.table import Table

    from hitdet_nni.config.architecture import Architecture
    from hitdet_nni.cost.cost_model import Cost
    from hitdet_nni.cost.profile import Profile

HELP_ORDER = 80
HELP = "print parameters and FLOPs of an architecture, a run, or any mmdet config"
EXAMPLE = "hitdet-nni profile hit_detector --shape 800 1216 --proposals 1000 --convention paper"


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of ``profile``."""
    add_json(parser)
    parser.add_argument("target", help="architecture JSON, run directory, mmdet config (.py), or a shipped name")
    parser.add_argument(
        "--shape",
        type=int,
        nargs=2,
        metavar=("H", "W"),
        help="input size (default: the skeleton's, padded to multiples of 32; a config: 800 1216)",
    )
    parser.add_argument("--proposals", type=int, help="RoIs that the head sees (default: as many as in testing)")
    parser.add_argument("--convention", choices=["macs", "paper"], default="macs", help="how FLOPs are counted")
    parser.add_argument("--layers", action="store_true", help="list every layer (of an architecture)")
    parser.add_argument(
        "--latency", type=Path, metavar="TABLE", help="file of `latency`: adds measured times (of an architecture)"
    )


def run(options: Namespace) -> None:
    """Print parameters and FLOPs by part, and by layer where asked for.

    Raises:
        InputError: If a size or a number of proposals is not positive, ``--layers`` or ``--latency`` is of an mmdet
            config, or the table is of another detector.
    """
    from hitdet_nni.commands.shared.console import echo, json_text, show
    from hitdet_nni.cost.cost_model import CostModel
    from hitdet_nni.cost.latency_table import load_latency_table
    from hitdet_nni.cost.profile import Profile, find_config, is_config
    from hitdet_nni.errors import InputError

    for name, value in (("--shape", min(options.shape or [32])), ("--proposals", options.proposals)):
        if value is not None and value < 1:
            raise InputError(f"got {value}", source=name, allowed="positive numbers")
    shape = tuple(options.shape) if options.shape else None
    rows: list[tuple[str, str, str, Cost]] = []
    if is_config(options.target):
        if options.layers:
            raise InputError("lists the layers of architectures only", source="--layers", allowed="an architecture")
        if options.latency:
            raise InputError("has times of architectures only", source="--latency", allowed="an architecture")
        find_config(options.target)
        from hitdet_nni.engine.process import prepare_process

        prepare_process(1)
        from hitdet_nni.cost.mmdet_config import profile_config

        found = profile_config(options.target, shape, options.proposals, options.convention)
    else:
        architecture = _architecture_to_profile(options.target)
        table = load_latency_table(options.latency) if options.latency else None
        model = CostModel(
            architecture.skeleton,
            architecture.num_classes,
            shape=shape,
            proposals=options.proposals,
            convention=options.convention,
            latency=table,
        )
        costs = model.architecture(architecture.sample)
        found = Profile(architecture.name, model.shape, model.proposals, model.convention, costs)
        rows += model.rows(architecture.sample) if options.layers else []
    if options.proposals and options.proposals != found.proposals:
        why = f"its {found.proposals} RoIs are learned" if found.proposals else "it has one stage and no RoIs"
        sys.stderr.write(f"hitdet-nni: {found.name}: {why}: --proposals changes nothing\n")
    if options.json:
        echo(json_text(_profile_values(found, rows if options.layers else None, timed=bool(options.latency))))
    else:
        show(_profile_table(found, rows, timed=bool(options.latency)))


def _architecture_to_profile(target: str) -> Architecture:
    from hitdet_nni.commands.shared.trained import named_architecture
    from hitdet_nni.cost.profile import baseline_names
    from hitdet_nni.errors import InputError

    path = Path(target)
    try:
        return named_architecture(target)
    except InputError as error:
        if error.allowed is None or path.suffix or path.name != target or path.exists():
            raise
        allowed = [error.allowed, *baseline_names()]
        raise InputError(error.problem, source=error.source, key=error.key, allowed=allowed) from None


def _profile_values(found: Profile, rows: list[tuple[str, str, str, Cost]] | None, *, timed: bool) -> dict[str, Any]:
    result: dict[str, Any] = {
        "convention": found.convention,
        "shape": list(found.shape),
        "proposals": found.proposals,
        "params": {part: cost.params for part, cost in found.costs.items()},
        "flops": {part: cost.flops for part, cost in found.costs.items()},
    }
    if timed:
        result["latency_ms"] = {part: cost.latency_ms for part, cost in found.costs.items()}
    if rows is not None:
        result["layers"] = [
            {"part": part, "layer": layer, "operator": name, "params": cost.params, "flops": cost.flops}
            | ({"latency_ms": cost.latency_ms} if timed else {})
            for part, layer, name, cost in rows
        ]
    return result


def _profile_table(found: Profile, rows: list[tuple[str, str, str, Cost]], *, timed: bool) -> Table:
    from rich.table import Table

    from hitdet_nni.cost.cost_model import PARTS, Cost

    lines = [(layer, name, cost) for _, layer, name, cost in rows]
    lines += [(part, "", found.costs[part]) for part in PARTS]
    if timed:
        spent = sum(found.costs[part].nanoseconds for part in PARTS)
        lines.append(("overhead", "", Cost(nanoseconds=found.costs["total"].nanoseconds - spent)))
    lines.append(("total", "", found.costs["total"]))
    height, width = found.shape
    table = Table(title=f"{found.name}, {height} x {width}, {found.proposals} proposals, {found.convention}")
    for heading in ("part", "operator"):
        table.add_column(heading)
    for heading in ("params (M)", "FLOPs (G)", *(["ms"] if timed else [])):
        table.add_column(heading, justify="right")
    for part, name, cost in lines:
        times = [f"{cost.latency_ms:.3f}"] if timed else []
        table.add_row(part, name, _shown(cost.params_m), _shown(cost.gflops), *times)
    return table


def _shown(value: float) -> str:
    """Return a number with three decimals; of a small one its first digits."""
    return f"{value:.3f}" if value >= 0.001 or not value else f"{value:.2g}"
