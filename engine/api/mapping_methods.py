"""SCVI's methods that map new data to a reference: genes are aligned, weights frozen but for new categories."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pandas as pd
from torch import Generator

from atlasvi.engine.api.model_and_data import ModelAndData
from atlasvi.engine.model.model_options import Freezing
from atlasvi.engine.model.trained_run import TrainedRun
from atlasvi.engine.queries.opened_data import is_anndata, keep_setup, open_counts
from atlasvi.engine.queries.question_cells import CountedCells, QueryError
from atlasvi.engine.scvi_tools.model_directories import open_model
from atlasvi.engine.training.query_mapping import align_anndata, map_query
from atlasvi.loaders.cells.open_cells import CellData, align_genes, select_genes

if TYPE_CHECKING:
    import anndata


class QueryMapping(ModelAndData):
    """Map new data, the query, to a reference model."""

    @staticmethod
    def prepare_query_anndata(
        adata: "anndata.AnnData",
        reference_model: str | Path | ModelAndData,
        return_reference_var_names: bool = False,
        inplace: bool = True,
    ) -> "anndata.AnnData | pd.Index | None":
        """The genes of a reference, in its order; missing ones are zero, and a warning gives their proportion.

        inplace  change `adata`, else return a new one. Raises GeneError if all genes are missing.
        """
        genes = pd.Index(_open_reference(reference_model).genes)
        if return_reference_var_names:
            return genes
        prepared = align_anndata(adata, genes)
        if not inplace:
            return prepared
        adata._init_as_actual(prepared)
        return None

    @staticmethod
    def prepare_query(data: Any, reference_model: str | Path | ModelAndData) -> CellData:
        """Cells out of core, with the genes of a reference in its order; missing genes are zero.

        data  a cell store or any source, as a path or opened. A warning gives the proportion of genes that it has.
        Raises GeneError if all genes are missing.
        """
        reference = _open_reference(reference_model)
        counts = open_counts(data, reference.like, reference.setup.layer)
        return align_genes(counts, reference.genes)

    @classmethod
    def load_query_data(
        cls,
        adata: Any,
        reference_model: str | Path | ModelAndData,
        inplace_subset_query_vars: bool = False,
        accelerator: str = "auto",
        device: Any = "auto",
        unfrozen: bool = False,
        freeze_dropout: bool = False,
        freeze_expression: bool = True,
        freeze_decoder_first_layer: bool = True,
        freeze_batchnorm_encoder: bool = True,
        freeze_batchnorm_decoder: bool = False,
        freeze_classifier: bool = True,
        transfer_batch: bool = True,
        seed: int = 0,
    ) -> Self:
        """A model for new data with the weights of a reference, frozen except for new categories (see `Freezing`).

        adata            an AnnData, or a cell store or any source (or the result of `prepare_query`)
        reference_model  a model, or the path of a saved one
        Raises GeneError if genes of the reference are missing: call `prepare_query_anndata` or `prepare_query` first.
        """
        reference = _open_reference(reference_model)
        if inplace_subset_query_vars:
            adata._inplace_subset_var(reference.genes)
        counts = open_counts(adata, reference.like, reference.setup.layer)
        data = select_genes(counts, reference.genes)
        freezing = Freezing(
            unfrozen=unfrozen,
            freeze_dropout=freeze_dropout,
            freeze_expression=freeze_expression,
            freeze_decoder_first_layer=freeze_decoder_first_layer,
            freeze_batchnorm_encoder=freeze_batchnorm_encoder,
            freeze_batchnorm_decoder=freeze_batchnorm_decoder,
        )
        run = map_query(reference, data, freezing, Generator().manual_seed(seed))
        unknown = run.setup.batch_categories[len(reference.setup.batch_categories) :]
        if unknown and not transfer_batch:
            raise QueryError(f"{data.path}: the reference has no batch {unknown[0]!r}, and transfer_batch is off.")
        model = cls._of_run(run, None, seed, "cpu" if accelerator == "cpu" else str(device))
        if is_anndata(adata):
            model._adata = adata
            keep_setup(adata, run.setup)
        model._cells = CountedCells(counts, run.genes, run.setup)
        return model

    load_query = load_query_data


def _open_reference(model: str | Path | ModelAndData) -> TrainedRun:
    return model.run if isinstance(model, ModelAndData) else open_model(model)
