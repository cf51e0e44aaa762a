"""Training on images without boxes (`data.filter_empty_gt: false`): which images, finite losses, steps."""

import json
import math

import pytest
import torch

from hitdet_nni.config.architecture import Architecture, Provenance
from hitdet_nni.config.settings import load_settings
from hitdet_nni.data.annotations.coco import read_annotations
from hitdet_nni.data.loaders import loader_config, retraining_loaders, search_loaders, weights_half
from hitdet_nni.data.sources import DetectionData, num_trained
from hitdet_nni.model.detector import build_detector
from hitdet_nni.nas.evaluator import detection_loss
from hitdet_nni.nas.outlook import stage_steps
from hitdet_nni.nas.supernet import Phase, train_supernet
from hitdet_nni.training.retrain import retrain

SPACE = {"backbone": ["ir_k3_d1_e1", "sep_k3_d1"], "neck": ["sep_k3_d1", "sep_k5_d1"], "head": ["sep_k3_d1"]}
DETECTORS = ["faster_rcnn", "retinanet"]
ONE_FAST = [DETECTORS[0], *(pytest.param(kind, marks=pytest.mark.slow) for kind in DETECTORS[1:])]
WITH_BOXES = 4  # of 16 images: of batches of 2, half at least show no object in each half of a search


def settings_of(detector="faster_rcnn", **changes):
    return load_settings(
        "tiny",
        {
            "data.train": 16,
            "data.val": 4,
            "data.batch_size": 2,
            "data.filter_empty_gt": False,
            "skeleton.input_size": [64, 64],
            "skeleton.roi_samples": 8,
            "skeleton.detector": detector,
            "retrain.epochs": 1,
            "retrain.milestones": [],
            **changes,
        },
    )


@pytest.fixture(scope="module")
def data(tiny_data, tmp_path_factory):
    """The embedded digits, most training images without their boxes."""
    content = json.loads(tiny_data.train.ann.read_text())
    kept = set(sorted(tiny_data.train.image_ids)[:WITH_BOXES])
    content["annotations"] = [box for box in content["annotations"] if box["image_id"] in kept]
    file = tmp_path_factory.mktemp("empty") / "train.json"
    file.write_text(json.dumps(content))
    return DetectionData(read_annotations(file, tiny_data.train.images, key="data.train_ann"), tiny_data.val)


@pytest.fixture
def architecture(data):
    def of(settings):
        sample = {layer.label: "sep_k3_d1" for layer in settings.skeleton.searched_layers()}
        provenance = Provenance(classes=data.classes)
        return Architecture(
            schema_version=1, name="plain", skeleton=settings.skeleton, sample=sample, provenance=provenance
        )

    return of


def image_ids(loader):
    return [sample.img_id for batch in loader for sample in batch["data_samples"]]


@pytest.mark.parametrize(("filtered", "images"), [(True, WITH_BOXES), (False, 16)])
def test_which_images_are_trained_on(data, filtered, images):
    settings = settings_of(**{"data.filter_empty_gt": filtered})
    given = (data, settings.data, settings.skeleton)
    halves = [image_ids(loader) for loader in search_loaders(*given, 0)[:2]]
    assert [len(half) for half in halves] == [images // 2] * 2
    assert len({*halves[0], *halves[1]}) == images
    assert set(weights_half(*given, 0)) == set(halves[0])
    assert len(set(image_ids(retraining_loaders(*given, 0, 1)[0]))) == images
    exported = loader_config(data.train, settings.data, settings.skeleton, training=True)
    assert exported["dataset"]["filter_cfg"]["filter_empty_gt"] == filtered
    assert num_trained(data, settings.data) == images
    steps = stage_steps(settings, data, None)
    assert steps == {"search": settings.search.epochs * images // 4, "retrain": images // 2}


@pytest.mark.parametrize("augment", ["none", "standard", "strong"])
def test_augmentations(data, augment):
    settings = settings_of(**{"data.augment": augment, "data.flip": True})
    boxes = [
        len(sample.gt_instances)
        for batch in retraining_loaders(data, settings.data, settings.skeleton, 0, 1)[0]
        for sample in batch["data_samples"]
    ]
    assert len(boxes) == 16
    assert 0 in boxes


def nothing_shown(data, settings):
    """A batch of images without boxes."""
    loader = retraining_loaders(data, settings.data, settings.skeleton, 0, 1)[0]
    return next(batch for batch in loader if not any(len(each.gt_instances) for each in batch["data_samples"]))


@pytest.mark.parametrize("kind", DETECTORS)
def test_a_batch_without_objects_teaches_that_nothing_is_there(kind, data, architecture):
    """The loss is finite and falls, and with it what the detector takes for an object."""
    settings = settings_of(kind)
    batch = nothing_shown(data, settings)
    found = architecture(settings)
    torch.manual_seed(0)
    detector = build_detector(found.skeleton, found.sample, len(data.classes)).train()
    sgd = torch.optim.SGD(detector.parameters(), 0.01)
    losses = []
    for _ in range(4):
        loss = detection_loss(detector, batch)
        sgd.zero_grad()
        loss.backward()
        # Every parameter has one, as with objects.
        gradients = [each.grad for each in detector.parameters() if each.requires_grad]
        assert all(gradient.isfinite().all() for gradient in gradients)
        assert any(gradient.any() for gradient in gradients)
        sgd.step()
        losses.append(loss.item())
    assert all(map(math.isfinite, losses))
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("kind", ONE_FAST)
def test_a_search(kind, data):
    """Both phases meet batches without objects: weights and architecture parameters."""
    settings = settings_of(kind)
    records = []
    phase = Phase(skeleton=settings.skeleton, space=SPACE, epochs=2, warmup_epochs=0, flops_weight=0.0)
    trained = train_supernet(phase, settings, data, 0, records.append)
    assert all(math.isfinite(value) for record in records for value in record.metrics().values())
    assert set(trained.sample) == {layer.label for layer in settings.skeleton.searched_layers()}


@pytest.mark.parametrize("kind", ONE_FAST)
def test_a_retraining(kind, data, architecture, tmp_path):
    settings = settings_of(kind)
    retrain(architecture(settings), settings, data, tmp_path)
    state = torch.load(tmp_path / "weights.pth", weights_only=True)
    assert all(value.isfinite().all() for value in state.get("state_dict", state).values())
