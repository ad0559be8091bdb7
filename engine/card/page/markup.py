"""HTML and SVG elements, in which all text is escaped: a name from someone's data can never become markup."""

import html
import re
from collections.abc import Iterable
from typing import Self

from atlasvi.engine.terminal import make_printable

VOID = frozenset({"br", "hr", "input", "link", "meta"})  # HTML's elements without an end tag, as far as we use them
NAME = re.compile(r"[a-zA-Z][a-zA-Z0-9-]*")


class Markup(str):
    """Text that is markup already, so it is not escaped again. Only `tag`, `join` and constants of ours make it."""

    def __add__(self, other: str) -> Self:
        return type(self)(str(self) + escape(other))


Content = str | Iterable["Content"]
"""What an element holds: text, which is escaped; Markup, which is not; or several of them."""


def escape(text: str) -> Markup:
    """Text as markup: <, >, & and quotes escaped, and characters that are not printable as Python's `repr` has them.

    The latter so that a name can't reverse the direction of what follows, or hold what HTML doesn't allow.
    """
    return text if isinstance(text, Markup) else Markup(html.escape(make_printable(text)))


def join(content: Content, between: str = "") -> Markup:
    """The parts of the content one after the other."""
    if isinstance(content, str):
        return escape(content)
    return Markup(escape(between).join(join(part, between) for part in content))


def tag(name: str, /, *content: Content, **attributes: str | float | bool | None) -> Markup:
    """An element with attributes and content.

    In attributes' names an underscore stands for a hyphen, and one at the end is left out (class_, for_). None and
    False leave the attribute out, True gives it without a value; numbers are written with at most two decimals.
    """
    written = []
    for key, value in attributes.items():
        key = key.rstrip("_").replace("_", "-")
        assert NAME.fullmatch(key), f"{key!r} is no name of an attribute"
        if value is True:
            written.append(f" {key}")
        elif value is not None and value is not False:
            written.append(f' {key}="{escape(value if isinstance(value, str) else decimal(value))}"')
    start = f"<{name}{''.join(written)}>"
    return Markup(start if name in VOID else f"{start}{join(content)}</{name}>")


def decimal(number: float) -> str:
    """A coordinate, with at most two decimals and no more characters than it needs."""
    text = f"{number:.2f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text
