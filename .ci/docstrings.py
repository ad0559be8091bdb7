"""What our docstrings are to mkdocstrings: a column of names with what they are, in plain text, becomes a list."""

import re
from typing import Any

import griffe

ENTRY = re.compile(r"(?P<names>[a-z_][\w.]*(, [a-z_][\w.]*)*) {2,}(?P<text>\S.*)")


class Columns(griffe.Extension):
    """Rewrites each docstring as Markdown."""

    def on_object(self, *, obj: Any, **others: Any) -> None:
        """Called for each object that is loaded."""
        if obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value)


def to_markdown(text: str) -> str:
    """`name  what it is` lines, with those that go on below, as a list; the rest as it is."""
    lines: list[str] = []
    in_list = False
    for line in text.splitlines():
        if entry := ENTRY.fullmatch(line):
            lines += [""] * (not in_list) + [f"- **{entry['names']}**: {entry['text']}"]
            in_list = True
        elif in_list and line.startswith("    "):
            lines[-1] += f" {line.strip()}"
        else:
            lines += [""] * (in_list and bool(line.strip())) + [line]
            in_list = False
    return "\n".join(lines)
