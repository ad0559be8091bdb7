"""Arguments and output that several commands have in common."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import typer

from atlasvi.engine.queries.question import NamesOf, NumberOrWord, refuse
from atlasvi.engine.queries.question import split_names as split_names
from atlasvi.engine.terminal import say

Seed = Annotated[int, typer.Option(help="The same seed gives the same result.", min=0, max=2**64 - 1)]

Where = Annotated[
    list[str] | None,
    typer.Option(
        metavar="COLUMN=VALUE|EXPRESSION",
        help="Only cells for which this holds; example of an expression: \"cell_type == 'B cell' and n_genes > 500\".",
    ),
]
CellNames = Annotated[
    str | None, typer.Option("--cells", help="Cell names: NAME,NAME or @FILE with one per line."), NamesOf("cells")
]
Limit = Annotated[int | None, typer.Option(help="Largest number of cells.", min=1)]
Sample = Annotated[int | None, typer.Option(metavar="N", help="At most N cells, drawn at random from --seed.", min=1)]
Genes = Annotated[str | None, typer.Option(help="Gene names: NAME,NAME or @FILE with one per line."), NamesOf("genes")]
LibrarySize = Annotated[
    str,
    typer.Option(help="Counts to scale each cell to; 'observed': its own; 'latent': the inferred ones."),
    NumberOrWord(),
]
TransformBatch = Annotated[
    str | None,
    typer.Option(metavar="NAMES", help="Decode as this batch, or average over several (NAME,NAME)."),
    NamesOf("batches"),
]
Columns = Annotated[
    str | None,
    typer.Option(metavar="NAMES", help="obs columns to put beside the values: NAME,NAME."),
    NamesOf("columns"),
]
Out = Annotated[
    Path | None,
    typer.Option(help="Write to .csv, .tsv (.gz), .parquet, .npz, .h5ad or .zarr instead of the screen."),
]
Top = Annotated[int, typer.Option(metavar="N", help="Number of genes for each; 0: all.", min=0)]
Layer = Annotated[str | None, typer.Option(help="Where the counts are, if not in X: a layer's name, or 'raw'.")]
GeneColumn = Annotated[str | None, typer.Option(help="Column of var with the gene names; default: its index.")]
Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where to compute.")]
Epochs = Annotated[int | None, typer.Option(help="Epochs; default round(8,000,000 / cells), 1 to 400.", min=1)]
BatchSize = Annotated[int | None, typer.Option(help="Cells per minibatch (default 128).", min=1)]
RunSeed = Annotated[
    int | None, typer.Option(help="The same seed gives the same run (default 0).", min=0, max=2**64 - 1)
]
SplitColumn = Annotated[str | None, typer.Option(help="obs column with train, validation or test.")]
RunSettings = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting (repeatable).")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue from the last good checkpoint in --out.")]
Metrics = Annotated[
    list[str] | None,
    typer.Option(metavar="NAMES", help="Where metrics go, too: tensorboard (default), mlflow, wandb, openmetrics."),
]
Note = Annotated[str | None, typer.Option(help="What you say of the run; kept with all that is made from it.")]
Measurement = Annotated[str | None, typer.Option(help="Name of the measurement (TileDB-SOMA), modality or table.")]
EmptyCells = Annotated[
    Literal["refuse", "keep"] | None, typer.Option(help="What to do with cells without counts (default: refuse).")
]


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
    refuse((name for name in names if was_given(context, name)), reason)


def was_given(context: typer.Context, name: str) -> bool:
    """Whether the user gave an option, even if with its default."""
    source = context.get_parameter_source(name)  # by its name, because new versions of typer bring their own click
    return source is not None and source.name in ("COMMANDLINE", "DEFAULT_MAP")  # typed, or in the file of --config


def split_repeated(texts: Iterable[str] | None) -> list[str] | None:
    """The names of all values of an option that may be repeated; None if it was not given."""
    return None if texts is None else [name for text in texts for name in split_names(text) or ()]


def print_lines(lines: Iterable[str]) -> None:
    """Print lines to standard output as they come."""
    for line in lines:
        say(line)
