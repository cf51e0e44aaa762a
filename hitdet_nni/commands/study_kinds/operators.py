"""``study operators``: what does one operator in one part of the baseline change?"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

from hitdet_nni.commands.shared.options import PARTS, add_jobs, add_study

if TYPE_CHECKING:
    from hitdet_nni.commands.shared.findings import Findings

HELP_ORDER = 20
HELP = "one operator at a random layer of one part of the baseline (Fig. 3)"


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of ``study operators``."""
    parser.add_argument("--config", required=True, help="config file, or a shipped config's name")
    add_jobs(parser)
    add_study(parser)
    parser.add_argument("--repeats", type=int, default=6, help="layers tried (default: %(default)s)")
    parser.add_argument("--operators", nargs="+", metavar="NAME", help="operators (default: the twelve of Fig. 3)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="parts (default: all)")


def run(options: Namespace) -> Findings:
    """Retrain the baseline with one operator at a random layer of one part (Fig. 3)."""
    from hitdet_nni.commands.shared.console import settings_of
    from hitdet_nni.commands.shared.findings import image_file, open_study, protocol, trained_rows, write_findings
    from hitdet_nni.config.skeleton import COMPONENTS
    from hitdet_nni.data.sources import open_images
    from hitdet_nni.studies.operator_ablation import FIGURE_3, effects, insertion_architectures, insertions
    from hitdet_nni.studies.plots import plot_effects

    settings, data = open_images(settings_of(options))
    operators, parts = (
        list(dict.fromkeys(names)) for names in (options.operators or FIGURE_3, options.parts or COMPONENTS)
    )
    chosen = insertions(settings, operators, parts, options.repeats)
    architectures = insertion_architectures(chosen, settings, data)
    open_study(options, settings)
    trained = protocol(options, settings).retrain(architectures)
    found = effects(chosen, {one.name: one for one in trained})
    baseline = trained[0]
    plot_effects(found, baseline.mean, image_file(options))
    rows: list[dict[str, object]] = [
        {"part": "-", "operator": "baseline", "mean_mAP": baseline.mean, "deviation": baseline.deviation, "repeats": 1}
    ]
    rows += [
        {
            "part": effect.component,
            "operator": effect.operator,
            "mean_mAP": effect.mean,
            "deviation": effect.deviation,
            "repeats": len(effect.accuracies),
        }
        for effect in found
    ]
    return write_findings(options, rows, [], {"retrainings": trained_rows(trained)})
