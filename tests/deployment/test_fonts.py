"""Captions whose letters matplotlib's font lacks: drawn by a font of the system, else by the number of the class."""

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen

from hitdet_nni.deployment import fonts
from hitdet_nni.deployment.captions import shortened
from hitdet_nni.deployment.drawing import draw_boxes

CAPTION = "红心 杰克 0.87"


@pytest.fixture
def system(tmp_path, monkeypatch):
    """A system without fonts, and a function that installs one with the letters of a text."""
    caches = [fonts._file_for, fonts._installed, fonts._letters, fonts._opened, fonts._say_letters_are_missing]
    for variable in ("XDG_DATA_HOME", "XDG_DATA_DIRS"):
        monkeypatch.setenv(variable, str(tmp_path))

    def install(text, name=fonts.SYSTEM_FONTS[2]):
        letters = sorted(set(text))
        builder = FontBuilder(1000)
        builder.setupGlyphOrder([".notdef", *(f"u{ord(letter)}" for letter in letters)])
        builder.setupCharacterMap({ord(letter): f"u{ord(letter)}" for letter in letters})
        pen = TTGlyphPen(None)
        for place, corner in enumerate([(0, 0), (900, 0), (900, 900), (0, 900)]):
            pen.lineTo(corner) if place else pen.moveTo(corner)
        pen.closePath()
        square = pen.glyph()
        builder.setupGlyf(dict.fromkeys(builder.font.getGlyphOrder(), square))
        builder.setupHorizontalMetrics(dict.fromkeys(builder.font.getGlyphOrder(), (1000, 0)))
        builder.setupHorizontalHeader(ascent=900, descent=-100)
        builder.setupNameTable({"familyName": "Test", "styleName": "Regular"})
        builder.setupOS2()
        builder.setupPost()
        (tmp_path / "fonts").mkdir(exist_ok=True)
        builder.save(tmp_path / "fonts" / name)
        return str(tmp_path / "fonts" / name)

    for cache in caches:
        cache.cache_clear()
    yield install
    for cache in caches:
        cache.cache_clear()


def drawn(caption, label=3, size=(120, 300)):
    return draw_boxes(
        np.zeros((*size, 3), np.uint8), np.array([[20, 40, 90, 100]], float), np.array([label]), [caption]
    )


def test_letters_that_no_font_has(system, caplog):
    assert fonts.drawable("дама пик 0.87", 3) == "дама пик 0.87"
    assert caplog.records == []
    assert fonts.drawable(CAPTION, 3) == "3 0.87"
    assert fonts.drawable("красный 杰克 0.87", 12) == "12 красный 0.87"
    (record,) = caplog.records  # once
    assert "their numbers, from 0, are drawn instead" in record.getMessage()
    assert (drawn(CAPTION) == drawn("3 0.87")).all()


def test_a_font_of_the_system(system, caplog):
    file = system(CAPTION)
    assert fonts.drawable(CAPTION, 3) == CAPTION
    assert str(fonts.caption_font(12, CAPTION).path) == file
    assert fonts.caption_font(12, "queen 0.87").path != file  # matplotlib's comes first
    assert (drawn(CAPTION) != drawn("3 0.87")).any()
    assert caplog.records == []


def test_a_font_that_lacks_a_letter_is_none(system):
    system("红心")
    assert fonts.drawable("红心 杰克 0.87", 3) == "3 0.87"


@pytest.mark.parametrize("caption", ["x\ny 0.87", "x\ty 0.87", "\n", "", "x\u2028y\x00", "\ud800"])
def test_captions_are_one_line(caption):
    assert drawn(caption).shape == (120, 300, 3)


def test_a_line_break_is_drawn_as_a_space():
    assert (drawn("x\r\ny 0.87") == drawn("x y 0.87")).all()


def test_long_captions_are_shortened():
    name = "a very long name of a class, of which no image has room " * 3
    assert shortened(f"{name}0.87", 30, len) == f"{name[:24]}… 0.87"
    assert shortened("queen 0.87", 10, len) == "queen 0.87"
    assert shortened("queen 0.87", 9, len) == "que… 0.87"
    assert shortened("two words", 8, len) == "tw…words"
    assert shortened("queen 0.87", 3, len) == "queen 0.87"  # no room for anything
    assert shortened("", -1, len) == ""
    letters = (drawn(f"{name}0.87") > 180).all(axis=2)
    assert letters[:, -30:].any()
    assert not letters[:, -1].any()  # the score ends inside
