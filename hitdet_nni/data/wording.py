"""Numbers in messages: one image is, two images are."""

from __future__ import annotations

import re
from typing import Final

_EITHER: Final = re.compile(r"\{([^{}|]*)\|([^{}|]*)\}")


def counted(count: int, phrase: str) -> str:
    """Return a phrase behind its number.

    Args:
        count: The number.
        phrase: What is counted, with both forms of each word that depends on the number: ``"{box is|boxes are} lost"``.
    """
    return f"{count} {_EITHER.sub(lambda forms: forms[1 if count == 1 else 2], phrase)}"
