"""The settings of all stages: one pydantic model a section, unknown keys refused.

The defaults are the paper's values, each with its section; a shipped config is a short diff of them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    Discriminator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    Tag,
    ValidationError,
    model_validator,
)

from hitdet_nni.config.blame import blamed
from hitdet_nni.config.budget_settings import BudgetSettings
from hitdet_nni.config.data_settings import PATH_KEYS as DATA_PATHS
from hitdet_nni.config.data_settings import DataSettings as DataSettings
from hitdet_nni.config.data_settings import Section, images_of_epochs
from hitdet_nni.config.epochs_alone import along_with_epochs
from hitdet_nni.config.screening_settings import PerComponent as PerComponent
from hitdet_nni.config.screening_settings import ScreeningSettings
from hitdet_nni.config.shipped import shipped
from hitdet_nni.config.skeleton import Skeleton
from hitdet_nni.config.training_settings import AlphaSettings, CheckpointSettings, WeightSettings
from hitdet_nni.config.training_settings import PretrainSettings as PretrainSettings
from hitdet_nni.config.training_settings import RetrainSettings as RetrainSettings
from hitdet_nni.config.validation import BY_COMPONENT, ONE_VALUE, one_line, refuse_booleans, require_kind
from hitdet_nni.config.weights_names import is_weights_name, weights_file
from hitdet_nni.errors import InputError
from hitdet_nni.io import expanded, parse_as_written, read_yaml

logger = logging.getLogger(__name__)

PATHS = {
    "data": DATA_PATHS,
    "screening": ("pretrained",),
    "search": ("pretrained",),
    "search.budget": ("table",),
    "retrain": ("pretrained",),
    "pretrain": ("train_images", "val_images"),
}
"""Keys that name files or folders, by section; relative ones in a config file are relative to the file's folder."""

STAGES = ("screening", "search", "retrain")
"""Sections whose numbers of epochs may be for a number of images."""

ActivationMode = Literal["all", "checkpoint", "fused", "fused-low", "fused-min"]
ActivationSetting = Literal["auto", "all", "checkpoint", "fused", "fused-low", "fused-min"]


Logger = Literal["tensorboard", "mlflow", "wandb"]
"""Who keeps curves and files of runs besides the run directory; each is an extra of the package."""


class ActivationsByComponent(Section):
    """How each component's layers are computed, those fixed at one operator among them."""

    backbone: ActivationMode = Field(description="of the backbone")
    neck: ActivationMode = Field(description="of the neck")
    head: ActivationMode = Field(description="of the head")


def _activations_kind(value: object) -> str:
    return BY_COMPONENT if isinstance(value, (Mapping, ActivationsByComponent)) else ONE_VALUE


class SearchSettings(Section):
    """The trinity search (sections 3.3 and 3.4, Eq. 6)."""

    epochs: PositiveInt = Field(12, description="epochs (section 4.2)")
    epochs_images: PositiveInt | None = images_of_epochs("warmup_epochs goes along")
    warmup_epochs: NonNegativeInt = Field(6, description="epochs before the alphas move (section 4.2)")
    flops_weight: NonNegativeFloat = Field(0.01, description="lambda of Eq. 6, per GFLOP (section 4.2)")
    budget: BudgetSettings | None = Field(
        None, description="adapt the cost weight, starting from flops_weight, and decode the best within this cost"
    )
    pretrained: Path | None = Field(None, description="weights of `pretrain` for the supernet's backbone")
    decode: Literal["probability", "samples"] = Field(
        "probability",
        description="what is found: the most probable operator of each layer (section 3.3), or of the architectures "
        "that are tried in the supernet after its last epoch the one of the least loss and cost (samples)",
    )
    samples: int = Field(128, ge=4, description="architectures tried with decode samples")
    sample_images: PositiveInt = Field(
        96, description="images of the half for alphas on which each of them is tried, full batches"
    )

    @model_validator(mode="after")
    def _time_to_search(self) -> SearchSettings:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs {self.warmup_epochs} must be below epochs {self.epochs}")
        return self


class SupernetSettings(Section):
    """How the supernet is computed; the numbers are the same whatever is chosen."""

    activations: Annotated[
        Annotated[ActivationSetting, Tag(ONE_VALUE)] | Annotated[ActivationsByComponent, Tag(BY_COMPONENT)],
        Discriminator(_activations_kind),
    ] = Field(
        "auto",
        description="how a mixed layer is computed and what it keeps for its gradients: fused, from more to less "
        "(fused, fused-low, fused-min), candidate by candidate (all: everything; checkpoint: its input); auto: on a "
        "GPU the fastest of each component that fits in memory, timed before the first step; elsewhere fused-low "
        "where it can",
    )


class Settings(Section):
    """Everything that a run depends on."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(0, description="seed of every random number generator")
    threads: PositiveInt = Field(1, description="torch threads of a process; more are slower on small machines")
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="autocast type of all training; fp16: GPU only"
    )
    batch_norm: Literal["local", "synced", "frozen"] = Field(
        "local", description="statistics of a process's batch, of all processes' batches, or the running ones"
    )
    lr_batch_size: PositiveInt | None = Field(
        32, description="global batch that detection learning rates are for (section 4.2: 8 x 4); null: no scaling"
    )
    data: DataSettings
    skeleton: Skeleton = Skeleton()
    space: str = Field("full", description="search space file, or a shipped space's name")
    screening: ScreeningSettings = ScreeningSettings()
    search: SearchSettings = SearchSettings()
    weights: WeightSettings = WeightSettings()
    alphas: AlphaSettings = AlphaSettings()
    retrain: RetrainSettings = RetrainSettings()
    pretrain: PretrainSettings = PretrainSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    supernet: SupernetSettings = SupernetSettings()
    logger: Logger | None = Field(
        None,
        description="where the curves go after every epoch, and the page, config and architecture at the end of a "
        "stage: TensorBoard's files in the run directory, MLflow's store, or a folder of Weights & Biases",
    )

    @model_validator(mode="after")
    def _stages_agree(self) -> Settings:
        if self.pretrain.boxes and self.batch_norm == "frozen":
            raise ValueError("pretrain.boxes is true and batch_norm is 'frozen', which needs statistics: give local")
        if self.data.batch_size == 1 and self.skeleton.padded_size == (32, 32) and self.batch_norm != "frozen":
            raise ValueError(
                "data.batch_size is 1 and skeleton.input_size leaves one pixel at stride 32, which has no "
                "variance: give 2 images or more, a larger size, or batch_norm frozen"
            )
        depths = self.screening.depths
        if depths is not None and len(depths) != len(self.skeleton.depths):
            raise ValueError(
                f"screening.depths has {len(depths)} entries, the skeleton has {len(self.skeleton.depths)} stages"
            )
        return self


def load_settings(
    config: str | Path, overrides: Mapping[str, object] | None = None, *, called: str = "--set"
) -> Settings:
    """Read a config file and apply overrides.

    Args:
        config: A file, or the bare name of a shipped config, e.g. ``"tiny"``. Its ``extends`` key may name another
            one that it is a diff of. Relative paths in a file are relative to the file's folder.
        overrides: Dotted keys and their values, e.g. ``{"search.flops_weight": 0.1}``; a mapping is a diff of the
            section, as in a file with ``extends``: ``{"search": {"flops_weight": 0.1}}`` is the same. Relative paths
            are relative to the working folder.
        called: What errors call the overrides.

    Returns:
        The settings, all paths absolute, so that they mean the same wherever they are written.

    Raises:
        InputError: Naming the file, or the overrides where the value is one of them, key, value and what is allowed.
    """
    path = find_config(config)
    layers, diff = _read_layers(path, ()), _diff_of(overrides or {}, called)
    tree = _merged(layers)
    _give_way(tree, diff)
    _resolve_paths(diff, Path.cwd())
    try:
        return _checked(_epochs_followed(_merge(tree, diff), [*layers, diff]), path)
    except InputError as error:

        def check_alone() -> None:
            _checked(_epochs_followed(_merged(layers), layers), path)

        raise blamed(error, path, tree, diff, called, check_alone) from None


def _diff_of(overrides: Mapping[str, object], called: str) -> dict[str, Any]:
    """Return overrides by dotted keys as the mapping that a config file would have of them.

    Raises:
        InputError: If they are no mapping, or a key is no text.
    """
    require_kind(called, overrides, Mapping, 'dotted keys and their values, e.g. {"search.epochs": 20}')
    diff: dict[str, Any] = {}
    for key, value in overrides.items():
        require_kind(called, key, str, 'a dotted key, e.g. "search.epochs"')
        section: object = value
        for part in reversed(key.split(".")):
            section = {part: section}
        diff = _merge(diff, section)
    return diff


def _checked(tree: dict[str, Any], path: Path) -> Settings:
    refuse_booleans(tree, Settings, path)
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        raise one_line(error, Settings, path) from None


def scaled_lr(lr: float, batch_size: int, processes: int, lr_batch_size: int | None) -> float:
    """Return a learning rate for the global batch, by the linear scaling rule.

    Args:
        lr: Learning rate for a batch of ``lr_batch_size``.
        batch_size: Images a process and step.
        processes: Processes of the training.
        lr_batch_size: Batch that ``lr`` is for; ``None`` leaves it as it is.
    """
    return lr if lr_batch_size is None else lr * batch_size * processes / lr_batch_size


def describe_lr(lr: float, batch_size: int, processes: int, lr_batch_size: int | None) -> str:
    """Return the same as a line for people; the last two numbers are processes and images of each."""
    scaled, batch = scaled_lr(lr, batch_size, processes, lr_batch_size), batch_size * processes
    rule = "not scaled" if lr_batch_size is None else f"{lr:g} x {batch} / {lr_batch_size}"
    return f"learning rate {rule} = {scaled:g} for a global batch of {batch} = {processes} x {batch_size}"


def find_config(config: str | Path) -> Path:
    """Return the file behind a path or a shipped config's bare name."""
    given = expanded(str(config))
    if given.is_file() or given.suffix in (".yml", ".yaml"):
        return given
    return shipped("experiments", f"configs/{config}.yml")


def parse_overrides(assignments: Sequence[str]) -> dict[str, object]:
    """Read ``dotted.key=value`` arguments; a value is YAML (``null``, ``0.1``, ``[1, 2]``, text).

    Raises:
        InputError: If an argument has no ``=`` or its value is not YAML.
    """
    overrides: dict[str, object] = {}
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        if not separator or not key:
            raise InputError(f"got {assignment!r}", source="--set", allowed="dotted.key=value")
        try:
            overrides[key] = parse_as_written(text)
        except (yaml.YAMLError, ValueError, RecursionError):
            raise InputError(f"value {text!r} is not valid YAML", source="--set", key=key) from None
    return overrides


def _read_layers(path: Path, seen: tuple[Path, ...]) -> list[dict[str, Any]]:
    """Read the mapping of a config file and those of the files that it extends, the lowest first."""
    if path.resolve() in seen:
        raise InputError("extends itself", source=path, key="extends")
    tree = read_yaml(path, parse_as_written)
    if tree is None:
        allowed = "settings, such as extends: small and data: {root: my_images}"
        raise InputError("is empty, or has comments alone", source=path, allowed=allowed)
    if not isinstance(tree, dict) or not all(isinstance(key, str) for key in tree):
        raise InputError(f"expected a mapping of settings, got {type(tree).__name__}", source=path)
    _resolve_paths(tree, path.parent)
    base = tree.pop("extends", None)
    if base is None:
        return [tree]
    if not isinstance(base, str):
        raise InputError(
            f"got {base!r}", source=path, key="extends", allowed="a config file or a shipped config's name"
        )
    return [*_read_layers(_find_extended(base, path), (*seen, path.resolve())), tree]


def _merged(layers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return configs of which each is a diff of those before it as one."""
    tree: dict[str, Any] = {}
    for layer in layers:
        _give_way(tree, layer)
        tree = _merge(tree, layer)
    return tree


def _epochs_followed(tree: dict[str, Any], layers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a merged config in which milestones and warm-ups follow epochs that were changed alone."""
    for stage in STAGES:
        said = [layer[stage] for layer in layers if isinstance(layer.get(stage), Mapping)]
        if isinstance(tree.get(stage), dict):
            defaults = Settings.model_fields[stage].get_default(call_default_factory=True).model_dump()
            tree[stage] |= along_with_epochs([defaults, *said])
    return tree


def _find_extended(base: str, path: Path) -> Path:
    """Return the file that a config extends: one beside it, one of the working folder, or a shipped config.

    Raises:
        InputError: Naming both, if there is none.
    """
    beside = path.parent / expanded(base)
    if beside.is_file():
        return beside
    try:
        found = find_config(base)
    except InputError as error:
        raise InputError(f"{base!r}: {error.problem}", source=path, key="extends", allowed=error.allowed) from None
    if not found.is_file():
        raise InputError(f"{base!r}: no such file", source=path, key="extends")
    return found


def _give_way(tree: dict[str, Any], diff: Mapping[str, Any]) -> None:
    """Have what a config says give way to what a diff of it says otherwise by another key.

    The embedded set gives way to a folder, with a line; the images that epochs are for to epochs alone.
    """
    for stage in STAGES:
        own, given = tree.get(stage), diff.get(stage)
        if isinstance(own, dict) and isinstance(given, Mapping) and "epochs" in given and "epochs_images" not in given:
            own.pop("epochs_images", None)
    below, given = tree.get("data"), diff.get("data")
    if not isinstance(below, dict) or not isinstance(given, Mapping):
        return
    if given.get("root") is not None and "builtin" not in given and below.get("builtin") is not None:
        logger.warning("data.root is given: it takes the place of data.builtin %s", below["builtin"])
        below["builtin"] = None


def _resolve_paths(tree: dict[str, Any], folder: Path) -> None:
    folder = folder.absolute()
    for section, keys in PATHS.items():
        values: Any = tree
        for part in section.split("."):
            values = values.get(part) if isinstance(values, dict) else None
        for key in keys if isinstance(values, dict) else ():
            value = values.get(key)
            if is_weights_name(value):
                value = str(weights_file(value))
            value = [_name(part) for part in value] if isinstance(value, list) else _name(value)
            if isinstance(value, str):
                values[key] = str(folder / expanded(value))
            elif isinstance(value, list):
                values[key] = [str(folder / expanded(part)) if isinstance(part, str) else part for part in value]
    space = tree.get("space")
    if isinstance(space, str) and (Path(space).suffix or "/" in space):  # else a shipped one's name
        tree["space"] = str(folder / expanded(space))


def _name(value: object) -> object:
    """Return a path as text where it is a plain whole number, such as a folder that is called 2017."""
    return str(value) if type(value) is int and value >= 0 else value


def _merge(base: object, diff: object) -> Any:
    """Return what a diff makes of a value: mappings are merged key by key, all else is the diff's."""
    if not isinstance(diff, Mapping):
        return diff
    merged = dict(base) if isinstance(base, Mapping) else {}
    return merged | {key: _merge(merged.get(key), value) for key, value in diff.items()}
