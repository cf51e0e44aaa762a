"""What tells a set of images from another: their annotations, and not where they lie."""

import json
from dataclasses import replace

from hitdet_nni.data.identity import identity_of_files


def test_the_same_annotations_anywhere_are_the_same(tiny_data, tmp_path):
    train = tiny_data.train
    content = json.loads(train.ann.read_text())

    def written(changed):
        (tmp_path / "other.json").write_text(json.dumps(changed, indent=3))
        return replace(train, ann=tmp_path / "other.json").identity

    assert train.identity == written({**content, "info": {"description": "made elsewhere"}})
    assert train.identity.startswith(f"{len(train.image_ids)} images, digest ")
    first, *others = content["annotations"]
    for entry in ({**first, "category_id": first["category_id"] + 1}, {**first, "iscrowd": 1}):
        assert written({**content, "annotations": [entry, *others]}) != train.identity
    assert written({**content, "images": content["images"][::-1]}) != train.identity


def test_images_of_classes():
    assert identity_of_files(["a", "b"], [0, 1]) == identity_of_files(("a", "b"), (0, 1))
    assert identity_of_files(["a", "b"], [0, 1]) != identity_of_files(["a", "b"], [1, 0])
    assert identity_of_files(["a"], [0]).startswith("1 images")
