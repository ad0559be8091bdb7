"""How much one client may ask for, and all of them together."""

import os
from dataclasses import dataclass
from typing import Annotated

import typer


@dataclass(frozen=True)
class Limits:
    """Limits of the service, which are options of `atlasvi serve`.

    The others are there so that no request can take all memory; few would want to change them.
    """

    seconds: Annotated[float, typer.Option(help="Longest time to answer a question.", min=0.1)] = 120.0
    at_once: Annotated[int, typer.Option(help="Questions computed at once.", min=1)] = max(2, os.cpu_count() or 1)
    waiting: Annotated[int, typer.Option(help="Questions that wait while others are computed.", min=0)] = 256
    most_cells: Annotated[int, typer.Option(help="Cells, or other rows, of an answer.", min=1)] = 1_000_000
    most_genes: Annotated[int, typer.Option(help="Genes of a question that answers with a column for each.", min=1)] = (
        5_000
    )
    most_samples: Annotated[int, typer.Option(help="Draws for a cell, or a group.", min=1)] = 20_000
    json_rows: Annotated[int, typer.Option(help="Rows of an answer in JSON.", min=1)] = 10_000
    upload_mb: Annotated[int, typer.Option(help="Megabytes of new counts that a client may send; 0: none.", min=0)] = (
        1_000
    )
    all_uploads_mb: Annotated[
        int, typer.Option(help="Megabytes of new counts of all clients together, until they are answered.", min=0)
    ] = 4_000

    json_values = 2_000_000  # in an answer in JSON: about 20 MB
    most_values = 50_000_000  # that a question holds in memory: 200 MB of float32
    most_groups = 5_000  # values of a column whose values are groups of cells
    most_neighbours = 1_000
    most_of_new = 200  # neighbours of new cells, and draws for each of them: thousands of cells are labelled at once
    body_bytes = 4_000_000  # of options: 100,000 names of cells
    all_bodies_bytes = 100_000_000  # of the options of all questions that wait or are answered: 1 GB once they are read
    text_characters = 20_000  # of a condition
    body_seconds = 20.0  # until the options, or each further part of new counts, have come
    slowest_bytes = 20_000  # a second, of new counts: a slower client would keep the room of others for hours
    header_seconds = 10.0  # until the head of a request has come
    send_seconds = 60.0  # until a client has taken some of an answer
