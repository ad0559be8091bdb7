"""Arguments and output that several commands have in common."""

import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

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
Sample = Annotated[int | None, typer.Option(metavar="N", help="At most N cells, drawn at random from --seed.", min=1)]
Genes = Annotated[str | None, typer.Option(help="Gene names: NAME,NAME or @FILE with one per line.")]
TransformBatch = Annotated[
    str | None, typer.Option(metavar="NAMES", help="Decode as this batch, or average over several (NAME,NAME).")
]
Columns = Annotated[str | None, typer.Option(metavar="NAMES", help="obs columns to put beside the values: NAME,NAME.")]
Out = Annotated[
    Path | None,
    typer.Option(help="Write to .csv, .tsv (.gz), .parquet, .npz, .h5ad or .zarr instead of the screen."),
]
Top = Annotated[int, typer.Option(metavar="N", help="Number of genes for each; 0: all.", min=0)]
Layer = Annotated[str | None, typer.Option(help="Where the counts are, if not in X: a layer's name, or 'raw'.")]
GeneColumn = Annotated[str | None, typer.Option(help="Column of var with the gene names; default: its index.")]
Measurement = Annotated[str | None, typer.Option(help="Name of the measurement (TileDB-SOMA), modality or table.")]
EmptyCells = Annotated[
    Literal["refuse", "keep"] | None, typer.Option(help="What to do with cells without counts (default: refuse).")
]

NAME = re.compile(r'\s*(?:"(?P<quoted>(?:[^"]|"")*)"?|(?P<plain>[^,]*))\s*(?:(?P<comma>,)|\Z)')


def check_finite(value: float | None) -> float | None:
    """The value of an option; NaN and infinity, which are inside some ranges, are refused as a wrong use."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number.")
    return value


RankTimeout = Annotated[
    float,
    typer.Option(
        metavar="SECONDS",
        help="With several processes: one that hangs this long ends all.",
        min=1,
        callback=check_finite,
    ),
]


def refuse_unused(context: typer.Context, names: Iterable[str], reason: str) -> None:
    """Refuse options that the user gave although they would have no effect. Raises QueryError, with the reason."""
    from atlasvi.engine.queries.question_cells import QueryError  # imports torch, which `--help` does not need

    given = [name for name in names if _was_given(context, name)]
    if given:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise QueryError(f"{options} would have no effect: {reason}.")


def _was_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)  # by its name, because new versions of typer bring their own click
    return source is not None and source.name == "COMMANDLINE"


def split_names(text: str | None) -> list[str] | None:
    """Names separated by commas, or the lines of @FILE.

    A name in double quotes may have commas, and blanks around it, which are removed from others; "" is a quote in it.
    """
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
    names, at, more = list[str](), 0, True
    while more:
        found = NAME.match(text, at)
        assert found is not None  # every text has a name, if only an empty one
        names.append(found["plain"].strip() if found["quoted"] is None else found["quoted"].replace('""', '"'))
        at, more = found.end(), bool(found["comma"])
    return names


def split_repeated(texts: Iterable[str] | None) -> list[str] | None:
    """The names of all values of an option that may be repeated; None if it was not given."""
    return None if texts is None else [name for text in texts for name in split_names(text) or ()]


def print_lines(lines: Iterable[str]) -> None:
    """Print lines to standard output as they come."""
    for line in lines:
        say(line)
