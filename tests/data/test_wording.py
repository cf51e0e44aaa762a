"""Numbers in messages."""

import pytest

from hitdet_nni.data.wording import counted


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 boxes are lost, x {y}"), (1, "1 box is lost, only x {y}"), (2, "2 boxes are lost, x {y}")],
)
def test_words_follow_their_number(count, text):
    assert counted(count, "{box is|boxes are} lost, {only |}x {y}") == text
