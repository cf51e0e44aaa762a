"""The searched architecture against random ones of the same cost, all trained under one protocol."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from scipy.stats import kendalltau, spearmanr

from hitdet_nni.config.architecture import Architecture, load_architecture
from hitdet_nni.config.budget_settings import BudgetKey
from hitdet_nni.config.search_space import load_search_space
from hitdet_nni.config.settings import Settings
from hitdet_nni.cost.units import UNITS
from hitdet_nni.data.sources import DetectionData
from hitdet_nni.nas.checks import budget_cost_model
from hitdet_nni.nas.provenance import describe_architecture, kept_budget
from hitdet_nni.nas.sample_evaluation import evaluation
from hitdet_nni.nas.sampled_supernet import SampledSupernet
from hitdet_nni.runs.run_directory import RunDirectory
from hitdet_nni.studies.random_architectures import samples_of_cost
from hitdet_nni.studies.retrainings import Trained, deviation, with_deviation

SEARCHED = "searched"


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
    def of(cls, trained: Sequence[Trained], supernet_losses: Mapping[str, float]) -> Summary:
        """Compare.

        Args:
            trained: The searched architecture first, then at least one random one.
            supernet_losses: What :func:`rate_by_supernet` returns.
        """
        searched, *others = trained
        means = [other.mean for other in others]
        as_good = sum(mean >= searched.mean for mean in means)
        accuracies, scores = [one.mean for one in trained], [-supernet_losses[one.name] for one in trained]
        varies = len(set(accuracies)) > 1 and len(set(scores)) > 1
        return cls(
            searched_mean=searched.mean,
            searched_deviation=searched.deviation,
            random_mean=statistics.fmean(means),
            random_deviation=deviation(means),
            rank=1 + as_good,
            architectures=len(trained),
            share_as_good=as_good / len(others),
            spearman=float(spearmanr(scores, accuracies).statistic) if varies else None,
            kendall=float(kendalltau(scores, accuracies).statistic) if varies else None,
        )

    def sentences(self) -> list[str]:
        """Return the same in words."""
        lines = [
            f"searched: mAP {with_deviation(self.searched_mean, self.searched_deviation, 'seeds')}",
            f"random: mAP {with_deviation(self.random_mean, self.random_deviation, 'architectures')}",
            f"the searched one is number {self.rank} of {self.architectures}; "
            f"{self.share_as_good:.0%} of the random ones are at least as good",
        ]
        if self.kendall is not None and self.spearman is not None:
            lines.append(
                f"supernet against retrained: Kendall's tau {self.kendall:+.2f}, Spearman's rho {self.spearman:+.2f} "
                f"over {self.architectures} architectures"
            )
        return lines


def draw_random_baselines(
    run: RunDirectory, settings: Settings, data: DetectionData, count: int, slack: float
) -> dict[str, Architecture]:
    """Return the searched architecture and random ones of the same sub-spaces, by name.

    A random one costs at most what the searched one costs, and at most the share ``slack`` less: in the unit of the
    search's budget, and FLOPs without one.

    Args:
        run: Run directory of the search.
        settings: Give the seed of the draws.
        data: The images.
        count: Random architectures.
        slack: In (0, 1].

    Raises:
        InputError: If the run has not been searched, or the space has not so many architectures of that cost.
    """
    found = load_architecture(run.architecture)
    space = load_search_space(run.require(run.sub_spaces, "search"))
    budget = kept_budget(run, settings)
    model = budget_cost_model(found.skeleton, found.num_classes, budget)
    unit: BudgetKey = "gflops" if budget is None else budget.key
    most: int = getattr(model.architecture(found.sample)["total"], UNITS[unit].field)
    samples = samples_of_cost(model, space, count, most, slack, unit=unit, seed=settings.seed, exclude=[found.sample])
    names = [f"random-{number:02d}" for number in range(1, count + 1)]
    drawn = {
        name: describe_architecture(name, sample, space, settings, data.classes, source="random", latency=model.latency)
        for name, sample in zip(names, samples, strict=True)
    }
    return {SEARCHED: found, **drawn}


def rate_by_supernet(
    run: RunDirectory, settings: Settings, data: DetectionData, architectures: Mapping[str, Architecture]
) -> dict[str, float]:
    """Rate architectures by the trained supernet of a run: its loss, by name, on images as a front chooses by.

    They are of the half of the training images that the search had for architecture parameters. By the validation
    images, of which the mAP is, what images alone decide would be in both. Several processes share the architectures.

    Args:
        run: Run directory of the search.
        settings: Its settings.
        data: The images.
        architectures: Of the run's sub search spaces, by name.

    Raises:
        InputError: If the supernet is not there, or is of another search.
        StoppedError: If a loss is NaN or infinite.
    """
    supernet = SampledSupernet.restore(run.supernet, load_search_space(run.sub_spaces), settings, len(data.classes))
    samples = [{label: one.sample[label] for label in supernet.candidates} for one in architectures.values()]
    data, images = replace(data, halves=run.halves), settings.search.sample_images
    with evaluation(supernet, "ratings", settings, data, settings.seed, images, len(samples)) as losses:
        return dict(zip(architectures, losses(samples), strict=True))
