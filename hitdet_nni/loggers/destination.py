"""What a logger does with a run: the interface that TensorBoard, MLflow and Weights & Biases are used by."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from hitdet_nni.loggers.scalars import Scalar

PROJECT = "hitdet-nni"
"""What runs are filed under: an experiment of MLflow, a project of Weights & Biases."""


class Destination(ABC):
    """One run at a logger.

    Attributes:
        identity: What the logger calls the run, so that a later stage or call goes on with it.
        where: Where the run is kept, for people.
    """

    identity: str
    where: str

    @abstractmethod
    def publish(self, points: Sequence[Scalar]) -> None:
        """Add points to the run's curves.

        Args:
            points: Those that the logger does not have yet, in the order of their making.
        """

    @abstractmethod
    def keep(self, files: Sequence[Path]) -> None:
        """Keep copies of files as the run's artifacts.

        Args:
            files: Files of the run directory.
        """

    @abstractmethod
    def end(self, *, finished: bool) -> None:
        """Close the run until something goes on with it.

        Args:
            finished: Whether the stage has come to its end.
        """
