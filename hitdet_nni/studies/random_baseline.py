"""The searched architecture against random ones of the same cost, all trained under one protocol."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy.stats import kendalltau, spearmanr

from hitdet_nni.config.architecture import Architecture, load_architecture
from hitdet_nni.config.search_space import load_search_space
from hitdet_nni.config.settings import Settings
from hitdet_nni.cost.cost_model import CostModel
from hitdet_nni.data.loaders import search_loaders
from hitdet_nni.data.sources import DetectionData
from hitdet_nni.engine.weights_file import read_state
from hitdet_nni.nas.provenance import describe_architecture
from hitdet_nni.runs.run_directory import RunDirectory
from hitdet_nni.studies.random_architectures import CostKey, random_samples
from hitdet_nni.studies.retrainings import Trained, deviation
from hitdet_nni.studies.supernet_score import supernet_loss

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
            supernet_losses: :func:`~hitdet_nni.studies.supernet_score.supernet_loss` of each by its name.
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

        def spread(mean: float, deviation: float | None, over: str) -> str:
            return f"{mean:.3f}" + ("" if deviation is None else f" (sd {deviation:.3f} over {over})")

        lines = [
            f"searched: mAP {spread(self.searched_mean, self.searched_deviation, 'seeds')}",
            f"random: mAP {spread(self.random_mean, self.random_deviation, 'architectures')}",
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

    A random one costs at most what the searched one costs, and at most the share ``slack`` less: parameters where the
    search had a budget of parameters, else FLOPs.

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
    space = load_search_space(run.sub_spaces)
    model = CostModel(found.skeleton, found.num_classes)
    budget = settings.search.budget
    measure: CostKey = "params" if budget is not None and budget.params_m is not None else "flops"
    most: int = getattr(model.architecture(found.sample)["total"], measure)
    samples = random_samples(
        model,
        space,
        count,
        least=(1 - slack) * most,
        most=most,
        measure=measure,
        seed=settings.seed,
        exclude=[found.sample],
    )
    names = [f"random-{number:02d}" for number in range(1, count + 1)]
    drawn = {
        name: describe_architecture(name, sample, space, settings, data.classes)
        for name, sample in zip(names, samples, strict=True)
    }
    return {SEARCHED: found, **drawn}


def rate_by_supernet(
    run: RunDirectory, settings: Settings, data: DetectionData, architectures: Mapping[str, Architecture]
) -> dict[str, float]:
    """Rate architectures by the trained supernet of a run: its loss on the validation images, by name."""
    state = read_state(run.supernet, allowed="the supernet.pth of a search")
    batches = list(search_loaders(data, settings.data, settings.skeleton, settings.seed)[2])
    return {
        name: supernet_loss(one.sample, one.skeleton, one.num_classes, state, batches, settings.seed)
        for name, one in architectures.items()
    }
