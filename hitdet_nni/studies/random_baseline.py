"""The searched architecture against random ones of the same cost, all trained under one protocol."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scipy.stats import kendalltau, spearmanr

from hitdet_nni.architecture import Architecture, load_architecture
from hitdet_nni.data.pipeline import DetectionData, search_loaders
from hitdet_nni.files import write_csv, write_json
from hitdet_nni.procedure import describe_architecture
from hitdet_nni.run_directory import RunDirectory
from hitdet_nni.search.cost import CostModel
from hitdet_nni.search_space import load_search_space
from hitdet_nni.settings import Settings
from hitdet_nni.studies.random_architectures import CostKey, random_samples
from hitdet_nni.studies.retrainings import Retraining, retrain_all
from hitdet_nni.studies.supernet_score import supernet_loss
from hitdet_nni.weights_file import read_state

SEARCHED = "searched"


@dataclass(frozen=True)
class Rated:
    """An architecture and what it reached.

    Attributes:
        name: ``"searched"``, or ``"random-01"`` and so on.
        sample: Operator name of each searched layer by its label.
        params_m: Parameters, in millions.
        gflops: GFLOPs (multiply-adds) at the skeleton's input size.
        supernet_loss: :func:`~hitdet_nni.studies.supernet_score.supernet_loss`.
        accuracies: mAP after retraining, one a seed.
    """

    name: str
    sample: Mapping[str, str]
    params_m: float
    gflops: float
    supernet_loss: float
    accuracies: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean mAP over the seeds."""
        return statistics.fmean(self.accuracies)

    @property
    def deviation(self) -> float | None:
        """Standard deviation of mAP over the seeds (n - 1), or ``None`` with one seed."""
        return _deviation(self.accuracies)


@dataclass(frozen=True)
class Summary:
    """What the study says.

    Attributes:
        searched_mean: Mean mAP of the searched architecture over its seeds.
        searched_deviation: Its standard deviation over the seeds.
        random_mean: Mean over the random architectures of their mean mAP.
        random_deviation: Standard deviation of these means between the architectures.
        rank: Place of the searched one among all by mean mAP, 1 the best; those that are equal count as better.
        architectures: How many there are, the searched one included.
        share_as_good: Share of the random architectures whose mean is at least the searched one's.
        spearman: Rank correlation of mean mAP with the negative supernet loss over all architectures; ``None`` where
            one of them does not vary.
        kendall: The same by Kendall's tau-b.
    """

    searched_mean: float
    searched_deviation: float | None
    random_mean: float
    random_deviation: float | None
    rank: int
    architectures: int
    share_as_good: float
    spearman: float | None
    kendall: float | None

    @classmethod
    def of(cls, rated: Sequence[Rated]) -> Summary:
        """Compare; ``rated`` holds the searched architecture first, then at least one random one."""
        searched, *others = rated
        means = [other.mean for other in others]
        as_good = sum(mean >= searched.mean for mean in means)
        accuracies, scores = [one.mean for one in rated], [-one.supernet_loss for one in rated]
        varies = len(set(accuracies)) > 1 and len(set(scores)) > 1
        return cls(
            searched_mean=searched.mean,
            searched_deviation=searched.deviation,
            random_mean=statistics.fmean(means),
            random_deviation=_deviation(means),
            rank=1 + as_good,
            architectures=len(rated),
            share_as_good=as_good / len(others),
            spearman=float(spearmanr(scores, accuracies).statistic) if varies else None,
            kendall=float(kendalltau(scores, accuracies).statistic) if varies else None,
        )


def _deviation(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


@dataclass(frozen=True)
class RandomStudy:
    """What is compared, and how.

    Attributes:
        run: Run directory of the search.
        settings: Settings of the retrainings; the first seed is theirs, the others follow it.
        architectures: Random architectures.
        seeds: Retrainings of each architecture.
        slack: A random architecture costs at most what the searched one costs, and at most this share less.
        processes: Retrainings side by side.
    """

    run: RunDirectory
    settings: Settings
    architectures: int
    seeds: int
    slack: float
    processes: int = 1

    @property
    def measure(self) -> CostKey:
        """What costs are compared by: what the search's budget counts, else FLOPs."""
        budget = self.settings.search.budget
        return "params" if budget is not None and budget.params_m is not None else "flops"

    def draw(self, data: DetectionData) -> dict[str, Architecture]:
        """The searched architecture and the random ones of the same sub-spaces, by name.

        Raises:
            InputError: If the run has not been searched, or the space has not so many architectures of that cost.
        """
        found = load_architecture(self.run.architecture)
        space = load_search_space(self.run.sub_spaces)
        model = CostModel(found.skeleton, found.num_classes)
        most = getattr(model.architecture(found.sample)["total"], self.measure)
        samples = random_samples(
            model,
            space,
            self.architectures,
            least=(1 - self.slack) * most,
            most=most,
            measure=self.measure,
            seed=self.settings.seed,
            exclude=[found.sample],
        )
        drawn = {
            f"random-{number:02d}": describe_architecture(
                f"random-{number:02d}", sample, space, self.settings, data.classes
            )
            for number, sample in enumerate(samples, start=1)
        }
        return {SEARCHED: found, **drawn}

    def supernet_losses(self, architectures: Mapping[str, Architecture], data: DetectionData) -> dict[str, float]:
        """How the trained supernet rates them."""
        state = read_state(self.run.supernet, allowed="the supernet.pth of a search")
        val_loader = search_loaders(data, self.settings.data, self.settings.skeleton, self.settings.seed)[2]
        batches = list(val_loader)
        return {
            name: supernet_loss(one.sample, one.skeleton, one.num_classes, state, batches, self.settings.seed)
            for name, one in architectures.items()
        }

    def retrainings(self, architectures: Mapping[str, Architecture], folder: Path) -> list[Retraining]:
        """Every architecture with every seed, architecture by architecture."""
        first = self.settings.seed
        return [
            Retraining(one, self.settings.model_copy(update={"seed": seed}), folder / f"{name}-seed-{seed}")
            for name, one in architectures.items()
            for seed in range(first, first + self.seeds)
        ]

    def carry_out(
        self, data: DetectionData, folder: Path, on_result: Callable[[Retraining, dict[str, Any]], None]
    ) -> list[Rated]:
        """Draw, rate and retrain; what ``folder`` holds already is not trained again.

        Args:
            data: The pictures.
            folder: Where the run directories of the retrainings go.
            on_result: Called as retrainings end.

        Returns:
            The searched architecture, then the random ones.
        """
        architectures = self.draw(data)
        losses = self.supernet_losses(architectures, data)
        results = retrain_all(self.retrainings(architectures, folder), self.processes, on_result)
        rated = []
        for number, (name, one) in enumerate(architectures.items()):
            own = results[number * self.seeds : (number + 1) * self.seeds]
            accuracies = tuple(result["mAP"] for result in own)
            rated.append(Rated(name, one.sample, own[0]["params_m"], own[0]["gflops"], losses[name], accuracies))
        return rated


def write_study(rated: Sequence[Rated], study: RandomStudy, folder: Path) -> Summary:
    """Write ``study.json`` and ``architectures.csv``."""
    summary = Summary.of(rated)
    protocol = {
        "run": str(study.run.path),
        "seed": study.settings.seed,
        "seeds": study.seeds,
        "slack": study.slack,
        "epochs": study.settings.retrain.epochs,
    }
    write_json(
        folder / "study.json",
        {"protocol": protocol, "summary": asdict(summary), "architectures": [asdict(one) for one in rated]},
    )
    rows = [
        {
            "name": one.name,
            "params_m": one.params_m,
            "gflops": one.gflops,
            "supernet_loss": one.supernet_loss,
            "mean_mAP": one.mean,
            "deviation": one.deviation,
            **{f"mAP_seed_{study.settings.seed + number}": value for number, value in enumerate(one.accuracies)},
        }
        for one in rated
    ]
    write_csv(folder / "architectures.csv", list(rows[0]), rows)
    return summary
