"""Cells that a model has not seen, opened to be encoded by it: other genes may be missing, other batches be there."""

from typing import Any, Literal, get_args

from atlasvi.engine.model.covariates import Setup
from atlasvi.engine.model.trained_run import TrainedRun
from atlasvi.engine.queries.opened_data import open_counts
from atlasvi.engine.queries.question_cells import CountedCells, QueryError
from atlasvi.engine.training.query_mapping import report_genes
from atlasvi.loaders.cells.open_cells import align_genes
from atlasvi.loaders.errors import AtlasviError, GeneError

MissingGenes = Literal["refuse", "zeros"]


def open_new_cells(data: Any, run: TrainedRun, missing_genes: MissingGenes = "refuse") -> CountedCells:
    """The counts of `data` (a path with options, an AnnData, or opened cells), to be encoded by the model of `run`.

    missing_genes  of the model's genes that the data lacks: 'refuse' them, or take them as 'zeros' in every cell, with
                   a warning that says how many they are
    If covariates are not inputs of the model's encoder, the columns of obs that hold them need not be there, and may
    hold categories that the model does not know, such as new donors.
    Raises GeneError if genes are missing, or, with zeros too, if all of them are.
    """
    if missing_genes not in get_args(MissingGenes):
        raise QueryError(f"missing_genes is {missing_genes!r}: use one of {', '.join(get_args(MissingGenes))}.")
    counts = open_counts(data, run.like, run.setup.layer)
    try:
        cells, missing = align_genes(counts, run.genes)
        if missing and missing_genes == "refuse":
            raise GeneError(
                f"{counts.path}: {len(missing):,} of the {len(run.genes):,} genes of the model are not there (first: "
                f"{missing[0]!r}): if they were not measured, --missing-genes zeros (missing_genes='zeros') takes them "
                "as zero; if they have other names, choose the column of var with the model's names: "
                "PATH::gene_column=NAME."
            )
        if missing:
            report_genes(counts.path, len(run.genes), missing)
    except AtlasviError:
        if counts is not data:
            counts.close()
        raise
    encodes = run.model.settings.encode_covariates
    return CountedCells(cells, run.genes, run.setup if encodes else Setup(layer=run.setup.layer))
