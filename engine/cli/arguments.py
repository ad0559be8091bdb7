"""Arguments and output that several commands have in common."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from atlasvi.engine.terminal import say
from atlasvi.loaders.errors import SourceError

Seed = Annotated[int, typer.Option(help="The same seed gives the same result.", min=0)]

Where = Annotated[
    list[str] | None,
    typer.Option(
        metavar="COLUMN=VALUE|EXPRESSION",
        help="Only cells for which this holds; example of an expression: \"cell_type == 'B cell' and n_genes > 500\".",
    ),
]
CellNames = Annotated[str | None, typer.Option("--cells", help="Cell names: NAME,NAME or @FILE with one per line.")]
Limit = Annotated[int | None, typer.Option(help="Largest number of cells.", min=1)]
Genes = Annotated[str | None, typer.Option(help="Gene names: NAME,NAME or @FILE with one per line.")]
TransformBatch = Annotated[
    str | None, typer.Option(metavar="NAMES", help="Decode as this batch, or average over several (NAME,NAME).")
]
Out = Annotated[Path | None, typer.Option(help="Write to .csv, .tsv (.gz) or .npz instead of the screen.")]


def split_names(text: str | None) -> list[str] | None:
    """Names separated by commas, or the lines of @FILE."""
    if text is None:
        return None
    if text.startswith("@"):
        try:
            lines = Path(text[1:]).read_text("utf-8-sig").splitlines()
        except OSError as error:
            raise SourceError(f"{text[1:]}: the file can't be read ({error.strerror}).") from error
        except UnicodeDecodeError as error:
            raise SourceError(f"{text[1:]}: not a text file: it must have one name per line (UTF-8).") from error
        if not (names := [line.strip() for line in lines if line.strip()]):
            raise SourceError(f"{text[1:]}: it holds no names: write one per line.")
        return names
    return [name.strip() for name in text.split(",")]


def print_lines(lines: Iterable[str]) -> None:
    """Print lines to standard output as they come."""
    for line in lines:
        say(line)
