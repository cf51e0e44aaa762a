"""The Pareto front of accuracy and cost."""

from __future__ import annotations

from collections.abc import Sequence


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the indices of the points that no other one beats, by ascending cost.

    One point beats another if it costs no more and is no less accurate, and is better in one of the two. Of equal
    points all are on the front.

    Args:
        points: Cost and accuracy of each.
    """
    front: list[int] = []
    best = float("-inf")
    for index in sorted(range(len(points)), key=lambda index: (points[index][0], -points[index][1])):
        cost, accuracy = points[index]
        if accuracy > best or (front and points[front[-1]] == (cost, accuracy)):
            front.append(index)
            best = accuracy
    return front
