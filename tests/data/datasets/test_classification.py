"""Images in class folders: listing, decoding, augmentation, order, and the one line for each defect."""

import cv2
import mmcv
import numpy as np
import pytest
import torch

from hitdet_nni.config.settings import PretrainSettings
from hitdet_nni.data.class_folders import open_folders
from hitdet_nni.data.datasets.classification import (
    FolderImages,
    sound,
    training_transform,
    validation_transform,
)
from hitdet_nni.data.loaders import pretraining_loaders
from hitdet_nni.data.sampling import Draw, SeededImages
from hitdet_nni.engine import distributed
from hitdet_nni.model.classifier import HitClassifier
from hitdet_nni.model.detector import build_detector


def write(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)


def noise(seed, height=40, width=56):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture
def settings(tmp_path):
    for split, count in (("train", 5), ("val", 3)):
        for label, name in enumerate(("cat", "ant")):
            for number in range(count):
                write(tmp_path / split / name / f"{number}.png", noise([label, number, count]))
    return PretrainSettings(
        train_images=tmp_path / "train", val_images=tmp_path / "val", size=32, batch_size=2, min_crop=0.3
    )


def test_classes_are_folders(settings):
    root = settings.train_images
    write(root / "ant" / "more" / "PHOTO.JPEG", noise(1))
    (root / "ant" / "list.txt").write_text("x")
    (root / "ant" / ".hidden.png").write_text("x")
    (root / ".cache").mkdir()
    (root / "readme.png").write_text("not in a class")
    train = open_folders(settings).train
    assert train.classes == ("ant", "cat")
    expected = [f"ant/{i}.png" for i in range(5)] + ["ant/more/PHOTO.JPEG"] + [f"cat/{i}.png" for i in range(5)]
    assert list(train.files) == expected
    assert train.labels == (0,) * 6 + (1,) * 5


def test_bad_folders_are_refused(settings, tmp_path, refused):
    def attempt(*names, **changes):
        with refused(*names):
            open_folders(settings.model_copy(update=changes))

    attempt("pretrain.train_images", "is missing", train_images=None)
    attempt("pretrain.val_images", "is missing", val_images=None)
    attempt("pretrain.val_images", tmp_path / "absent", val_images=tmp_path / "absent")
    attempt("pretrain.train_images", "0.png", train_images=tmp_path / "val" / "ant" / "0.png")
    attempt("pretrain.train_images", "no class folder", train_images=tmp_path / "val" / "ant")
    (tmp_path / "val" / "bee").mkdir()
    attempt("pretrain.val_images", "'bee'", "no image")
    write(tmp_path / "val" / "bee" / "0.png", noise(2))
    attempt(tmp_path / "train", "pretrain.train_images", "'bee'", tmp_path / "val")
    (tmp_path / "val" / "bee").rename(tmp_path / "train" / "bee")
    attempt(tmp_path / "val", "pretrain.val_images", "'bee'", tmp_path / "train")


def test_pixels_are_the_detector_s(tmp_path, tiny):
    write(tmp_path / "a.jpg", noise(3, 64, 64))
    write(tmp_path / "ant" / "a.jpg", noise(3, 64, 64))
    settings = PretrainSettings(train_images=tmp_path, val_images=tmp_path, size=64)
    images = FolderImages(open_folders(settings).train, lambda image: image)
    own = images[0][0]
    theirs = torch.from_numpy(mmcv.imread(tmp_path / "a.jpg")).permute(2, 0, 1)
    assert torch.equal(own, theirs)
    sample = {layer.label: "sep_k3_d1" for layer in tiny.searched_layers()}
    detector = build_detector(tiny, sample, 2)
    classifier = HitClassifier(tiny, ["sep_k3_d1"] * len(tiny.labels("backbone")), 2)
    prepared = detector.data_preprocessor({"inputs": [theirs], "data_samples": None})["inputs"]
    assert torch.equal(classifier.normalized(own[None]), prepared)


def test_validation_takes_the_centre():
    image = torch.arange(3 * 64 * 128).view(3, 64, 128).remainder(251).to(torch.uint8)
    cropped = validation_transform(PretrainSettings(size=56))(image)  # 64 rows are resized to 56 / (224 / 256) = 64
    assert torch.equal(cropped, image[:, 4:60, 36:92])


def test_augmentation_follows_from_the_draw(settings):
    images = FolderImages(open_folders(settings).train, training_transform(settings))
    seeded = SeededImages(images)
    one, again, other = (seeded[Draw(4, seed)][0] for seed in (7, 7, 8))
    assert one.shape == (3, 32, 32)
    assert one.dtype == torch.uint8
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("flip", [True, False])
def test_half_of_the_images_are_mirrored(flip):
    ramp = torch.arange(64, dtype=torch.uint8).expand(3, 64, 64)
    augmented = training_transform(PretrainSettings(size=32, flip=flip))
    torch.manual_seed(0)
    mirrored = sum(bool(image[0, 0, 0] > image[0, 0, -1]) for image in (augmented(ramp) for _ in range(100)))
    assert 30 <= mirrored <= 70 if flip else mirrored == 0


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_named(settings, refused, workers):
    data = open_folders(settings)
    file = data.val.root / data.val.files[1]
    loader = pretraining_loaders(data, settings.model_copy(update={"workers": workers}), 0)[1]
    for content in (b"", b"not an image"):
        file.write_bytes(content)
        with refused(file):
            list(map(sound, loader))
    file.unlink()
    with refused(file, "No such file"):
        list(map(sound, loader))


def test_processes_share_the_images(settings, monkeypatch):
    data = open_folders(settings)

    def numbers(rank, processes, batch_size):
        monkeypatch.setattr(distributed, "rank", lambda: rank)
        monkeypatch.setattr(distributed, "world_size", lambda: processes)
        given = settings.model_copy(update={"batch_size": batch_size})
        train, val = pretraining_loaders(data, given, 5)
        return (
            [sound(batch)[2].tolist() for batch in train],
            [number for batch in val for number in sound(batch)[2].tolist()],
        )

    alone, first, second = numbers(0, 1, 4), numbers(0, 2, 2), numbers(1, 2, 2)
    assert [one + two for one, two in zip(first[0], second[0], strict=True)] == alone[0]
    assert len(alone[0]) == 2  # full batches of ten images
    assert sorted(first[1] + second[1]) == alone[1] == list(range(6))
