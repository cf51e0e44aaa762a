"""The split of the training images of a search: disjoint, even, kept and read again."""

import json
from collections import Counter

import pytest

from hitdet_nni.data.halves import load_or_create_split, split_halves
from hitdet_nni.data.loaders import search_loaders
from hitdet_nni.errors import InputError


def test_halves_are_disjoint_equal_and_reproducible():
    for count in (2, 3, 10, 101):
        ids = range(100, 100 + count)
        first, second = split_halves(ids, 0)
        assert sorted(first + second) == list(ids)
        assert 0 <= len(first) - len(second) <= 1
        assert split_halves(reversed(ids), 0) == (first, second)
    assert split_halves(range(101), 1) != split_halves(range(101), 0)


def test_halves_share_classes_evenly():
    classes = {image: {image % 7} | ({50} if image % 40 == 0 else set()) for image in range(200) if image % 9}
    first, second = split_halves(range(200), 5, image_classes=classes)
    assert abs(len(first) - len(second)) == 0
    counts = [Counter(c for image in half for c in classes.get(image, ())) for half in (first, second)]
    assert counts[0].keys() == counts[1].keys()
    assert all(abs(counts[0][c] - counts[1][c]) <= 3 for c in counts[0])
    assert abs(counts[0][50] - counts[1][50]) <= 1


@pytest.mark.parametrize(("ids", "seed", "shown"), [([4], 0, "1 image"), ([], 0, "0 image"), ([4, 5, 4], 0, "id 4")])
def test_impossible_split(ids, seed, shown):
    with pytest.raises(InputError, match=shown):
        split_halves(ids, seed)


def test_negative_seed_of_split():
    with pytest.raises(InputError, match="seed: is -1"):
        split_halves([1, 2], -1)


def test_halves_are_kept_and_read_again(tmp_path, refused):
    file = tmp_path / "search" / "halves.json"
    ids = range(20, 31)
    classes = {image_id: {image_id % 3} for image_id in ids}
    made = load_or_create_split(file, ids, 3, image_classes=classes)
    assert (
        made == split_halves(ids, 3, image_classes=classes) == load_or_create_split(None, ids, 3, image_classes=classes)
    )
    assert json.loads(file.read_text()) == {"seed": 3, "weights": list(made[0]), "alphas": list(made[1])}
    # What is kept counts, not the seed.
    other = {"seed": 3, "weights": list(ids)[:4], "alphas": list(ids)[4:]}
    file.write_text(json.dumps(other))
    assert load_or_create_split(file, ids, 5, image_classes=classes) == (
        tuple(other["weights"]),
        tuple(other["alphas"]),
    )
    with refused(file, "id 19"):
        load_or_create_split(file, range(19, 31), 3)
    with refused(file, "id 30"):
        load_or_create_split(file, range(20, 30), 3)
    for content in ({**other, "alphas": [*other["alphas"], 20]}, {**other, "weights": [20, 20, 21, 22, 23]}):
        file.write_text(json.dumps(content))
        with refused(file, "twice"):
            load_or_create_split(file, ids, 3)
    for content in (5, {}, {**other, "weights": []}, {**other, "weights": [1.5]}, {**other, "alphas": "20"}):
        file.write_text(json.dumps(content))
        with refused(file, "is not a split"):
            load_or_create_split(file, ids, 3)


def test_a_search_takes_the_kept_halves(tiny_data, tiny_settings, tmp_path):
    ids = tiny_data.train.image_ids
    kept = {"seed": 0, "weights": list(ids[:4]), "alphas": list(ids[4:])}
    file = tmp_path / "halves.json"
    file.write_text(json.dumps(kept))
    data = type(tiny_data)(tiny_data.train, tiny_data.val, file)
    settings = tiny_settings.data.model_copy(update={"batch_size": 4})
    weights, alphas, _ = search_loaders(data, settings, tiny_settings.skeleton, 0)
    seen = [{sample.img_id for batch in loader for sample in batch["data_samples"]} for loader in (weights, alphas)]
    assert seen == [set(kept["weights"]), set(kept["alphas"])]
