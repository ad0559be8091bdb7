"""What several commands take and print alike."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from atlasvi.engine.terminal import say
from atlasvi.loaders.errors import SourceError

Seed = Annotated[int, typer.Option(help="The same seed gives the same result.", min=0)]


def split_names(text: str | None) -> list[str] | None:
    """Names separated by commas, or the lines of a file given as @FILE."""
    if text is None:
        return None
    if text.startswith("@"):
        try:
            lines = Path(text[1:]).read_text("utf-8-sig").splitlines()
        except OSError as error:
            raise SourceError(f"{text[1:]}: can't be read ({error.strerror}).") from error
        except UnicodeDecodeError as error:
            raise SourceError(f"{text[1:]}: not a text file: give one with a name in each line (UTF-8).") from error
        if not (names := [line.strip() for line in lines if line.strip()]):
            raise SourceError(f"{text[1:]}: it holds no names: write one in each line.")
        return names
    return [name.strip() for name in text.split(",")]


def print_lines(lines: Iterable[str]) -> None:
    """Print lines to standard output as they come."""
    for line in lines:
        say(line)
