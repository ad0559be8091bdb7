"""New data onto an old model (scArches, Lotfollahi et al. 2022): categories are appended, what is known is held."""

import logging
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from scipy import sparse
from torch import Generator, Tensor

from atlasvi.engine.model.covariates import Setup, learn_setup
from atlasvi.engine.model.layers import Layer
from atlasvi.engine.model.library_prior import fill_library_prior
from atlasvi.engine.model.model_options import Freezing
from atlasvi.engine.model.trained_run import TrainedRun
from atlasvi.engine.model.vae import VAE
from atlasvi.loaders.cells.memory_cells import NAME, list_layers
from atlasvi.loaders.cells.open_cells import CellData, find_missing
from atlasvi.loaders.sources.open_source import check_gene_names

if TYPE_CHECKING:
    import anndata

LEAST_SHARE = 0.8  # of the model's genes; with fewer scvi-tools warns too

log = logging.getLogger(__name__)


def report_genes(path: str, n_genes: int, missing: Sequence[str]) -> None:
    """Say which share of a model's genes the data has: to the log, and as a warning where some are missing."""
    share = 1 - len(missing) / n_genes
    log.info("%s: %.1f%% of the %d genes of the model are there", path, 100 * share, n_genes)
    if missing:
        poor = f" Less than {LEAST_SHARE:.0%}: what comes of it may be poor." if share < LEAST_SHARE else ""
        warnings.warn(
            f"{path}: {share:.1%} of the {n_genes:,} genes of the model are there; the {len(missing):,} others (first: "
            f"{missing[0]!r}) count zero in every cell.{poor}",
            UserWarning,
            stacklevel=3,
        )


def align_anndata(adata: "anndata.AnnData", genes: pd.Index) -> "anndata.AnnData":
    """A copy with just these genes, in this order, zero where it lacks one; a warning says which share is there.

    Raises GeneError if it has none of them, or gene names repeat.
    """
    import anndata

    check_gene_names(NAME, adata.var)
    missing = find_missing(NAME, adata.var_names, genes)
    report_genes(NAME, len(genes), missing)
    there = adata[:, genes[genes.isin(adata.var_names)]].copy()
    if missing:
        zeros = sparse.csr_matrix((adata.n_obs, len(missing)), dtype=np.float32)
        layers = {name: zeros.copy() for name in list_layers(adata)}
        padding = anndata.AnnData(
            None if there.X is None else zeros,
            pd.DataFrame(index=adata.obs_names),
            pd.DataFrame(index=missing),
            layers=layers,
        )
        padded = anndata.concat([there, padding], axis="var", join="outer", merge="unique")
        padded.obs, padded.uns = there.obs, there.uns
        padded.obsm.update(there.obsm)
        there = padded
    return there[:, genes].copy()


def map_query(reference: TrainedRun, data: CellData, freezing: Freezing, generator: Generator) -> TrainedRun:
    """A model of the reference's weights that takes the categories of `data` too, ready to be trained on it.

    freezing  its numbers of categories are filled in here
    data      over the genes of the reference
    Raises ColumnError if a column that the model takes is not there.
    """
    settings = reference.model.settings
    setup = extend_setup(reference.setup, data)
    codes = setup.read_codes(data)  # all columns that the model takes, so that none is missed only when it trains
    model = extend_model(reference.model, setup, generator)
    if settings.has_latent_library:
        fill_library_prior(model, data, codes, first=settings.n_batches)
    known = {"n_batches": settings.n_batches, "n_categories": settings.n_categories}
    return TrainedRun(model, reference.genes, setup, freezing=freezing.model_copy(update=known), data=data.spec)


def extend_setup(setup: Setup, data: CellData) -> Setup:
    """The setup with the categories of `data` that it does not know, in sorted order after those that it does.

    Labels may be missing from the data, unless the model's dispersion needs them when it reads them.
    """
    labels_key = setup.keys.labels_key if setup.keys.labels_key in data.obs_columns else None
    return setup.extend(learn_setup(data, replace(setup.keys, labels_key=labels_key), one_batch=True))


@torch.no_grad()
def extend_model(reference: VAE, setup: Setup, generator: Generator) -> VAE:
    """A model with the weights of the reference and room for the categories of `setup`; new columns are drawn.

    A covariate that had one category was no input of the reference. Where it becomes one, the column of that first
    category is zero, so that all is as it was for its cells.
    """
    settings = reference.settings.model_copy(update=setup.sizes)
    model = VAE(settings, generator).eval()
    old = dict(reference.named_parameters()) | dict(reference.named_buffers())
    old_layers = {name: part for name, part in reference.named_modules() if isinstance(part, Layer)}
    moved: dict[str, Tensor | None] = {}  # of the columns of covariates: by covariate, whatever its place in the list
    for name, part in model.named_modules():
        if isinstance(part, Layer):
            before = old_layers[name]
            if part.batch is not None:
                moved[f"{name}.batch"] = before.batch
            earlier = _by_covariate(before, reference.settings.n_categories)
            for k, columns in enumerate(_by_covariate(part, settings.n_categories)):
                if columns is not None:
                    place = next(i for i, p in enumerate(part.categories) if p is columns)
                    moved[f"{name}.categories.{place}"] = earlier[k]
    for name, values in (dict(model.named_parameters()) | dict(model.named_buffers())).items():
        before_values = moved[name] if name in moved else old[name]
        if before_values is None:
            values[0] = 0
        elif before_values.shape == values.shape:
            values.copy_(before_values)
        else:
            values[: len(before_values)] = before_values
    return model


def _by_covariate(layer: Layer, n_categories: Sequence[int]) -> list[Tensor | None]:
    """The columns of each further covariate in a layer; None where it has none, being of one category."""
    there = iter(layer.categories)
    return [next(there, None) if n > 1 else None for n in n_categories]
