"""Cells that a model has not seen, opened to be encoded by it: genes may be missing, batches and donors be new."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import pandas as pd
import torch
from torch import Generator

from atlasvi.engine.minified.kept_posterior import KeptPosterior
from atlasvi.engine.model.covariates import Setup
from atlasvi.engine.model.layers import Layer
from atlasvi.engine.model.trained_run import TrainedRun
from atlasvi.engine.model.vae import VAE
from atlasvi.engine.queries.opened_data import open_counts
from atlasvi.engine.queries.question_cells import CountedCells, QueryError
from atlasvi.engine.scvi_tools.model_directories import open_model
from atlasvi.engine.training.query_mapping import extend_model, extend_setup, keeps_latents, list_added
from atlasvi.loaders.cells.open_cells import CellData, align_genes, find_missing
from atlasvi.loaders.errors import AtlasviError, AtlasviWarning, GeneError

MissingGenes = Literal["refuse", "zeros"]


@dataclass(frozen=True)
class NewCells:
    """Cells with counts, and the model that encodes them.

    opened  what was opened for them, and `close` closes; None: they were open
    """

    cells: CountedCells
    model: VAE
    opened: CellData | None = None

    def close(self) -> None:
        """Close the files of counts that were opened for these cells."""
        if self.opened is not None:
            self.opened.close()


def choose_encoder(kept: KeptPosterior, model: TrainedRun | str | Path | None) -> TrainedRun:
    """The model that encodes new cells beside the kept ones: their own, or one that was mapped from it (a path too).

    Raises QueryError if `model` would give the kept cells other latents: distances to them would mean nothing.
    """
    if model is None:
        return kept.run
    run = model if isinstance(model, TrainedRun) else open_model(model)
    if not keeps_latents(kept.run, run):
        raise QueryError(
            f"{kept.path}: the latents in it are not those that {model if run is not model else 'the model'} gives its "
            "cells: name a model that was mapped from its own (atlasvi map) with its encoder frozen, or minify its "
            "cells with that model."
        )
    return run


def open_new_cells(data: Any, run: TrainedRun, missing_genes: MissingGenes = "refuse") -> NewCells:
    """The counts of `data` (a path with options, an AnnData, or opened cells), to be encoded by the model of `run`.

    missing_genes  of the model's genes that the data lacks: 'refuse' them, or take them as 'zeros' in every cell, with
                   a warning that says how many they are
    If covariates are not inputs of the model's encoder, the columns of obs that hold them need not be there. If they
    are, categories that the model does not know, such as new donors, are encoded as the average of those that it knows,
    with a warning: only training can tell what is theirs.
    Raises GeneError if genes are missing, or, with zeros too, if all of them are; ColumnError if a column is missing.
    """
    if missing_genes not in get_args(MissingGenes):
        raise QueryError(f"missing_genes is {missing_genes!r}: use one of {', '.join(get_args(MissingGenes))}.")
    counts = open_counts(data, run.like, run.setup.layer)
    opened = None if counts is data else counts
    try:
        missing = find_missing(counts.path, counts.genes, pd.Index(run.genes))
        if missing and "zeros" not in (missing_genes, counts.spec.missing_genes):
            raise GeneError(
                f"{counts.path}: {len(missing):,} of the {len(run.genes):,} genes of the model are not there (first: "
                f"{missing[0]!r}): if they were not measured, --missing-genes zeros (missing_genes='zeros') takes them "
                "as zero; if they have other names, choose the column of var with the model's names: "
                "PATH::gene_column=NAME."
            )
        cells = align_genes(counts, run.genes)
        if not run.model.settings.encode_covariates:
            return NewCells(CountedCells(cells, run.genes, Setup(layer=run.setup.layer)), run.model.eval(), opened)
        setup, model = _add_categories(run, cells)
        return NewCells(CountedCells(cells, run.genes, setup), model.eval(), opened)
    except AtlasviError:
        if opened is not None:
            opened.close()
        raise


def _add_categories(run: TrainedRun, data: CellData) -> tuple[Setup, VAE]:
    """The setup and the model with the categories of `data` added, as the average of those that the encoder knows."""
    setup = extend_setup(run.setup, data)
    new = [(column, value) for column, values in list_added(run.setup, setup).items() for value in values]
    if not new:
        return run.setup, run.model
    others = f" and {len(new) - 1:,} other categories" if len(new) > 1 else ""
    warnings.warn(
        f"{data.path}: the model does not know {new[0][0]} = {new[0][1]!r}{others}: their cells are encoded as of an "
        "average of those that it knows; a model fine-tuned on them would tell more.",
        AtlasviWarning,
        stacklevel=3,
    )
    model, known = extend_model(run.model, setup, Generator()), run.model.settings
    several = [n for n, now in zip(known.n_categories, model.settings.n_categories) if now > 1]
    with torch.no_grad():
        for layer in model.encoder.modules():
            if isinstance(layer, Layer):
                for columns, n in zip((layer.batch, *layer.categories), (known.n_batches, *several)):
                    if columns is not None:
                        columns[n:] = columns[:n].mean(0)
        if model.batch_embedding is not None:
            model.batch_embedding[known.n_batches :] = model.batch_embedding[: known.n_batches].mean(0)
    return setup, model
