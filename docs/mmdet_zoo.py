"""The families of configs that mmdet ships: which build, predict, train and are counted; writes ``mmdet_zoo.md``.

python docs/mmdet_zoo.py             # tries every family, each in a process of its own: half an hour
python docs/mmdet_zoo.py dino detr   # tries these again
python docs/mmdet_zoo.py --page      # writes the page alone, from mmdet_zoo.json
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import hitdet_nni  # noqa: F401  serves mmcv.ops before mmdet imports it

# isort: split

import torch
from mmdet.structures import DetDataSample, TrackDataSample
from mmdet_batches import testing_batch, training_batch
from mmengine.logging import MessageHub
from mmengine.registry import DefaultScope

from hitdet_nni.cost.mmdet_config import MMDET, load_config, profile_config
from hitdet_nni.cost.module_cost import build_on_meta, parameter_count
from hitdet_nni.errors import InputError
from hitdet_nni.model.detector import build_initialised

PAGE = Path(__file__).resolve().parent / "mmdet_zoo.md"
DATA = PAGE.with_suffix(".json")

ONE_THREAD = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}

CONFIGS = MMDET / "configs"
"""Folders of the families, each with configs, and ``_base_`` with what they share."""

PACKAGES: Mapping[str, str] = {
    "detectron2": "detectron2",
    "fairscale": "fairscale",
    "lap": "lap",
    "mmpretrain": "mmpretrain",
    "motmetrics": "motmetrics",
    "skimage": "scikit-image",
    "transformers": "transformers",
}
"""Packages that configs need and mmdet does not bring: name of the import -> name to install."""

FAULTS: Mapping[str, str] = {
    "SSDHead' object has no attribute 'loss_cls'": "SSDHead cannot predict",
    "batch_norm eps must be positive during training": "NAS-FCOS sets an eps of 0, which torch refuses",
    "CascadeRPNHead.__init__() missing 1 required positional argument": "RPN cannot build a CascadeRPNHead",
    "upper bound and lower bound inconsistent": "on a CPU, masks cannot be pasted for boxes outside the image",
    "unexpected keyword argument 'force_grad_on_level'": "FPN has no such setting as the config's",
}
"""Faults of mmdet 3.3.0 itself: what its error says -> what is wrong."""

SIDE = 128
"""Height and width of the images, in pixels."""

LARGE_SIDE = 320
"""The same for what takes no smaller ones: see :func:`side_of`."""

COUNTED_SHAPE = (512, 512)
"""Height and width of the image that costs are counted for."""

PROPOSALS = 1000
"""RoIs of a Fast R-CNN, which gets them from a file."""


@dataclass(frozen=True)
class Row:
    """What became of a family.

    Attributes:
        family: Its folder.
        configs: Files that hold a model; others are parts, such as a schedule.
        built: Those that build.
        config: The smallest of them that predicts and learns; the smallest where none does, empty where none builds.
        params: Parameters of its model.
        flops: Its multiply-adds at :data:`COUNTED_SHAPE`; 0 where they are not counted.
        runs: Whether it predicts, and learns from finite losses.
        needs: What keeps others from being built, and smaller ones from running, each by its kind: ``package lap``,
            ``op CARAFE``, ``file PATH``, ``fault WORDS``.
    """

    family: str
    configs: int
    built: int
    config: str
    params: int
    flops: int
    runs: bool
    needs: tuple[str, ...]


def counted(config: str) -> int:
    """Return the multiply-adds of a config, 0 where it is refused; of what has no RPN, with :data:`PROPOSALS` RoIs."""
    try:
        return profile_config(str(CONFIGS / config), COUNTED_SHAPE, proposals_of(config)).costs["total"].flops
    except InputError:
        return 0


def proposals_of(config: str) -> int | None:
    """Return how many RoIs are to be counted where the config does not say."""
    model = load_config(str(CONFIGS / config)).model
    return PROPOSALS if "roi_head" in model and "rpn_head" not in model else None


def families() -> list[str]:
    """Return the families that mmdet ships."""
    return sorted(each.name for each in CONFIGS.iterdir() if each.is_dir() and each.name != "_base_")


def reason(error: BaseException) -> str:
    """Return what kept a config from being built or run: an op of mmcv, a package, a file, or a fault of mmdet.

    Raises:
        BaseException: The error itself, if it names nothing of these.
    """
    text = str(error)
    for words, fault in FAULTS.items():
        if words in text:
            return f"fault {fault}"
    op = re.search(r"mmcv\.ops\.(\w+) is not available", text)
    if op:
        return f"op {op[1]}"
    for module, package in PACKAGES.items():
        if re.search(rf"\b{module}\b", text, re.IGNORECASE) and find_spec(module) is None:
            return f"package {package}"
    if isinstance(error, FileNotFoundError):
        file = error.filename or text.split('"')[1]
        return f"file {os.path.relpath(file, CONFIGS)}"
    raise error


def without_downloads(part: Any) -> Any:
    """Return a config without the weights that it would load."""
    if isinstance(part, Mapping):
        kept = {key: without_downloads(value) for key, value in part.items()}
        return kept | {key: None for key in ("init_cfg", "teacher_ckpt", "pretrained") if loads(kept.get(key))}
    return type(part)(map(without_downloads, part)) if isinstance(part, list | tuple) else part


def loads(value: Any) -> bool:
    """Whether the value of a key that may name weights does."""
    if isinstance(value, Mapping):
        return "checkpoint" in value
    return isinstance(value, str)


def model_of(config: Path) -> dict[str, Any] | None:
    """Return the model of a config, ``None`` where it has none."""
    try:
        return without_downloads(load_config(str(config)).model.to_dict())
    except InputError as error:
        if error.key == "model":
            return None
        raise


def survey(family: str) -> Row:
    """Build every config of a family, then run those that build, from the smallest, until one predicts and learns."""
    built: list[tuple[int, str, dict[str, Any]]] = []
    failed: list[str] = []
    needs = set()
    for path in sorted((CONFIGS / family).rglob("*.py")):
        name = path.relative_to(CONFIGS).as_posix()
        try:
            model = model_of(path)
            if model is not None:
                built.append((parameter_count(build_on_meta(model, name)), name, model))
        except Exception as error:  # the file is a program, the model anything
            failed.append(name)
            needs.add(reason(error.__cause__ or error))
    count = len(built) + len(failed)
    for params, name, model in sorted(built, key=lambda each: each[:2]):
        try:
            exercise(model)
        except Exception as error:  # whatever a model raises
            needs.add(reason(error))
        else:
            return Row(family, count, len(built), name, params, counted(name), True, tuple(sorted(needs)))
        finally:
            gc.collect()
    params, name, _ = min(built, key=lambda each: each[:2], default=(0, "", {}))
    return Row(family, count, len(built), name, params, 0, False, tuple(sorted(needs)))


# ------------------------------------------------------------------------------------------------------ one config


def exercise(model: Mapping[str, Any]) -> None:
    """Have the model of a config learn from two images with two objects in each, and predict on one.

    Raises:
        AssertionError: If a loss, a gradient or a prediction is not finite, or no gradient differs from zero.
        Exception: Whatever the model raises.
    """
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope("mmdet"):
        # What augments whole batches pads them to a thousand pixels.
        preprocessor = {key: value for key, value in model["data_preprocessor"].items() if key != "batch_augments"}
        detector = build_initialised({"_scope_": "mmdet", **model, "data_preprocessor": preprocessor})
        MessageHub.get_current_instance().update_info("epoch", 0)  # TOOD, whose assignment changes with it, asks there
        side = side_of(model)
        total, _ = detector.parse_losses(detector(**training_batch(detector, side), mode="loss"))
        assert math.isfinite(total.item()), f"the loss is {total.item()}"
        total.backward()
        gradients = [each.grad for each in detector.parameters() if each.grad is not None]
        assert all(bool(each.isfinite().all()) for each in gradients), "a gradient is not finite"
        assert any(bool(each.any()) for each in gradients), "all gradients are zero"
        detector.zero_grad()
        detector.eval()
        with torch.no_grad():
            batch = detector.data_preprocessor(testing_batch(detector, side), False)
            found = detector(**batch, mode="predict")
    assert len(found) == len(batch["inputs"])
    for tensor in (each for result in found for each in predicted(result)):
        assert tensor.isfinite().all(), "a prediction is not finite"


def side_of(model: Mapping[str, Any]) -> int:
    """Return the height and width of the images that a model is tried on.

    The last maps of SSD would have no pixel in small ones, and DINO chooses its queries among all positions.
    """
    return LARGE_SIDE if "SSD" in str(model) or model["type"] == "DINO" else SIDE


def predicted(result: DetDataSample | TrackDataSample) -> Iterator[torch.Tensor]:
    """Yield the tensors of what was predicted of an image, or of the frames of a video."""
    frames = result.video_data_samples if isinstance(result, TrackDataSample) else [result]
    for frame in frames:
        fields = [value for key, value in frame.items() if key.startswith("pred_")]
        assert fields, "nothing was predicted"
        yield from (value for field in fields for value in field.values() if isinstance(value, torch.Tensor))


# -------------------------------------------------------------------------------------------------------- the page


INTRODUCTION = """\
# mmdet's configs

Written by `python docs/mmdet_zoo.py`, which tries what it says; a slow test tries it again.

mmdet 3.3.0 ships {configs} configs of models in {families} families. With `mmcv.ops` served from torchvision, and no
package but those of `requirements.lock`, {built} of them build. Of each family the smallest config that can has learned
for a step from two images of {side} px with two objects each (SSD and DINO: {large} px), without pretrained weights,
with finite losses and gradients that are not all zero, and has predicted on one image. **{running} families run**, and
`hitdet-nni profile` counts {counted} of these; it refuses trackers and a teacher with its pupil, which are around
detectors.

## What is counted

By both conventions the multiply-adds of convolutions (deformable ones, too), of linear layers, and of every other
product of matrices wherever it is computed: the products of attention, einsum, dynamic convolutions. Of deformable
attention the weighted sum of the samples is counted. Not counted are sampling between pixels (deformable layers,
RoIAlign, interpolation), additions, normalisation, softmax and NMS; the convention `paper` adds biases of convolutions,
2 per batch-norm output and 1 per input of a ReLU module, as the counter behind the published figures does. Faster R-CNN
and RetinaNet on ResNet-50 at 800 x 1280 have by it the 207.07 and 239.32 G that mmdet's counter gave, and DINO at that
size 277.9 G by `macs`, where its authors say 279.

The backbone, the neck and the heads run on shapes alone where these suffice. Otherwise (transformers, heads with parts
of their own) the detector runs as mmdet's `forward` has it, with zeros in place of every product. Heads see as many
RoIs as in testing; masks are counted for as many detections as are kept.

## Training one

`train-baseline` takes the model of any config that learns from boxes, as a file or a shipped name, to train it as a
found detector is: the protocol, the optimiser among it, is that of the settings and not of the config. RTMDet-tiny and
DINO are shipped as names. DINO picks 900 queries among the positions of its maps, so its images have at least 224 px.

```sh
hitdet-nni profile dino_r50
hitdet-nni train-baseline rtmdet_tiny --config digits --out runs/rtmdet
hitdet-nni train-baseline dino_r50 --config digits --set skeleton.input_size=[224,224] --out runs/dino
```

## Families

`build` is how many of a family's configs build. `GFLOPs` are multiply-adds at {shape} (`macs`), of Fast R-CNN with
{proposals} RoIs. The last column says what kept other configs from being built, or smaller ones from running: an op of
mmcv that is not served, a package that is not installed, a file that mmdet does not ship, or a fault of mmdet's own.
Where several are missing, it is the first that is met.

"""


def page(rows: Sequence[Row]) -> str:
    """Return the page from what became of the families."""
    running = [row for row in rows if row.runs]
    words = INTRODUCTION.format(
        configs=sum(row.configs for row in rows),
        families=len(rows),
        built=sum(row.built for row in rows),
        running=len(running),
        counted=sum(row.flops > 0 for row in running),
        side=SIDE,
        large=LARGE_SIDE,
        shape=" x ".join(map(str, COUNTED_SHAPE)),
        proposals=PROPOSALS,
    )
    header = ("family", "build", "runs", "config", "params (M)", "GFLOPs", "what others need")
    marks = ("---", "---:", "---", "---", "---:", "---:", "---")
    return words + "\n".join(f"| {' | '.join(cells)} |" for cells in (header, marks, *map(cells_of, rows))) + "\n"


def cells_of(row: Row) -> tuple[str, ...]:
    """Return a family's line of the table."""
    if not row.configs:
        return (row.family, "-", "-", "parts of configs, no model", "", "", "")
    name = f"`{row.config.partition('/')[2]}`" if row.config else ""
    params = f"{row.params / 1e6:.1f}" if row.config else ""
    flops = f"{row.flops / 1e9:.1f}" if row.flops else ""
    needs = ", ".join(map(words_of, row.needs))
    return (row.family, f"{row.built} of {row.configs}", "yes" if row.runs else "no", name, params, flops, needs)


def words_of(need: str) -> str:
    """Return what is missing as the page says it."""
    kind, _, what = need.partition(" ")
    return f"mmdet's fault: {what}" if kind == "fault" else f"{kind} `{what}`"


def read_rows() -> list[Row]:
    """Read what is known of the families."""
    rows = json.loads(DATA.read_text(encoding="utf-8")) if DATA.exists() else []
    return [Row(**{**row, "needs": tuple(row["needs"])}) for row in rows]


def tried(family: str) -> Row:
    """Try a family in a process of its own, whose memory is free again afterwards."""
    command = [sys.executable, "-W", "ignore", __file__, "--row", family]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **ONE_THREAD})
    if done.returncode:
        raise RuntimeError(f"{family}: {done.stderr[-2000:]}")
    row = json.loads(done.stdout.splitlines()[-1])
    return Row(**{**row, "needs": tuple(row["needs"])})


def write(rows: Mapping[str, Row]) -> None:
    """Write what is known of the families, and the page."""
    known = [rows[family] for family in families() if family in rows]
    DATA.write_text(json.dumps([asdict(row) for row in known], indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(known), encoding="utf-8")


def main() -> None:
    """Try families, and write what is known of all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("families", nargs="*", metavar="FAMILY", help="families to try (default: all)")
    parser.add_argument("--page", action="store_true", help="write the page alone")
    parser.add_argument("--row", action="store_true", help="print what becomes of one family instead, as JSON")
    options = parser.parse_args()
    if options.row:
        logging.disable(logging.WARNING)
        print(json.dumps(asdict(survey(options.families[0]))))  # noqa: T201
        return
    rows = {row.family: row for row in read_rows()}
    for family in [] if options.page else options.families or families():
        rows[family] = tried(family)
        write(rows)  # so that a stopped call is not lost
    write(rows)


if __name__ == "__main__":
    main()
