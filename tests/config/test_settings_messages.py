"""Messages about bad settings: one line in the project's words, whatever key has whatever value; names of digits."""

import datetime
import re
import textwrap
from pathlib import Path

import pytest
from pydantic import ValidationError

from hitdet_nni.config.settings import PATHS, Settings, load_settings, parse_overrides
from hitdet_nni.config.validation import _model_of, one_line
from hitdet_nni.errors import InputError

VALUES = [
    *(None, True, False, 0, 2017, -3, 2.5, float("inf"), float("nan"), "", "text", b"ab", {1}, 10**30),
    *([], [None], [1, "a"], ["a", 3], [[1]], {}, {"a": 1}, {3: 4}, {None: None}),
    *(datetime.date(2017, 1, 1), datetime.datetime(2017, 1, 1, 2, 3)),
]
"""A value of every type that YAML has."""

INNER = re.compile(
    r"function-|union|[Ii]nput should|type=|\[type|literal|tuple|lax-or|strict|pydantic|Extra|datetime|validator|"
    r"Path\b|Value error|bool|float|another value|class '"
)
"""What only a library would say."""


def keys(model, prefix=()):
    for name, info in model.model_fields.items():
        yield (*prefix, name)
        below = _model_of(info.annotation)
        if below is not None:
            yield from keys(below, (*prefix, name))


def tree(place, value):
    for key in reversed(place):
        value = {key: value}
    return value if place[0] == "data" else {"data": {}, **value}


@pytest.mark.parametrize("place", list(keys(Settings)), ids=".".join)
def test_no_message_has_a_library_s_words(place):
    refused = 0
    for value in VALUES:
        try:
            Settings.model_validate(tree(place, value))
        except ValidationError as error:
            refused += 1
            message = str(one_line(error, Settings, "c.yml"))
            assert message.startswith(f"c.yml: {place[0]}"), message
            assert "\n" not in message
            assert not INNER.search(message), message
            if f"{'.'.join(place)}: got" in message:
                assert "; allowed: " in message
                assert "and 1 more" not in message or isinstance(value, list | set | dict), message
    assert refused >= 5


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("search.epochs=0", "search.epochs: got 0; allowed: an integer above 0"),
        ("search.epochs=true", "search.epochs: got true; allowed: an integer above 0"),
        ("alphas.betas=[0.5, yes]", "alphas.betas.1: got true; allowed: a finite number of at least 0 and below 1"),
        (
            "skeleton.input_size=[64]",
            "skeleton.input_size: got [64]; allowed: a list of 2, each of them an integer of at ",
        ),
        ("retrain.grad_clip=.inf", "retrain.grad_clip: got inf; allowed: a finite number above 0, or null"),
        ("data.builtin=[]", "data.builtin: got []; allowed: digits, digits_dense, or null"),
        (
            "supernet.activations=1",
            "supernet.activations: got 1; allowed: auto, all, checkpoint, fused, fused-low, fused-min, or a mapping of",
        ),
        ("supernet.activations={neck: everything}", "supernet.activations.backbone: missing (and 2 more)"),
        (
            "search.budget={gflop: 3}",
            "search.budget.gflop: unknown key (the nearest is gflops); allowed: gflops, params_m, latency_ms, table, ",
        ),
        ("weights={3: 4}", "weights.3: unknown key; allowed: lr, momentum"),
    ],
)
def test_messages(override, message):
    with pytest.raises(InputError) as caught:
        load_settings("tiny", parse_overrides([override]))
    assert message in str(caught.value)


def test_the_first_example_of_troubleshooting(tmp_path, monkeypatch):
    page = Path(__file__).parents[2] / "docs" / "troubleshooting.md"
    shown = re.search(r"```text\nhitdet-nni: (.*)\n```", page.read_text())[1]
    monkeypatch.chdir(tmp_path)
    Path("mine.yml").write_text("extends: small\nsearch: {epochs: many}\n")
    with pytest.raises(InputError) as caught:
        load_settings("mine.yml")
    assert str(caught.value) == shown


@pytest.mark.parametrize("text", ["", "\n", "# extends: small\n", "---\n", "null\n"])
def test_an_empty_config(text, tmp_path, refused):
    config = tmp_path / "mine.yml"
    config.write_text(text)
    with refused(f"{config}: is empty", "allowed: settings, such as extends: small"):
        load_settings(config)
    (tmp_path / "above.yml").write_text("extends: mine.yml\n")
    with refused(f"{config}: is empty"):
        load_settings(tmp_path / "above.yml")
    config.write_text("- 1\n")
    with refused("expected a mapping of settings, got list"):
        load_settings(config)


@pytest.mark.parametrize("key", [f"{section}.{key}" for section, names in PATHS.items() for key in names])
@pytest.mark.parametrize("written", ["0x7e1", "03741", "2_017", "33:37", "2017.0", "2017-01-01", "-5", "yes"])
def test_a_name_that_yaml_reads_otherwise_is_to_be_quoted(tmp_path, key, written):
    *sections, name = key.split(".")
    text = f"{name}: {written}\n"
    for section in reversed(sections):
        text = f"{section}:\n{textwrap.indent(text, '  ')}"
    config = tmp_path / "c.yml"
    config.write_text(f"extends: tiny\n{text}")
    shown = "true" if written == "yes" else written
    with pytest.raises(InputError, match="put a name like this in quotes") as caught:
        load_settings(config)
    assert f"{key}: got {shown}; allowed: a path" in str(caught.value)


def test_a_folder_of_digits_is_a_name(tmp_path):
    config = tmp_path / "c.yml"
    config.write_text(
        "extends: tiny\ndata: {builtin: null, train_ann: [a.json, 7], train_images: [2017, '0x7'], val_ann: 1, "
        "val_images: 0}\nretrain: {pretrained: 12}\nseed: 0x10\n"
    )
    settings = load_settings(config)
    assert settings.data.train_ann == (tmp_path / "a.json", tmp_path / "7")
    assert settings.data.train_images == (tmp_path / "2017", tmp_path / "0x7")
    assert (settings.data.val_ann, settings.data.val_images) == (tmp_path / "1", tmp_path / "0")
    assert (settings.retrain.pretrained, settings.seed) == (tmp_path / "12", 16)
    assert type(settings.seed) is int


def test_a_key_that_stands_twice_is_refused(tmp_path, refused):
    """YAML would keep the last one, and the section above it would be gone without a word."""
    file = tmp_path / "my.yml"
    file.write_text("extends: tiny\nsearch: {epochs: 5}\nretrain: {epochs: 1}\nsearch: {flops_weight: 0.5}\n")
    with refused(file, "line 4", "'search' twice"):
        load_settings(file)
    file.write_text("extends: tiny\nsearch: {epochs: 5}\nretrain: {epochs: 1}\n")
    assert load_settings(file).search.epochs == 5


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("retrain.epoch", " (the nearest is epochs)"),
        ("batch_size", " (the nearest is data.batch_size or pretrain.batch_size)"),
        ("data.roots", " (the nearest is root)"),
        ("flop", ""),
    ],
)
def test_the_nearest_key_is_named(key, nearest, refused):
    with refused(f"{key}: unknown key{nearest}; allowed: "):
        load_settings("tiny", {key: 3})
