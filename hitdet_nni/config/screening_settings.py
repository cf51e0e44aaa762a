"""The settings of screening: how the supernet is trained, and by what operators are ranked (section 3.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator

from hitdet_nni.config.data_settings import Section, images_of_epochs
from hitdet_nni.config.skeleton import COMPONENTS, Component
from hitdet_nni.operators.registry import parse_operator

Gates = Literal["softmax", "positive"]
"""What turns the architecture parameters of a layer into the weights of its candidates."""


class PerComponent(Section):
    """Operators that screening leaves a component (section 3.3)."""

    backbone: PositiveInt = Field(8, description="N_b")
    neck: PositiveInt = Field(8, description="N_n")
    head: PositiveInt = Field(8, description="N_h")


class FixedOperators(Section):
    """The operator at which a component stands while another one is screened."""

    backbone: str = Field("ir_k3_d1_e3", description="operator of every searched block of the backbone")
    neck: str = Field("sep_k3_d1", description="operator of every layer of the neck")
    head: str = Field("ir_k3_d1_e3", description="operator of every block of the head")

    @model_validator(mode="after")
    def _known(self) -> FixedOperators:
        for component in COMPONENTS:
            parse_operator(getattr(self, component))
        return self


class ScreeningSettings(Section):
    """Screening of the sub search spaces (section 3.2, Eq. 4)."""

    epochs: PositiveInt = Field(12, description="epochs a component (section 4.2)")
    epochs_images: PositiveInt | None = images_of_epochs("warmup_epochs goes along")
    warmup_epochs: NonNegativeInt = Field(
        6, description="epochs before the alphas move (section 4.2); with rank_by samples they never do"
    )
    supernets: PositiveInt | Literal["auto"] = Field(
        "auto",
        description="supernets of independent initialisation that share epochs and samples: operators are ranked by "
        "the mean of their places, and a warning says so where the supernets agree no better than chance; auto: 2 "
        "where a screening has at most 2,000 steps, otherwise 1, as in the paper",
    )
    sparsity_weight: NonNegativeFloat = Field(
        0.1, description="mu of Eq. 4 (section 4.2); without effect with rank_by samples"
    )
    gates: Gates = Field(
        "positive",
        description="weights of a layer's candidates: the alphas themselves, positive and 1 at first, with mu's term a "
        "proximal step that shortens their columns; or the softmax of the alphas, with mu's term in the loss",
    )
    keep: PerComponent = Field(PerComponent(), description="operators left: N_b, N_n, N_h (section 3.3)")
    rank_by: Literal["probability", "norm", "samples"] = Field(
        "probability",
        description="rank operators by their weight in the mixture summed over layers, by column norm (norm), or by "
        "what they add to the losses of sampled architectures after the last epoch, before which none is removed "
        "(samples)",
    )
    samples: PositiveInt = Field(
        128,
        description="architectures evaluated with rank_by samples, at least one for each operator; each operator comes "
        "equally often in every layer if it is a multiple of their number",
    )
    sample_images: PositiveInt = Field(
        96,
        description="images of the half for alphas on which each sampled architecture's loss is computed, full batches",
    )
    fixed: FixedOperators = Field(FixedOperators(), description="operators of the components not being screened")
    joint: bool = Field(False, description="screen all components in one supernet, not one after the other")
    depths: tuple[PositiveInt, ...] | None = Field(
        None, description="blocks a stage in the screening supernet (section 4.2 halves them), the skeleton's if null"
    )
    pretrained: Path | None = Field(None, description="weights of `pretrain` for the screening supernet's backbone")

    @model_validator(mode="after")
    def _time_to_remove(self) -> ScreeningSettings:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs {self.warmup_epochs} must be below epochs {self.epochs}")
        if self.supernets != "auto" and self.supernets > self.epochs:
            raise ValueError(f"supernets {self.supernets} must be at most epochs {self.epochs}, which they share")
        return self


def screened_components(settings: ScreeningSettings, space: Mapping[Component, Sequence[str]]) -> tuple[Component, ...]:
    """Return the components of which a screening keeps some operators; the others are kept whole, without one.

    Args:
        settings: The ``screening`` section.
        space: Candidate names of each component.
    """
    return tuple(one for one in COMPONENTS if len(space[one]) > getattr(settings.keep, one))
