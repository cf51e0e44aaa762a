"""``study recipes``: by which recipe should what was found be trained?"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

from hitdet_nni.commands.shared.options import add_studied_run, add_study

if TYPE_CHECKING:
    from hitdet_nni.commands.shared.findings import Findings
    from hitdet_nni.config.settings import Settings

HELP_ORDER = 55
HELP = "the found architecture trained by several recipes: augmentation, schedule, averaged weights, optimiser"


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of ``study recipes``."""
    add_studied_run(parser)
    parser.add_argument(
        "--recipe",
        action="append",
        metavar="NAME",
        help="paper, averaged, standard, strong or adamw; may be given several times, the others are compared with the "
        "first (default: paper, standard and strong)",
    )
    add_study(parser)


def check(options: Namespace, settings: Settings) -> None:
    """Refuse a recipe that there is not, or one twice, and a learning rate that is another optimiser's.

    Raises:
        InputError: Naming the option.
    """
    from hitdet_nni.errors import InputError
    from hitdet_nni.studies.recipes import RECIPES

    options.recipe = options.recipe or ["paper", "standard", "strong"]
    for name in options.recipe:
        if name not in RECIPES:
            raise InputError(f"got {name!r}", source="--recipe", allowed=RECIPES)
        if options.recipe.count(name) > 1:
            raise InputError(f"got {name} twice", source="--recipe", allowed="each recipe once")
    if settings.retrain.optimizer != "sgd":
        problem = f"is {settings.retrain.optimizer}, whose learning rate would be the recipes' of SGD"
        raise InputError(problem, key="retrain.optimizer", allowed="--set retrain.optimizer=sgd, and retrain.lr for it")


def run(options: Namespace) -> Findings:
    """Train what was found by each recipe, and say which is ahead."""
    from hitdet_nni.commands.shared.findings import image_file, open_searched, protocol, write_findings
    from hitdet_nni.config.architecture import load_architecture
    from hitdet_nni.studies.plots import plot_trained
    from hitdet_nni.studies.recipes import RECIPES, recipe_sentences, train_recipes

    searched, settings, _ = open_searched(options)
    shared = protocol(options, settings)
    trained = train_recipes(
        options.recipe,
        load_architecture(searched.architecture),
        settings,
        options.seeds,
        shared.folder,
        options.jobs,
        shared.on_result,
    )
    plot_trained(trained, image_file(options))
    rows = [
        {
            "recipe": one.name,
            "mean_mAP": one.mean,
            "deviation": one.deviation,
            **{f"mAP_{number}": value for number, value in enumerate(one.accuracies, start=1)},
            "seconds": one.seconds,
        }
        for one in trained
    ]
    sentences = recipe_sentences(trained)
    details = {
        "recipes": {name: RECIPES[name] for name in options.recipe},
        "epochs": settings.retrain.epochs,
    }
    return write_findings(options, rows, sentences, details)
