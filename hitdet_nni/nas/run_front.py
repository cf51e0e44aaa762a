"""The front of a run: from the supernet of a finished search to architectures of every cost."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

from hitdet_nni.config.architecture import Architecture, load_architecture, save_architecture
from hitdet_nni.config.budget_settings import BudgetKey
from hitdet_nni.config.search_space import SearchSpace, load_search_space
from hitdet_nni.config.settings import Settings
from hitdet_nni.cost.cost_model import CostModel
from hitdet_nni.cost.latency_table import LatencyTable
from hitdet_nni.cost.units import UNITS
from hitdet_nni.data.loaders import architecture_half_size
from hitdet_nni.data.sources import DetectionData
from hitdet_nni.engine import distributed
from hitdet_nni.errors import InputError
from hitdet_nni.nas.decode import decode, log_probabilities
from hitdet_nni.nas.front import Finalist, FrontSearch, best_within, known, on_front
from hitdet_nni.nas.operator_samples import Losses
from hitdet_nni.nas.provenance import SEARCH, describe_architecture
from hitdet_nni.nas.sample_evaluation import evaluation
from hitdet_nni.nas.sampled_supernet import SampledSupernet
from hitdet_nni.runs.front import FrontRow, KnownLosses, read_front, write_front
from hitdet_nni.runs.front_budgets import budget_name, read_budgets
from hitdet_nni.runs.run_directory import RunDirectory
from hitdet_nni.runs.tables import read_alphas

logger = logging.getLogger(__name__)

FILLING = 3
"""For so many architectures that are tried one more is, which fills a budget."""

EARLIER = "earlier"
"""Origin of a finalist that only another call has compared."""


@dataclass(frozen=True)
class FrontRequest:
    """What a front is asked for.

    Attributes:
        key: The unit of its costs.
        budgets: Costs at which an architecture is wanted besides.
        table: Measured times, if there are some.
        samples: Architectures tried, besides those that fill the budgets, a third as many.
        images: Images that they are tried on, and as many others on which the finalists are compared.
        anew: Remove the front that is there.
    """

    key: BudgetKey
    budgets: Sequence[float]
    table: LatencyTable | None
    samples: int
    images: int
    anew: bool = False


def find_front(run: RunDirectory, settings: Settings, data: DetectionData, asked: FrontRequest) -> tuple[FrontRow, ...]:
    """Find the architectures of a run's supernet that no other one beats in loss and cost, and write ``front/``.

    Losses are of the half of the training images that the search had for architecture parameters; the validation
    images have no part in it. What was computed before an interruption is not computed again, and the outcome is the
    same. What another call has compared, for other budgets or costs, is among the finalists, so that none gets worse.

    Args:
        run: A run whose search has ended.
        settings: Its settings.
        data: Its images.
        asked: What is asked for.

    Returns:
        All finalists, by ascending cost.

    Raises:
        InputError: If the search has not ended, a budget is out of reach, there are too few images, or a file is
            damaged.
        StoppedError: If a loss is NaN or infinite.
    """
    data = replace(data, halves=run.halves)
    space = load_search_space(run.require(run.sub_spaces, "search"))
    model = CostModel(settings.skeleton, len(data.classes), latency=asked.table)
    supernet = SampledSupernet.restore(run.supernet, space, settings, len(data.classes))
    search = FrontSearch(model, space, asked.key, supernet.candidates, asked.budgets)
    first, others = _images(settings, data, asked.images)
    if asked.anew and distributed.is_main():
        shutil.rmtree(run.front, ignore_errors=True)
    distributed.barrier()
    remembered = KnownLosses(run.front / "losses.csv", list(supernet.candidates))
    remembered.losses = distributed.broadcast_object(remembered.losses)

    def shown(skip: int) -> str:
        return f"{first} from {skip}"

    @contextmanager
    def losses_on(skip: int, count: int) -> Iterator[Losses]:
        images = shown(skip)
        arguments = (supernet, "front", settings, data, settings.seed, first, count)
        with evaluation(*arguments, skip=skip) as losses:
            keep = partial(remembered.add, images, write=distributed.is_main())
            yield known(losses, partial(remembered.get, images), keep)

    filling_count = asked.samples // FILLING if asked.budgets else 0
    with losses_on(0, asked.samples + filling_count) as losses:
        tried = search.explore(losses, asked.samples, settings.seed)
        filling = search.fill(losses, filling_count, settings.seed)
    searched = load_architecture(run.architecture).sample
    nominated = search.nominate(tried, searched, _decided(run, search), filling)
    for key in remembered.architectures(shown(others)):
        nominated.setdefault(key, EARLIER)
    finalists = distributed.broadcast_object(nominated)
    fixed = {layer.label: space[layer.component][0] for layer in model.layers if layer.label not in supernet.candidates}
    with losses_on(others, len(finalists)) as losses:
        compared = search.compare(finalists, losses, fixed)
    rows = _rows(compared, model, asked.key)
    if distributed.is_main():
        _write(run, rows, compared, search, space, settings, data, asked.table)
    distributed.barrier()
    return rows


def _images(settings: Settings, data: DetectionData, wanted: int) -> tuple[int, int]:
    """Return the images that samples are tried on, and how many are left out where finalists are compared on as many.

    Left out are those that samples are tried on, and those that a search has chosen by, as far as enough are left.

    Raises:
        InputError: If there are too few for that.
    """
    half = architecture_half_size(data, settings.data, settings.skeleton, settings.seed)
    least = settings.data.batch_size
    if half < 2 * least:
        raise InputError(
            f"{half} training images are of the half for architecture parameters",
            key="data",
            allowed=f"{2 * least} or more, a batch to try architectures on and one to compare them on",
        )
    first = max(least, min(wanted, half // 2))
    chosen_by = settings.search.sample_images if settings.search.decode == "samples" else 0
    if chosen_by > half - first:
        logger.warning(
            "the search has chosen by %d of the half's %d images: the finalists are compared on some of them too, "
            "which favours what was found",
            min(chosen_by, half),
            half,
        )
    return first, max(first, min(chosen_by, half - first))


def _decided(run: RunDirectory, search: FrontSearch) -> list[dict[str, str]]:
    """Return what the architecture parameters decide at the end of the search: without a limit, and within each."""
    epochs = read_alphas(run.alphas)
    last = epochs[max(epochs)]
    scores = log_probabilities({label: {name: one.alpha for name, one in row.items()} for label, row in last.items()})
    within = [term.decode(scores, search.candidates) for term in search.terms.values()]
    return [decode(scores, search.candidates), *within]


def _rows(compared: Sequence[Finalist], model: CostModel, unit: BudgetKey) -> tuple[FrontRow, ...]:
    rows: list[FrontRow] = []
    for finalist, best in zip(compared, on_front(compared), strict=True):
        cost = model.architecture(finalist.sample)["total"]
        kind = "point" if best else "other"
        number = 1 + sum(row.on_front == best for row in rows)
        rows.append(
            FrontRow(
                name=f"{kind}-{number:02d}",
                origin=finalist.origin,
                loss=finalist.loss,
                gflops=cost.gflops,
                params_m=cost.params_m,
                latency_ms=None if model.latency is None else cost.latency_ms,
                unit=unit,
                on_front=best,
                sample=finalist.sample,
            )
        )
    return tuple(rows)


def _write(
    run: RunDirectory,
    rows: Sequence[FrontRow],
    compared: Sequence[Finalist],
    search: FrontSearch,
    space: SearchSpace,
    settings: Settings,
    data: DetectionData,
    table: LatencyTable | None,
) -> None:
    """Write the architectures of the front and of the budgets, and then the table of all."""

    def described(name: str, sample: Mapping[str, str]) -> Architecture:
        return describe_architecture(name, sample, space, settings, data.classes, source=SEARCH, latency=table)

    chosen = {row.name: row.sample for row in rows if row.on_front}
    known = _budgets_there(run, rows[0].unit)
    for budget in sorted({*search.budgets, *known}):  # those of before are kept
        found = best_within(compared, budget)
        assert found is not None or budget not in search.budgets  # within these the model's best is among them
        if found is not None:
            chosen[budget_name(budget)] = found.sample
    # In an order that may be interrupted anywhere: a table that is there has the unit of the files' budgets.
    if run.front_table.exists() and (before := read_front(run.front_table)[0].unit) != rows[0].unit:
        named = ", ".join(f"{budget:g}" for budget in read_budgets(run.front))
        logger.warning(
            "the front was in %s and is in %s now%s",
            UNITS[before].name,
            UNITS[rows[0].unit].name,
            f"; its architectures for budgets of {named} {UNITS[before].name} are removed" if named else "",
        )
        run.front_table.unlink()
    for stale in run.front.glob("budget-*.json"):
        if stale.stem not in chosen:
            stale.unlink()
    for name, sample in chosen.items():
        save_architecture(described(name, sample), run.front / f"{name}.json")
    write_front(run.front_table, rows)
    for stale in run.front.glob("point-*.json"):
        if stale.stem not in chosen:
            stale.unlink()


def _budgets_there(run: RunDirectory, unit: BudgetKey) -> tuple[float, ...]:
    """Return the budgets that an earlier call has named, unless its front is of another unit."""
    if not run.front_table.exists() or read_front(run.front_table)[0].unit != unit:
        return ()
    return read_budgets(run.front)
