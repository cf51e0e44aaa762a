"""The settings of trainings: optimisers of weights and alphas, retraining, pretraining, checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from hitdet_nni.config.data_settings import Section, images_of_epochs

Momentum = Annotated[float, Field(ge=0, lt=1)]


class WeightSettings(Section):
    """Optimiser of the supernet's weights: SGD with a cosine schedule (section 4.2)."""

    lr: PositiveFloat = Field(0.04, description="initial learning rate for a batch of lr_batch_size (section 4.2)")
    momentum: Momentum = Field(0.9, description="SGD momentum (section 4.2)")
    weight_decay: NonNegativeFloat = Field(1e-4, description="weight decay (section 4.2)")
    grad_clip: PositiveFloat | None = Field(35.0, description="largest gradient norm (released configuration)")
    warmup_iterations: NonNegativeInt = Field(0, description="iterations of linear warm-up of the learning rate")
    candidate_gradients: Literal["weighted", "full"] = Field(
        "weighted",
        description="gradients of the weights of a layer's N active candidates: weighted, as Eq. 5 gives them, about "
        "1/N of what each would get alone; full, N times that, before grad_clip takes their norm",
    )


class AlphaSettings(Section):
    """Optimiser of the architecture parameters: Adam (section 4.2)."""

    lr: PositiveFloat = Field(4e-4, description="learning rate (section 4.2)")
    betas: tuple[Momentum, Momentum] = Field((0.5, 0.999), description="Adam's betas (DARTS; the paper is silent)")
    weight_decay: NonNegativeFloat = Field(0.0, description="weight decay; Eq. 4 and Eq. 6 have no such term")


class RetrainSettings(Section):
    """Training of the found detector from scratch (section 4.2)."""

    epochs: PositiveInt = Field(12, description="epochs (section 4.2: the 1x schedule)")
    epochs_images: PositiveInt | None = images_of_epochs("milestones and val_interval go along")
    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="optimiser (section 4.2: SGD)")
    lr: PositiveFloat = Field(0.04, description="learning rate for a batch of lr_batch_size (section 4.2: 8 GPUs x 4)")
    momentum: Momentum = Field(0.9, description="SGD momentum (section 4.2)")
    weight_decay: NonNegativeFloat = Field(1e-4, description="weight decay (section 4.2)")
    schedule: Literal["step", "cosine"] = Field(
        "step", description="of the learning rate: a tenth after each milestone (section 4.2), or half a cosine to 0"
    )
    milestones: tuple[PositiveInt, ...] = Field(
        (8, 11),
        description="epochs after which lr / 10 (section 4.2); where epochs are given alone, at the same shares",
    )
    warmup_iterations: NonNegativeInt = Field(800, description="linear warm-up from 0.1 lr (released configuration)")
    grad_clip: PositiveFloat | None = Field(35.0, description="largest gradient norm (released configuration)")
    val_interval: PositiveInt = Field(
        1, description="epochs between evaluations, by which nothing is chosen: the last epoch's weights are kept"
    )
    ema: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None,
        description="share of each step's weights in a moving average, which is evaluated and kept in their place, "
        "such as 0.001; null: no average",
    )
    patience: PositiveInt | None = Field(
        None, description="evaluations without a better mAP after which the training ends; null: all epochs"
    )
    pretrained: Path | None = Field(
        None,
        description="weights of `pretrain --architecture` for the found backbone; for a baseline its backbone's: "
        "a file, or torchvision's by name, such as torchvision:resnet50, where its file is on this machine",
    )
    transfer: bool = Field(
        False, description="train for the data's classes at skeleton.input_size, whatever was searched for"
    )


class PretrainSettings(Section):
    """Classification training of a backbone (section 4.2: ImageNet)."""

    train_images: Path | None = Field(None, description="folder of training images, one folder a class inside")
    val_images: Path | None = Field(None, description="folder of validation images, one folder a class inside")
    boxes: bool = Field(
        False,
        description="classify the boxes of the detection data instead of images in folders: `pretrain` does so, and "
        "screening and search pretrain the backbone of each of their supernets, unless `pretrained` names weights",
    )
    size: Annotated[int, Field(ge=32)] = Field(224, description="side of the crops, pixels")
    batch_size: PositiveInt = Field(128, description="images a process and step")
    epochs: PositiveInt = Field(10, description="epochs (section 4.2: 10 for the supernet, 300 for the found backbone)")
    workers: NonNegativeInt = Field(0, description="data-loader processes")
    min_crop: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="smallest share of an image in a crop; null: 0.08, with boxes 0.5"
    )
    flip: bool = Field(True, description="mirror half of the training images; of boxes only where data.flip does too")
    lr: PositiveFloat = Field(0.05, description="initial learning rate for a batch of lr_batch_size, cosine schedule")
    lr_batch_size: PositiveInt | None = Field(128, description="global batch that lr is for; null: no scaling")
    warmup_iterations: NonNegativeInt = Field(0, description="iterations of linear warm-up of the learning rate")
    momentum: Momentum = Field(0.9, description="SGD momentum")
    weight_decay: NonNegativeFloat = Field(4e-5, description="weight decay")
    grad_clip: PositiveFloat | None = Field(None, description="largest gradient norm, null: no limit")
    label_smoothing: Momentum = Field(0.1, description="label smoothing of the cross entropy")

    @model_validator(mode="after")
    def _one_source(self) -> PretrainSettings:
        named = next((key for key in ("train_images", "val_images") if getattr(self, key) is not None), None)
        if self.boxes and named is not None:
            raise ValueError(f"boxes is true and {named} is given: set boxes to false, or the folders to null")
        return self


class CheckpointSettings(Section):
    """How often a stage saves what it needs to go on exactly where it was."""

    every_steps: NonNegativeInt = Field(200, description="steps between checkpoints besides those of epochs; 0: none")
    keep: Annotated[int, Field(ge=2)] = Field(2, description="checkpoints kept, so that a damaged one has another")
