"""Does a setting change what a search finds more than another seed does? Runs with it against runs without it.

python benchmarks/two_settings.py --first runs/fp32-* --second runs/bf16-* \
    --first-retrained runs/fp32-retrained-* --second-retrained runs/bf16-retrained-* \
    --crossed runs/fp32-retrained-in-bf16-*

The runs of each list are in the order of their seeds. ``--first`` and ``--second`` are searches that differ in the
setting; the others are retrainings of what they found, and ``--crossed`` those of what the first have found with the
second setting. With ``--json`` the figures for a document.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations, product
from pathlib import Path
from typing import Any

import torch
from measure import echo, surroundings

from hitdet_nni.config.architecture import load_architecture
from hitdet_nni.config.settings import Settings, load_settings
from hitdet_nni.config.skeleton import COMPONENTS, Component
from hitdet_nni.io import read_json
from hitdet_nni.nas.checks import whole_space
from hitdet_nni.nas.health.rank_agreement import Agreement, Preferences
from hitdet_nni.runs.run_directory import RunDirectory, find_run
from hitdet_nni.studies.retrainings import deviation
from hitdet_nni.studies.stability import screened_preferences

Pairs = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Agreements:
    """How far pairs of searches agree on a component's operators.

    Attributes:
        component: The component.
        pairs: Which pairs: of one seed and both settings, of two seeds and one setting, of two seeds and both settings.
        number: How many pairs.
        spearman: Mean rank correlation of their screenings' scores.
        deviation: Standard deviation of that.
        common: Kept operators that both have, mean.
        kept: Operators that a screening keeps.
        chance: What chance gives of ``common``.
        layers: Share of the layers with the same operator in both architectures, mean.
    """

    component: str
    pairs: str
    number: int
    spearman: float
    deviation: float
    common: float
    kept: int
    chance: float
    layers: float


@dataclass(frozen=True)
class Precisions:
    """mAP of retrainings, seed by seed.

    Attributes:
        name: Which of them.
        values: mAP, 0 to 1.
        mean: Of these.
        deviation: Their standard deviation.
        difference: Mean difference to the first, seed by seed; ``None`` for that itself.
        difference_deviation: Its standard deviation.
    """

    name: str
    values: Sequence[float]
    mean: float
    deviation: float
    difference: float | None
    difference_deviation: float | None

    @classmethod
    def of(cls, name: str, values: Sequence[float], first: Sequence[float] | None) -> Precisions:
        """Summarise the retrainings of some seeds, against those of the first setting."""
        apart = None if first is None else [value - other for value, other in zip(values, first, strict=True)]
        return cls(
            name,
            values,
            statistics.fmean(values),
            deviation(values),
            None if apart is None else statistics.fmean(apart),
            None if apart is None else deviation(apart),
        )


def groups(seeds: int) -> Mapping[str, tuple[bool, bool, Pairs]]:
    """Return the pairs of searches to compare: whether each of the two has the second setting, and their seeds."""
    several = list(combinations(range(seeds), 2))
    others = [(one, other) for one, other in product(range(seeds), repeat=2) if one != other]
    return {
        "one seed, both settings": (False, True, [(seed, seed) for seed in range(seeds)]),
        "two seeds, the first": (False, False, several),
        "two seeds, the second": (True, True, several),
        "two seeds, both settings": (False, True, others),
    }


def agreements(first: Sequence[RunDirectory], second: Sequence[RunDirectory], settings: Settings) -> list[Agreements]:
    """Compare searches with a setting and without it."""
    space = whole_space(settings)
    found = []
    samples = [[load_architecture(run.architecture).sample for run in runs] for runs in (first, second)]
    for component in COMPONENTS:
        preferences = [
            [screened_preferences(run, component, space[component]) for run in runs] for runs in (first, second)
        ]
        labels = settings.skeleton.labels(component)

        def alike(one: Mapping[str, str], other: Mapping[str, str], labels: Sequence[str] = labels) -> float:
            return statistics.fmean(one[label] == other[label] for label in labels)

        for name, (one, other, pairs) in groups(len(first)).items():
            shares = [alike(samples[one][i], samples[other][j]) for i, j in pairs]
            found.append(summary(component, name, preferences[one], preferences[other], pairs, shares))
    return found


def summary(
    component: Component,
    name: str,
    one: Sequence[Preferences],
    other: Sequence[Preferences],
    pairs: Pairs,
    shares: Sequence[float],
) -> Agreements:
    """Summarise pairs of screenings, and the shares of layers with the same operator."""
    found = [Agreement.of([one[i], other[j]], relabellings=0) for i, j in pairs]
    correlations = [each.spearman for each in found]
    return Agreements(
        component,
        name,
        len(found),
        statistics.fmean(correlations),
        deviation(correlations),
        statistics.fmean(each.common for each in found),
        found[0].possible,
        found[0].chance,
        statistics.fmean(shares),
    )


def differences(one: Mapping[str, Any], other: Mapping[str, Any], above: str = "") -> dict[str, tuple[Any, Any]]:
    """Return the keys that differ between two settings, dotted, but for the seed, with both values."""
    found: dict[str, tuple[Any, Any]] = {}
    for key in one.keys() | other.keys():
        name, values = f"{above}{key}", (one.get(key), other.get(key))
        if isinstance(values[0], dict) and isinstance(values[1], dict):
            found |= differences(values[0], values[1], f"{name}.")
        elif values[0] != values[1] and name != "seed":
            found[name] = values
    return found


def mean_precisions(lists: Mapping[str, Iterable[Path]]) -> list[Precisions]:
    """Summarise lists of retrainings, of which the first is what the others are compared with."""
    found: list[Precisions] = []
    for name, folders in lists.items():
        values = [float(read_json(folder / "metrics.json")["mAP"]) for folder in folders]
        if values:
            found.append(Precisions.of(name, values, found[0].values if found else None))
    return found


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    many: Callable[..., Any] = parser.add_argument
    many("--first", type=Path, nargs="+", required=True, help="searches with one value of the setting")
    many("--second", type=Path, nargs="+", required=True, help="searches with another one, seed by seed")
    many("--first-retrained", type=Path, nargs="*", default=[], help="retrainings of what the first have found")
    many("--second-retrained", type=Path, nargs="*", default=[], help="retrainings of what the second have found")
    many("--crossed", type=Path, nargs="*", default=[], help="those of the first's architectures, second setting")
    many("--json", action="store_true", help="print one JSON object instead of a table")
    options = parser.parse_args()
    lists = (options.first, options.second)
    retrained = (options.first_retrained, options.second_retrained, options.crossed)
    if any(len(folders) not in {0, len(options.first)} for folders in (*lists, *retrained)):
        parser.error("each list has a run for each seed")
    first, second = ([find_run(folder) for folder in folders] for folders in lists)
    settings, others = (load_settings(runs[0].config) for runs in (first, second))
    changed = differences(settings.model_dump(mode="json"), others.model_dump(mode="json"))
    names = ("first searches, first setting", "second searches, second setting", "first searches, second setting")
    figures = [asdict(one) for one in agreements(first, second, settings)]
    precisions = [asdict(one) for one in mean_precisions(dict(zip(names, retrained, strict=True)))]
    if options.json:
        report = surroundings(torch.device("cpu")) | {"seeds": len(first), "settings": changed}
        echo(json.dumps(report | {"figures": figures, "retrained": precisions}, indent=1))
        return
    echo(", ".join(f"{key}: {one} or {other}" for key, (one, other) in changed.items()))
    for row in figures:
        echo(
            f"{row['component']:9} {row['pairs']:26} rho {row['spearman']:+.2f} (sd {row['deviation']:.2f})  "
            f"kept {row['common']:.1f} of {row['kept']} ({row['chance']:.1f})  layers {row['layers']:.2f}"
        )
    for row in precisions:
        apart = row["difference"]
        against = "" if apart is None else f"  {apart:+.3f} (sd {row['difference_deviation']:.3f})"
        echo(f"{row['name']:32} mAP {row['mean']:.3f} (sd {row['deviation']:.3f}){against}")


if __name__ == "__main__":
    main()
