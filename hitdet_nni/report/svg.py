"""SVG elements as text in which everything that is not an element is escaped."""

from __future__ import annotations

from markupsafe import Markup


def element(name: str, *children: str, **attributes: object) -> Markup:
    """Return one element.

    Args:
        name: The element's name.
        children: Elements, and text, which is escaped.
        attributes: ``class_`` stands for ``class``, other underscores for dashes; those that are ``None`` are left out.
    """
    pairs = [
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), plain(value))
        for key, value in attributes.items()
        if value is not None
    ]
    start = Markup("<{}").format(Markup(name)) + Markup("").join(pairs)
    if not children:
        return start + Markup("/>")
    return start + Markup(">") + Markup("").join(children) + Markup("</{}>").format(Markup(name))


def plain(value: object) -> str:
    """Return an attribute's value as text; floats with as many decimals as a drawing needs."""
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return str(value)


def text(content: str, x: float, y: float, *, anchor: str = "start", class_: str | None = None) -> Markup:
    """Draw a line of text; ``anchor`` is ``start``, ``middle`` or ``end``."""
    return element("text", content, x=x, y=y, text_anchor=None if anchor == "start" else anchor, class_=class_)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    """Draw a straight line."""
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def drawing(width: float, height: float, label: str, *children: Markup, class_: str = "chart") -> Markup:
    """Draw a whole image, scaled by the page.

    Args:
        width: Width in its own units.
        height: Height in its own units.
        label: What it shows, for those who cannot see it.
        children: The elements.
        class_: Its class in the style sheet.
    """
    return element(
        "svg",
        *children,
        viewBox=f"0 0 {plain(width)} {plain(height)}",
        role="img",
        aria_label=label,
        class_=class_,
    )
