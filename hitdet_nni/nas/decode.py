"""From architecture parameters to an architecture: the one place where a layer's operator is decided."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from hitdet_nni.nas.budget import Budget


def log_probabilities(alphas: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Return the logarithms of the softmax of each layer; float64 keeps the order of the alphas.

    Args:
        alphas: For each layer's label the architecture parameter of each candidate that is still active.
    """
    return {
        label: dict(
            zip(row, torch.tensor(list(row.values()), dtype=torch.float64).log_softmax(0).tolist(), strict=True)
        )
        for label, row in alphas.items()
    }


def decode(
    log_probabilities: Mapping[str, Mapping[str, float]],
    candidates: Mapping[str, Sequence[str]],
    budget: Budget | None = None,
) -> dict[str, str]:
    """Return the most probable architecture; with a budget the most probable one within it.

    The softmax of each layer is a distribution of its own, so the probability of an architecture is the product of its
    operators' and its logarithm the sum of theirs. Without a limit the largest sum is the argmax of every layer, which
    is therefore the result where it keeps the budget.

    Args:
        log_probabilities: For each layer's label the log-probability of each candidate that is still active, as
            :func:`log_probabilities` gives them. A layer with one candidate may be left out.
        candidates: Names of all candidates of each layer to decide, by label, in the order of the parameters, as
            :func:`~hitdet_nni.config.search_space.layer_candidates` gives them.
        budget: What the whole detector may cost; layers that ``candidates`` leaves out must have one operator in its
            space, and count.

    Returns:
        One operator for every layer of ``candidates``, in their order; of equals the first candidate.

    Raises:
        InputError: If the candidates that are active cannot keep the budget.
        KeyError: If a layer with several candidates is left out, or a label or an operator is none of the candidates.
        ValueError: If a budget is given and a log-probability is not finite.

    Source:
        Section 3.3 takes the operator with the highest score; the budget is an addition.
    """
    unknown = sorted(log_probabilities.keys() - candidates.keys())
    if unknown:
        raise KeyError(f"no searched layer is called {unknown[0]!r}")
    rows = {label: _row(label, names, log_probabilities) for label, names in candidates.items()}
    if budget is None:
        return {label: max(row, key=row.__getitem__) for label, row in rows.items()}
    within = budget.strongest(rows)
    return {label: within[label] for label in rows}


def _row(label: str, names: Sequence[str], log_probabilities: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return the log-probabilities of a layer in the order of its candidates."""
    if label not in log_probabilities and len(names) == 1:
        return {names[0]: 0.0}
    row = log_probabilities[label]
    unknown = sorted(row.keys() - set(names))
    if unknown:
        raise KeyError(f"{unknown[0]!r} is no candidate of {label}")
    return {name: row[name] for name in names if name in row}
