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


def stairs(front: Sequence[tuple[float, float]], end: float) -> list[tuple[float, float]]:
    """Return the corners of a front as stairs: what can be had up to each cost.

    Args:
        front: Its points by ascending cost, at least one.
        end: Where the last stair ends.
    """
    corners: list[tuple[float, float]] = []
    for cost, value in front:
        if corners:
            corners.append((cost, corners[-1][1]))
        corners.append((cost, value))
    return [*corners, (end, corners[-1][1])]
