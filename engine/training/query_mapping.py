"""Map new data onto a trained model (scArches, Lotfollahi et al. 2022): categories are added, old weights frozen."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from scipy import sparse
from torch import Generator, Tensor

from atlasvi.engine.model.covariates import BATCH, CATEGORIES, KINDS, LABELS, Category, Setup, learn_setup
from atlasvi.engine.model.layers import Layer
from atlasvi.engine.model.library_prior import fill_library_prior
from atlasvi.engine.model.model_options import Freezing
from atlasvi.engine.model.trained_run import MappedFrom, TrainedRun
from atlasvi.engine.model.vae import VAE
from atlasvi.engine.training.freezing import choose_trained
from atlasvi.loaders.cells.memory_cells import NAME, list_layers
from atlasvi.loaders.cells.open_cells import CellData, find_missing, report_genes
from atlasvi.loaders.errors import ColumnError
from atlasvi.loaders.sources.open_source import check_gene_names
from atlasvi.loaders.tables.store_tables import suggest_names

if TYPE_CHECKING:
    import anndata


def align_anndata(adata: "anndata.AnnData", genes: pd.Index) -> "anndata.AnnData":
    """A copy with exactly these genes in this order; missing genes are zero, and a warning gives their proportion.

    Raises GeneError if all genes are missing, or gene names repeat.
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
    """A model with the reference's weights and the categories of `data` added, ready to be trained on `data`.

    freezing  its numbers of categories are filled in here
    data      has the genes of the reference
    Raises ColumnError if a column that the model uses is missing.
    """
    settings = reference.model.settings
    setup = extend_setup(reference.setup, data)
    codes = setup.read_codes(data)  # all columns, so that a missing one is found before training
    model = extend_model(reference.model, setup, generator)
    if settings.has_latent_library:
        fill_library_prior(model, data, codes, first=settings.n_batches)
    known = {"n_batches": settings.n_batches, "n_categories": settings.n_categories}
    origin = MappedFrom(str(reference.path or ""), reference.weights_sha256)
    freezing = freezing.model_copy(update=known)
    return TrainedRun(model, reference.genes, setup, freezing=freezing, data=data.spec, mapped_from=origin)


def extend_setup(setup: Setup, data: CellData) -> Setup:
    """The setup with the new categories of `data` appended in sorted order after its own.

    The column of labels may be missing here; it is needed later only if the dispersion is per label.
    Raises ColumnError if another column is missing.
    """
    for kind in KINDS:
        for column in setup.columns(kind) if kind is not LABELS else ():
            if column not in data.obs_columns:
                there = ", ".join(data.obs_columns) or "none"
                of_one = ", the same in all cells if they are of one" if kind.noun is not None else ""
                raise ColumnError(
                    f"{data.path}: obs has no column {column!r} (it has: {there}), which is the model's {kind.title}: "
                    f"add it to the data{of_one}.{suggest_names(column, data.obs_columns)}"
                )
    labels_key = setup.keys.labels_key if setup.keys.labels_key in data.obs_columns else None
    return setup.extend(learn_setup(data, replace(setup.keys, labels_key=labels_key), one_batch=True))


def list_added(before: Setup, after: Setup) -> dict[str, list[Category]]:
    """What `extend_setup` added: the new categories of batch and covariates, by columns that have some."""
    by_column = {
        column: categories[len(before.categories[kind.code][column]) :]
        for kind in (BATCH, CATEGORIES)
        for column, categories in after.categories.get(kind.code, {}).items()
    }
    return {column: added for column, added in by_column.items() if added}


@torch.no_grad()
def extend_model(reference: VAE, setup: Setup, generator: Generator) -> VAE:
    """A model with the weights of the reference and the categories of `setup`; the weights of new columns are drawn.

    A covariate that had only one category was no input of the reference. If it becomes an input, the column of that
    first category is zero, so that the results for its cells do not change.
    """
    settings = reference.settings.model_copy(update=setup.sizes)
    model = VAE(settings, generator).eval()
    old = dict(reference.named_parameters()) | dict(reference.named_buffers())
    old_layers = {name: part for name, part in reference.named_modules() if isinstance(part, Layer)}
    moved: dict[str, Tensor | None] = {}  # columns of the covariates, by covariate instead of by index
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


@torch.no_grad()
def keeps_latents(reference: TrainedRun, model: TrainedRun) -> bool:
    """Whether `model` gives the cells of `reference` the latents that `reference` gives them, as a mapped one does.

    Its encoder then has the weights of the reference, beside those of added categories.
    """
    if model.genes != reference.genes or model.setup.keys != reference.setup.keys:
        return False
    known, sizes = reference.model.settings, {"n_batches", "n_categories", "n_labels"}
    if model.model.settings.model_dump(exclude=sizes) != known.model_dump(exclude=sizes):
        return False
    for kind in (BATCH, CATEGORIES):
        for column, before in reference.setup.categories.get(kind.code, {}).items():
            if model.setup.categories[kind.code][column][: len(before)] != before:
                return False
    expected = extend_model(reference.model, model.setup, Generator()).state_dict()
    added = choose_trained(model.model, Freezing(n_batches=known.n_batches, n_categories=known.n_categories))
    for name, values in model.model.state_dict().items():
        if name.startswith("encoder.") or (name == "batch_embedding" and known.encode_covariates):
            n = added.get(name, len(values) if values.dim() else None)  # rows that the reference has
            same = torch.equal(values[:n], expected[name][:n]) if n is not None else torch.equal(values, expected[name])
            if not same:
                return False
    return True


def _by_covariate(layer: Layer, n_categories: Sequence[int]) -> list[Tensor | None]:
    """The columns of each further covariate in a layer; None for a covariate that has one category only."""
    there = iter(layer.categories)
    return [next(there, None) if n > 1 else None for n in n_categories]
