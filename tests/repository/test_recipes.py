"""The recipes of experiments/: they say what the paper says, and their commands run on sets laid out as the real ones.

The slow tests give a recipe's command folders, a small image size, few RoIs, numbers of epochs, and two processes in
place of eight; those that train supernets give them narrow layers, since a step of 32 operators of full width takes a
CPU minutes.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from nni.experiment.config import ExperimentConfig

from hitdet_nni.cli import build_parser
from hitdet_nni.config.architecture import load_architecture
from hitdet_nni.config.settings import load_settings
from hitdet_nni.data.layouts.voc_devkit import CLASSES

EXPERIMENTS = Path(__file__).parents[2] / "experiments"

# ------------------------------------------------------------------------------------------------ what the recipes say

BOTH_SEARCHES = {
    "batch_norm": "synced",
    "lr_batch_size": 32,  # 4.2: "8 V100 GPUs", "a batch size of 4 images per GPU"
    "data.batch_size": 4,
    "data.flip": True,  # 4.2: "only horizontal flipping"
    "skeleton.input_size": (800, 1216),  # 4.2: "shorter side has 800 pixels"
    "screening.epochs": 12,  # 4.2: "finish searching at 12 epochs"
    "screening.warmup_epochs": 6,  # 4.2: "begin to optimize architecture parameters at the 6-th epochs"
    "screening.sparsity_weight": 0.1,  # 4.2: "empirically set to 0.1"
    "screening.keep.backbone": 8,  # 3.3: "N_b = N_n = N_h = 8"
    "screening.keep.neck": 8,
    "screening.keep.head": 8,
    "screening.joint": False,  # 4.2: "sequentially screen"
    "search.epochs": 12,
    "search.warmup_epochs": 6,
    "search.flops_weight": 0.01,  # 4.2: "empirically set to 0.01"
    "search.budget": None,
    "weights.lr": 0.04,  # 4.2: "cosine schedule with initial learning rate 0.04"
    "weights.momentum": 0.9,  # 4.2: "SGD optimizer with momentum 0.9"
    "alphas.lr": 4e-4,  # 4.2: "Adam optimizer with learning rate 0.0004"
    "alphas.weight_decay": 0,
}
ONE_TIMES = {
    "retrain.epochs": 12,  # 4.2: "trained for 12 epochs, known as 1x schedule"
    "retrain.lr": 0.04,  # 4.2: "initial learning rate is 0.04"
    "retrain.milestones": (8, 11),  # 4.2: "divided by 10 at the 8-th and 11-th epoch"
    "retrain.momentum": 0.9,  # 4.2: "momentum as 0.9"
    "retrain.weight_decay": 1e-4,  # 4.2: "weight decay as 0.0001"
}
RELEASED_SKELETON = {"skeleton.widths": (48, 96, 184, 256, 352), "screening.depths": (2, 2, 2, 2, 2)}
COCO_2014 = {**BOTH_SEARCHES, **ONE_TIMES, **RELEASED_SKELETON, "data.layout": "coco2014"}
RECIPES = {
    "coco_release": RELEASED_SKELETON,
    "coco2014": COCO_2014,
    "coco2017": {**COCO_2014, "data.layout": "coco2017"},
    "coco_paper": {
        **COCO_2014,
        "skeleton.widths": (48, 96, 256, 352),  # 3.3
        "skeleton.depths": (4, 4, 8, 4),  # 3.3
        "skeleton.tail": None,
        "screening.depths": (2, 2, 4, 2),  # 4.2: "2 + 2 + 4 + 2 = 10"
    },
    "coco2014_2x": {**COCO_2014, "retrain.epochs": 24, "retrain.milestones": (16, 22)},  # 4.3: "2x training scheme"
    "coco2014_one_gpu": {**COCO_2014, "batch_norm": "local", "precision": "bf16"},
    "coco2014_retinanet": {
        **COCO_2014,
        "batch_norm": "local",
        "skeleton.detector": "retinanet",
        "weights.lr": 0.02,
        "retrain.lr": 0.02,
    },
    "coco2014_baseline": COCO_2014,
    "coco2014_trial": COCO_2014,
    "voc0712": {
        **COCO_2014,
        "data.layout": "voc0712",
        "skeleton.input_size": (600, 1000),  # the released configuration
        "retrain.milestones": (9,),
        "retrain.transfer": True,
    },
    "imagenet_supernet": {**RELEASED_SKELETON, "pretrain.epochs": 10},  # 4.2: "on ImageNet for 10 epochs"
    "imagenet_found": {**RELEASED_SKELETON, "pretrain.epochs": 300},  # 4.2: "on ImageNet for 300 epochs"
}


def at(settings, key):
    for part in key.split("."):
        settings = getattr(settings, part)
    return settings


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_say_what_the_paper_says(name):
    settings = load_settings(name)
    assert {key: at(settings, key) for key in RECIPES[name]} == RECIPES[name]
    assert sum(settings.screening.depths) == 10  # 4.2: half of 20 blocks
    assert sum(settings.skeleton.depths) == 20


def test_no_recipe_is_left_out():
    names = {path.stem for path in (EXPERIMENTS / "configs").glob("*.yml")}
    presets = {f"{size}{device}" for size in ("nano", "small", "medium") for device in ("", "_cpu")}
    assert names - {"tiny", "digits", "digits_dense", "digits_retinanet", "first_try"} - presets == set(RECIPES)


def test_a_recipe_is_a_short_diff():
    for name in RECIPES:
        tree = yaml.safe_load((EXPERIMENTS / "configs" / f"{name}.yml").read_text())
        assert ("extends" in tree) == (name != "coco_release")


def test_commands_in_the_recipes_are_the_parser_s():
    """Every command in a comment is one of the command line, with options that it has."""
    parser, found = build_parser(), 0
    for name in RECIPES:
        text = (EXPERIMENTS / "configs" / f"{name}.yml").read_text()
        lines = " ".join(line[1:].strip() for line in text.splitlines() if line.startswith("#   ")).replace("\\ ", "")
        for start in ("hitdet-nni ", "$T ", "-m hitdet_nni "):
            for command in lines.split(start)[1:]:
                words = command.replace("$C", "--config coco2014 --set a=b").replace("$I", "--set a=b").split()
                stop = [i for i, word in enumerate(words) if word in ("hitdet-nni", "$T", "torchrun")]
                options = parser.parse_args(words[: stop[0] if stop else None])
                found += options.command is not None
    assert found == 11


def test_the_coco_experiment_is_nni_s():
    config = ExperimentConfig.load(EXPERIMENTS / "search_coco.yml")
    config.validate()
    space = json.loads((EXPERIMENTS / "search_space_coco.json").read_text())
    assert space["search.flops_weight"]["_value"][0] == 0.01
    assert (config.max_trial_number, config.trial_gpu_number) == (len(space["search.flops_weight"]["_value"]), 8)
    words = config.trial_command.split()
    settings = load_settings(EXPERIMENTS / words[words.index("--config") + 1])
    assert settings.data.is_named
    assert {settings.screening.pretrained, settings.search.pretrained} != {None}


# ------------------------------------------------------------------------------------------------ what the recipes do


@pytest.fixture(scope="module")
def sets(shared_data, tmp_path_factory):
    """COCO 2014, COCO 2017, VOC and ImageNet in little, each laid out as it is published."""
    root, tiny = tmp_path_factory.mktemp("sets"), shared_data / "coco_tiny"
    content = json.loads((tiny / "annotations" / "instances_train.json").read_text())
    taught = {box["image_id"] for box in content["annotations"] if not box["iscrowd"]}
    entries = [entry for entry in content["images"] if entry["id"] in taught][:11]
    train, rest, minival = entries[:6], entries[6:8], entries[8:]

    def write(folder, name, chosen, rename=lambda file_name: file_name):
        ids = {entry["id"] for entry in chosen}
        (folder / name).mkdir(parents=True)
        (folder / "annotations").mkdir(exist_ok=True)
        for entry in chosen:
            shutil.copyfile(tiny / "train" / entry["file_name"], folder / name / rename(entry["file_name"]))
        part = {
            **content,
            "images": [{**entry, "file_name": rename(entry["file_name"])} for entry in chosen],
            "annotations": [box for box in content["annotations"] if box["image_id"] in ids],
        }
        (folder / "annotations" / f"instances_{name}.json").write_text(json.dumps(part))

    for name, chosen in (("train2014", train), ("val2014", rest + minival)):
        write(root / "coco2014", name, chosen, lambda file_name, name=name: f"COCO_{name}_{file_name}")
    list_of_ids = {"images": [{"id": entry["id"]} for entry in minival]}
    (root / "coco2014" / "annotations" / "instances_minival2014.json").write_text(json.dumps(list_of_ids))
    write(root / "coco2017", "train2017", train + rest)
    write(root / "coco2017", "val2017", minival)
    for year, lists in (("VOC2007", {"trainval": train[:3], "test": minival}), ("VOC2012", {"trainval": train[3:]})):
        write_voc(root / "voc" / year, lists, content, tiny / "train")
    for split in ("train", "val"):
        for number, entry in enumerate(entries):
            folder = root / "imagenet" / split / f"n0{number % 3}"
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(tiny / "train" / entry["file_name"], folder / entry["file_name"])
    return root


def write_voc(folder, lists, content, images):
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / part).mkdir(parents=True)
    for name, entries in lists.items():
        stems = [Path(entry["file_name"]).stem for entry in entries]
        (folder / "ImageSets" / "Main" / f"{name}.txt").write_text("\n".join(stems))
        for entry, stem in zip(entries, stems, strict=True):
            shutil.copyfile(images / entry["file_name"], folder / "JPEGImages" / f"{stem}.jpg")
            objects = ""
            for box in content["annotations"]:
                if box["image_id"] == entry["id"]:
                    left, top, width, height = box["bbox"]
                    sides = {"xmin": left + 1, "ymin": top + 1, "xmax": left + width, "ymax": top + height}
                    corners = "".join(f"<{side}>{value:.2f}</{side}>" for side, value in sides.items())
                    name = CLASSES[box["category_id"] % 20]
                    objects += f"<object><name>{name}</name><bndbox>{corners}</bndbox></object>"
            size = f"<size><width>{entry['width']}</width><height>{entry['height']}</height></size>"
            (folder / "Annotations" / f"{stem}.xml").write_text(f"<annotation>{size}{objects}</annotation>")


LITTLE = {
    "skeleton.input_size": "[64, 64]",
    "skeleton.proposals_train": 20,
    "skeleton.proposals_test": 20,
    "skeleton.roi_samples": 8,
    **{f"{stage}.epochs": 2 for stage in ("screening", "search", "retrain", "pretrain")},
    **{f"{stage}.warmup_epochs": 1 for stage in ("screening", "search")},
    "retrain.milestones": "[1]",
    "pretrain.size": 32,
    "pretrain.workers": 0,
    "data.workers": 0,
}
"""Sizes, and numbers of epochs of one step each; no loader processes on a small machine."""

NARROW = {
    "skeleton.stem_channels": 8,
    "skeleton.widths": "[8, 8, 16, 16, 24]",
    "skeleton.tail": "{width: 24, out_channels: 32}",
    "skeleton.neck_width": 16,
    "skeleton.head_width": 16,
    "skeleton.head_fc": 16,
}


def hitdet(*arguments, processes=1, skeleton=None, **overrides):
    """Run the command, by torchrun where it is for several processes; its standard output."""
    settings = {**LITTLE, **(skeleton or {}), **{key.replace("__", "."): value for key, value in overrides.items()}}
    words = [*map(str, arguments), *(word for key, value in settings.items() for word in ("--set", f"{key}={value}"))]
    start = [sys.executable, "-m", "hitdet_nni"]
    if processes > 1:
        torchrun = str(Path(sys.executable).with_name("torchrun"))
        start = [torchrun, "--standalone", "--nproc-per-node", str(processes), "-m", "hitdet_nni"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*start, *words], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_the_pipeline_of_the_paper(sets, tmp_path):
    """Pretraining, screening, pretraining, search, pretraining, retraining, as coco2014.yml lists them."""
    imagenet = {f"pretrain__{split}_images": sets / "imagenet" / split for split in ("train", "val")} | {
        "skeleton": NARROW
    }
    coco = {"data__root": sets / "coco2014", "skeleton": NARROW}
    coco2014 = ("--config", "coco2014")

    def out(name):
        return ("--out", tmp_path / name)

    hitdet("check-data", *coco2014, **coco)
    supernet = ("pretrain", "--config", "imagenet_supernet")
    said = hitdet(*supernet, "--component-screening", *out("supernet10"), **imagenet, processes=2)
    assert "learning rate 0.05 x 256 / 128 = 0.1" in said
    weights = {name: tmp_path / name / "weights.pth" for name in ("supernet10", "supernet", "backbone")}

    said = hitdet(
        "screen", *coco2014, *out("screening"), **coco, screening__pretrained=weights["supernet10"], processes=2
    )
    assert "learning rate 0.04 x 8 / 32 = 0.01 for a global batch of 8 = 2 x 4" in said
    screening = tmp_path / "screening" / "screening"
    space = yaml.safe_load((screening / "sub_spaces.yml").read_text())
    assert [len(names) for names in space.values()] == [8, 8, 8]
    halves = json.loads((screening / "backbone_halves.json").read_text())
    assert (len(halves["weights"]), len(halves["alphas"])) == (4, 4)  # of trainval35k, whose minival is left out

    sub_spaces = ("--sub-spaces", screening / "sub_spaces.yml")
    hitdet(*supernet, *sub_spaces, *out("supernet"), **imagenet, processes=2)
    hitdet(
        "search", *coco2014, *sub_spaces, *out("search"), **coco, search__pretrained=weights["supernet"], processes=2
    )
    assert (tmp_path / "search" / "search" / "halves.json").is_file()
    found = tmp_path / "search" / "architecture.json"
    architecture = load_architecture(found)
    assert architecture.num_classes == 80
    assert architecture.provenance.flops_weight == 0.01

    hitdet("pretrain", "--config", "imagenet_found", "--architecture", found, *out("backbone"), **imagenet, processes=2)
    retrain = ("retrain", *coco2014, "--architecture", found, *out("retrained"))
    hitdet(*retrain, **coco, retrain__pretrained=weights["backbone"], processes=2)
    check_retrained(tmp_path / "retrained")
    assert json.loads((tmp_path / "retrained" / "metrics.json").read_text())["shape"] == [64, 64]


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """The released architecture for small images."""
    architecture = json.loads(
        (EXPERIMENTS.parent / "search_spaces" / "architectures" / "hit_detector.json").read_text()
    )
    architecture["skeleton"] |= {"input_size": [64, 64], "proposals_train": 20, "proposals_test": 20, "roi_samples": 8}
    file = tmp_path_factory.mktemp("released") / "hit_detector.json"
    file.write_text(json.dumps(architecture))
    return file


def check_retrained(out):
    """The detector was evaluated on images with boxes; its weights are there, finite and of a model that trained."""
    metrics = json.loads((out / "metrics.json").read_text())
    assert set(metrics["metrics"]) == {"mAP", "mAP_50", "mAP_75", "mAP_s", "mAP_m", "mAP_l"}
    assert metrics["metrics"]["mAP"] >= 0
    state = torch.load(out / metrics["weights"], weights_only=True)["state_dict"]
    assert all(torch.isfinite(value).all() for value in state.values())
    # Batch normalisations of new weights count the batches that they have seen in training.
    assert {int(value) for name, value in state.items() if name.endswith("num_batches_tracked")} != {0}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "layout", "processes"),
    [("coco2017", "coco2017", 2), ("coco2014_2x", "coco2014", 2), ("coco2014_one_gpu", "coco2014", 1)],
)
def test_retraining_the_released_architecture(name, layout, processes, sets, released, tmp_path):
    arguments = ("retrain", "--config", name, "--architecture", released, "--out", tmp_path / "run")
    hitdet(*arguments, data__root=sets / layout, processes=processes)
    check_retrained(tmp_path / "run")


@pytest.mark.slow
def test_voc(sets, released, tmp_path):
    voc = sets / "voc"
    done = subprocess.run([sys.executable, "-m", "hitdet_nni", "data", "voc", "--voc", str(voc)], check=False)
    assert done.returncode == 0
    arguments = ("retrain", "--config", "voc0712", "--architecture", released, "--out", tmp_path / "run")
    hitdet(*arguments, data__root=voc, processes=2)
    assert load_architecture(tmp_path / "run" / "architecture.json").provenance.classes == CLASSES


@pytest.mark.slow
def test_searching_the_published_sub_spaces_on_one_gpu(sets, tmp_path):
    space = EXPERIMENTS.parent / "search_spaces" / "hit_detector.yml"
    arguments = ("search", "--config", "coco2014_one_gpu", "--sub-spaces", space, "--out", tmp_path / "run")
    hitdet(*arguments, data__root=sets / "coco2014", skeleton=NARROW)
    assert load_architecture(tmp_path / "run" / "architecture.json").num_classes == 80


@pytest.mark.slow
def test_searching_and_retraining_a_retinanet(sets, tmp_path):
    """With two operators a part: the towers of a pyramid's every level take the time."""
    published = yaml.safe_load((EXPERIMENTS.parent / "search_spaces" / "hit_detector.yml").read_text())
    space = tmp_path / "space.yml"
    space.write_text(yaml.safe_dump({part: names[:2] for part, names in published.items()}))
    given, config = {"data__root": sets / "coco2014", "processes": 2}, ("--config", "coco2014_retinanet")
    hitdet("search", *config, "--sub-spaces", space, "--out", tmp_path / "search", skeleton=NARROW, **given)
    found = tmp_path / "search" / "architecture.json"
    assert load_architecture(found).skeleton.detector == "retinanet"
    hitdet("retrain", *config, "--architecture", found, "--out", tmp_path / "run", **given)
    check_retrained(tmp_path / "run")


@pytest.mark.slow
def test_the_skeleton_of_the_text(sets, tmp_path):
    """Search in four stages without a tail; the narrow one differs from the recipe's in its widths only."""
    narrow = {**NARROW, "skeleton.widths": "[8, 8, 16, 16]"}
    del narrow["skeleton.tail"]
    space = EXPERIMENTS.parent / "search_spaces" / "hit_detector.yml"
    arguments = ("search", "--config", "coco_paper", "--sub-spaces", space, "--out", tmp_path / "run")
    hitdet(*arguments, data__root=sets / "coco2014", skeleton=narrow, processes=2)
    skeleton = load_architecture(tmp_path / "run" / "architecture.json").skeleton
    assert (skeleton.tail, skeleton.depths) == (None, (4, 4, 8, 4))


@pytest.mark.slow
def test_a_baseline(sets, tmp_path):
    arguments = ("train-baseline", "fpn_r50_2fc", "--config", "coco2014_baseline", "--out", tmp_path / "run")
    hitdet(*arguments, data__root=sets / "coco2014", processes=2)
    check_retrained(tmp_path / "run")


@pytest.mark.slow
def test_a_trial_of_the_coco_experiment(sets, tmp_path):
    """The trial's command without NNI, on the published sub space in place of all 32 operators."""
    space = yaml.safe_load((EXPERIMENTS.parent / "search_spaces" / "hit_detector.yml").read_text())
    (tmp_path / "space.yml").write_text(yaml.safe_dump({part: names[:2] for part, names in space.items()}))
    tree = {"extends": "coco2014_trial", "space": "space.yml", "data": {"root": str(sets / "coco2014")}}
    for key, value in {**LITTLE, **NARROW}.items():
        *sections, last = key.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[last] = yaml.safe_load(str(value))
    for stage in ("screening", "search", "retrain"):
        tree[stage]["pretrained"] = None
    tree["screening"]["keep"] = {"backbone": 1, "neck": 2, "head": 2}
    (tmp_path / "trial.yml").write_text(yaml.safe_dump(tree))
    command = [
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "hitdet_nni.integration.trial",
        "--config",
        "trial.yml",
        "--runs",
        "runs",
    ]
    done = subprocess.run(
        [str(Path(sys.executable).with_name("torchrun")), *command],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (metrics,) = (tmp_path / "runs").glob("*/*/metrics.json")
    assert "mAP" in json.loads(metrics.read_text())
