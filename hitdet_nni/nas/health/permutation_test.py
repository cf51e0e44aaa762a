"""Whether a detector has learned anything from its annotations: its held-out losses with theirs and with others'.

Images exchange their annotations, and nothing else changes. For a detector that knows nothing of how images and
annotations belong together, own and permuted ones are equally likely, whatever its losses are; for one that does, they
differ. The losses, the entropies and the gradients of the architecture parameters do not show this: they change on
shuffled labels as they do on true ones (docs/design.md).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hitdet_nni.engine.randomness import fork_rng, random_state, set_random_state
from hitdet_nni.model.replacement import replaced

Permutation = Literal["annotations", "categories"]
"""What the images of a batch exchange: all annotations, or only the categories of their boxes."""

Losses = Mapping[str, float]
"""The terms of a detector's loss by mmdet's names, and their sum, ``loss``."""

MAX_BATCHES = 64
"""Batches compared at most by a process: enough to find small differences, however large the validation set is."""

NUM_SIGN_FLIPS = 9999
"""Random signs that the differences are compared with."""


@dataclass(frozen=True)
class PermutationResult:
    """What exchanging annotations did to the losses.

    Attributes:
        gain: Mean loss with permuted annotations minus that with the images' own.
        p_value: Probability of such differences, or larger ones, for a detector that knows nothing.
        batches: Batches compared.
    """

    gain: float
    p_value: float
    batches: int

    @classmethod
    def of(cls, kind: Permutation, differences: Sequence[Losses], seed: int) -> PermutationResult:
        """Judge the differences of several batches.

        If own and permuted annotations can change places, the differences of each batch can change their signs. The
        p-value is the share of random signs that give at least the statistic found; it assumes nothing else about the
        losses. With ``d_bk`` the difference of term k in batch b the statistic is

        * for annotations ``sum_k (sum_b d_bk)^2 / sum_b d_bk^2``, because knowledge may raise a term: a detector that
          finds the objects samples more RoIs that cost more. The p-value cannot be below ``2 ** (1 - batches)``.
        * for categories the sum of all differences, because the same RoIs are sampled and knowledge can only lower the
          loss. The p-value cannot be below ``2 ** -batches``.

        So a few batches prove nothing.

        Args:
            kind: What was permuted.
            differences: Permuted minus own losses of each batch.
            seed: Seed of the signs.
        """
        if not differences:
            return cls(0.0, 1.0, 0)
        names = ["loss"] if kind == "categories" else [name for name in differences[0] if name != "loss"]
        values = torch.tensor([[row[name] for name in names] for row in differences], dtype=torch.float64)
        scaled = values / values.norm(dim=0).clamp_min(torch.finfo(torch.float64).tiny)
        generator = torch.Generator().manual_seed(seed)
        signs = torch.randint(2, (NUM_SIGN_FLIPS, len(values)), generator=generator, dtype=torch.float64) * 2 - 1
        sums = torch.cat((scaled.sum(0, keepdim=True), signs @ scaled))
        statistics = sums[:, 0] if kind == "categories" else sums.square().sum(1)
        # Equal signs must count as equal, though they are summed in another order; NaN counts as reached.
        below = statistics[1:] < statistics[0] - 1e-9
        gain = sum(row["loss"] for row in differences) / len(differences)
        return cls(gain, (1 + NUM_SIGN_FLIPS - int(below.sum())) / (1 + NUM_SIGN_FLIPS), len(differences))


def detector_losses(detector: Any, batch: dict[str, Any]) -> Losses:
    """Return the terms of a detector's loss on a batch and their sum.

    Args:
        detector: An mmdet detector.
        batch: ``inputs`` (list of N tensors ``[3, H, W]``) and ``data_samples`` (list of N ``DetDataSample``).
    """
    data = detector.data_preprocessor(batch, detector.training)
    losses = detector(data["inputs"], data["data_samples"], mode="loss")
    return {name: float(value) for name, value in detector.parse_losses(losses)[1].items() if "loss" in name}


PARTS = ("backbone", "neck", "rpn_head", "bbox_head", "roi_head.bbox_head")
"""Parts of mmdet's detectors that know nothing of annotations, where a detector has them."""


@contextmanager
def remembered_parts(detector: nn.Module, changing: Iterable[nn.Module] = ()) -> Iterator[None]:
    """Spare :data:`PARTS` within the context the inputs that they had in one of their last two calls.

    The images of a batch do not change when their annotations are permuted, and nor do the sampled RoIs when only
    categories are. Only for parts whose outputs follow from their inputs: without gradients, in evaluation mode or by
    batch statistics.

    Args:
        detector: An mmdet detector.
        changing: Modules inside it that do not stay what they are; parts that contain one compute every time.
    """
    modules, others = dict(detector.named_modules()), set(changing)
    found = [modules[name] for name in PARTS if name in modules]
    parts = [part for part in found if others.isdisjoint(part.modules())]
    with replaced(detector, {part: _remembering(part) for part in parts}):
        yield


class _Remembering(nn.Module):
    """Makes a class of modules, named behind it as a base, answer its last questions again without computing.

    There are two: RoIs as the images' own annotations have them sampled come again after those of permuted ones.
    """

    answers: deque[tuple[tuple[Any, ...], Any]]

    def forward(self, *inputs: Any) -> Any:
        for asked, outputs in self.answers:
            if _same(inputs, asked):
                return outputs
        outputs = super().forward(*inputs)
        self.answers.append((inputs, outputs))
        return outputs


def _remembering(part: nn.Module) -> nn.Module:
    """Return a module that shares everything with ``part`` and remembers its last two answers.

    It is of a class below the part's, because mmdet's heads call themselves.
    """
    kind: type[nn.Module] = type(f"Remembering{type(part).__name__}", (_Remembering, type(part)), {})
    twin = kind.__new__(kind)
    vars(twin).update(vars(part), answers=deque(maxlen=2))
    return twin


def _same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return False


def held_out_losses(
    losses: Callable[[dict[str, Any]], Losses],
    batches: Iterable[dict[str, Any]],
    kinds: Sequence[Permutation],
    seed: int,
) -> tuple[list[float], dict[Permutation, list[Losses]]]:
    """Compute the loss of each batch, and what exchanging annotations adds to its terms.

    Args:
        losses: Gives a batch's losses; may draw from torch's random numbers.
        batches: Batches ``{"inputs": ..., "data_samples": [DetDataSample, ...]}`` that the detector was not trained on.
        kinds: What to exchange.
        seed: Seed of the exchanges.

    Returns:
        One loss a batch, and for each kind the differences of each of the first :data:`MAX_BATCHES` batches that have
        something to permute. Random numbers are drawn as if no annotation were permuted.
    """
    own: list[float] = []
    differences: dict[Permutation, list[Losses]] = {kind: [] for kind in kinds}
    for number, batch in enumerate(batches):
        state = random_state()
        before = losses(batch)
        own.append(before["loss"])
        for kind in kinds if number < MAX_BATCHES else ():
            samples = permute_annotations(batch["data_samples"], kind, torch.Generator().manual_seed(seed + number))
            if samples is None:
                continue
            with fork_rng():
                set_random_state(state)  # the same sampling of RoIs
                after = losses({**batch, "data_samples": samples})
            differences[kind].append({name: after[name] - value for name, value in before.items()})
    return own, differences


def permute_annotations(samples: Sequence[Any], kind: Permutation, generator: torch.Generator) -> list[Any] | None:
    """Give the images of a batch each other's annotations.

    Args:
        samples: mmdet's ``DetDataSample`` of each image; they are left as they are.
        kind: ``"annotations"`` gives each image those of the next one, boxes scaled to its size; ``"categories"``
            leaves the boxes and deals their categories at random.
        generator: Deals the categories.

    Returns:
        New samples, or ``None`` where there is nothing to permute: one image, or one category.
    """
    copies = [sample.clone() for sample in samples]  # they share what they hold
    if kind == "annotations":
        if len(samples) < 2:
            return None
        for copy, other in zip(copies, [*samples[1:], samples[0]], strict=True):
            rows, columns = (mine / its for mine, its in zip(copy.img_shape, other.img_shape, strict=True))
            for key in ("gt_instances", "ignored_instances"):
                instances = other.get(key).clone()
                instances.bboxes = instances.bboxes.clone()
                instances.bboxes.rescale_((columns, rows))
                setattr(copy, key, instances)
        return copies
    labels = torch.cat([sample.gt_instances.labels for sample in samples])
    if len(set(labels.tolist())) < 2:
        return None
    dealt = labels[torch.randperm(len(labels), generator=generator)]
    ends = list(accumulate(len(sample.gt_instances) for sample in samples))
    for copy, part in zip(copies, dealt.tensor_split(ends[:-1]), strict=True):
        copy.gt_instances = copy.gt_instances.clone()
        copy.gt_instances.labels = part
    return copies
