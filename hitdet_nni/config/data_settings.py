"""The ``data`` section of the settings: which images, and the layouts of the public sets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, model_validator

Layout = Literal["coco2014", "coco2017", "voc0712"]

LAYOUTS: Mapping[Layout, Mapping[str, str | tuple[str, ...]]] = MappingProxyType(
    {
        # trainval35k and minival: 2014's training images and those of validation that are not among the 5000 of
        # minival, a list that is published beside COCO itself (py-faster-rcnn, data/README.md). Section 4.1.
        "coco2014": {
            "train_ann": ("annotations/instances_train2014.json", "annotations/instances_val2014.json"),
            "train_images": ("train2014", "val2014"),
            "train_without": "annotations/instances_minival2014.json",
            "val_ann": "annotations/instances_val2014.json",
            "val_images": "val2014",
            "val_ids": "annotations/instances_minival2014.json",
        },
        # The same two sets under the names that they have had since 2017.
        "coco2017": {
            "train_ann": "annotations/instances_train2017.json",
            "train_images": "train2017",
            "val_ann": "annotations/instances_val2017.json",
            "val_images": "val2017",
        },
        # As `hitdet-nni data voc` writes its files into the folder of the development kit.
        "voc0712": {
            "train_ann": "annotations/instances_trainval0712.json",
            "train_images": ".",
            "val_ann": "annotations/instances_test07.json",
            "val_images": ".",
        },
    }
)
"""Files of each public set, relative to ``data.root``: annotations, folders of images, lists of image ids."""

SOURCE_KEYS = ("train_ann", "train_images", "val_ann", "val_images")
ID_KEYS = ("train_ids", "train_without", "val_ids")
PATH_KEYS = ("root", *SOURCE_KEYS, *ID_KEYS)


class Section(BaseModel):
    """Base of all sections: immutable, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def images_of_epochs(along: str) -> Any:
    """Return the field ``epochs_images`` of a stage.

    Args:
        along: What goes along with its epochs.
    """
    return Field(
        None,
        description="training images that these epochs are for: with n of them there are the square root of "
        f"epochs_images / n times as many, and {along}; null, or where a config or --set gives epochs alone: these "
        "epochs as they are",
    )


Augmentation = Literal["none", "flip", "standard", "strong"]
"""What befalls the training images of a retraining."""


class DataSettings(Section):
    """The images: the embedded set, a folder that is recognised, a public set by its folder, or COCO files by paths.

    A config may leave all of them open, so that a recipe is complete but for the place of the data; what opens the data
    refuses that.
    """

    builtin: Literal["digits", "digits_dense"] | None = Field(
        None, description="embedded data set to use instead of the paths"
    )
    train: PositiveInt = Field(300, description="training images of the embedded set")
    val: PositiveInt = Field(60, description="validation images of the embedded set")
    size: Annotated[int, Field(ge=32)] = Field(128, description="side of the embedded set's images, pixels")
    seed: Annotated[int, Field(ge=0, lt=2**32)] | None = Field(
        None,
        description="seed of the embedded set and of the halves of a search, apart from the run's seed, so that runs "
        "with other seeds have the same images in the same halves; null: the run's seed",
    )
    layout: Layout | None = Field(None, description="public set that lies in root as its publishers lay it out")
    root: Path | None = Field(
        None,
        description="folder of the data: the layout's files, or alone a folder that is recognised by what is in it",
    )
    val_share: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.2, description="share of the images that is split off for validation where root has no validation part"
    )
    val_seed: NonNegativeInt = Field(
        0, description="seed of that split, apart from seed: retrainings with other seeds validate on the same images"
    )
    train_ann: Path | tuple[Path, ...] | None = Field(
        None, description="COCO annotation file of the training images, or several"
    )
    train_images: Path | tuple[Path, ...] | None = Field(
        None, description="folder of the training images; as many as there are annotation files"
    )
    val_ann: Path | None = Field(None, description="COCO annotation file of the validation images")
    val_images: Path | None = Field(None, description="folder of the validation images")
    train_ids: Path | None = Field(
        None, description="file of the image ids to train on: a line each, a JSON list, or a COCO annotation file"
    )
    train_without: Path | None = Field(None, description="file of image ids to leave out of the training images")
    val_ids: Path | None = Field(None, description="file of the image ids to validate on")
    batch_size: PositiveInt = Field(4, description="images a step (section 4.2: 4 a GPU)")
    workers: NonNegativeInt | None = Field(None, description="data-loader processes; null: chosen from the machine")
    cache_mb: NonNegativeInt = Field(256, description="MB of decoded images that a loader keeps in memory")
    filter_empty_gt: bool = Field(
        True,
        description="leave images without boxes out of training, as is usual for COCO; false: search and retraining "
        "have them, as showing no object",
    )
    flip: bool = Field(True, description="mirror half of the training images (section 4.2)")
    augment: Augmentation = Field(
        "flip",
        description="what else befalls the training images of a retraining: flip, nothing; none, not even flip; "
        "standard, scale from half to one and a half, crop, colour; strong, four images in one, scale, place, colour. "
        "A search mirrors at most",
    )

    @model_validator(mode="before")
    @classmethod
    def _paths_of_the_layout(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or values.get("layout") not in get_args(Layout):
            return values  # the fields' own checks speak
        root = values.get("root")
        if not isinstance(root, str | Path):
            return values
        given = {key: value for key, value in values.items() if value is not None or key not in PATH_KEYS}
        # A split whose images are named is not the layout's, its lists of ids included.
        splits = [name for name in ("train", "val") if not {f"{name}_ann", f"{name}_images"} & given.keys()]
        named = {
            key: [str(Path(root) / part) for part in names] if isinstance(names, tuple) else str(Path(root) / names)
            for key, names in LAYOUTS[values["layout"]].items()
            if key.partition("_")[0] in splits
        }
        return {**named, **given}

    @model_validator(mode="after")
    def _one_source(self) -> DataSettings:
        given = [key for key in SOURCE_KEYS if getattr(self, key) is not None]
        named = [key for key in (*SOURCE_KEYS, *ID_KEYS, "layout", "root") if getattr(self, key) is not None]
        if self.builtin is not None and named:
            raise ValueError(f"builtin is {self.builtin!r} and {named[0]} is given: set builtin to null to use paths")
        if self.is_recognised:
            if len(given) == len(SOURCE_KEYS):
                raise ValueError("root is given and both splits are named by their paths: set root or these to null")
            # A split whose paths are given is not looked for in root.
            wanted = [key for key in SOURCE_KEYS if any(other[:3] == key[:3] for other in given)]
        else:
            wanted = list(SOURCE_KEYS) if given else []
        missing = next((key for key in wanted if key not in given), None)
        if missing is not None:
            raise ValueError(f"{missing} is missing: give {', '.join(SOURCE_KEYS)}, or root, or builtin: digits")
        files, folders = self._listed(self.train_ann), self._listed(self.train_images)
        if len(files) != len(folders) or () in (self.train_ann, self.train_images):
            raise ValueError(f"train_ann names {len(files)} files, train_images {len(folders)} folders: give as many")
        return self

    @property
    def is_named(self) -> bool:
        """Whether the section says which images there are, and does not leave them open."""
        return self.builtin is not None or self.val_ann is not None or self.is_recognised

    @property
    def is_recognised(self) -> bool:
        """Whether the data, or a split of them, is what lies in ``root``."""
        return self.root is not None and self.layout is None

    def seed_of(self, run_seed: int) -> int:
        """Return the seed of the embedded set and of the halves in a run of a given seed."""
        return run_seed if self.seed is None else self.seed

    @staticmethod
    def _listed(paths: Path | tuple[Path, ...] | None) -> tuple[Path, ...]:
        return paths if isinstance(paths, tuple) else () if paths is None else (paths,)

    @property
    def train_sources(self) -> tuple[tuple[Path, Path], ...]:
        """Annotation file and folder of images of each part of the training set; none where they are left open."""
        return tuple(zip(self._listed(self.train_ann), self._listed(self.train_images), strict=True))
