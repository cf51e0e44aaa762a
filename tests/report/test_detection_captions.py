"""Captions of the images on a page: one line, no wider than the drawing, whatever the class is called."""

import re

import pytest

from hitdet_nni.report.detections import Box, _drawn


def texts(markup):
    return re.findall(r"<text[^>]*>([^<]*)</text>", str(markup))


def ground_widths(markup):
    return [float(width) for width in re.findall(r'width="([\d.]+)" height="15', str(markup))]


@pytest.mark.parametrize(
    ("name", "shown"), [("x\ny", "x y 0.99"), ("x\u2028y", "x y 0.99"), ("ü" * 80, "ü+… 0.99"), ("queen", "queen 0.99")]
)
def test_names_of_any_form(name, shown):
    drawing = _drawn((640, 480), "data:,", [Box((6, 2, 640, 90), 2, name, 0.99)], "found", "one")
    (text,) = texts(drawing)
    assert re.fullmatch(shown, text)
    assert max(ground_widths(drawing)) <= 270


def test_letters_that_no_font_here_has_are_left_to_the_reader_s():
    drawing = _drawn((640, 480), "data:,", [Box((6, 200, 640, 290), 2, "\U000f1234" * 4, 0.99)], "found", "one")
    assert texts(drawing) == ["\U000f1234" * 4 + " 0.99"]
    assert min(ground_widths(drawing)) >= 9 * 11
