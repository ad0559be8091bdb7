"""Genes whose decoded expression goes up and down with that of given genes, over many cells."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from atlasvi.engine.queries.cell_choice import sample_cells
from atlasvi.engine.queries.cross_products import CrossProducts
from atlasvi.engine.queries.model_names import find_batches, find_genes
from atlasvi.engine.queries.opened_question import Asked, ask
from atlasvi.engine.queries.question_cells import BATCH_SIZE, QueryError, need_at_least, take_chosen
from atlasvi.engine.queries.shared_draws import Report

LIBRARY_SIZE = 1e4  # counts a cell, at which expression is on the scale of log(1 + x)


@torch.inference_mode()
def similar_genes(
    asked: Asked,
    genes: Sequence[str],
    *,
    top: int | None = 50,
    chosen: np.ndarray | None = None,
    max_cells: int | None = 100_000,
    scale: Literal["log", "linear"] = "log",
    transform_batch: Any = None,
    n_samples: int = 0,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    progress: Report = lambda stage, done, total: None,
) -> pd.DataFrame:
    """For each of some genes, the genes whose decoded expression correlates most with it, over cells.

    asked      a question that was opened, a minified store, or its path
    top        number of genes for each; None: all others
    chosen     ascending int64 indices of the cells to use; None: all
    max_cells  largest number of these cells, chosen at random (an error of 1 / sqrt(max_cells) at most); None: all
    scale      'log': of log(1 + expression at 10,000 counts a cell); 'linear': of the proportions
    transform_batch  batch or batches to decode as, over which expression is averaged; None: each cell's own
    n_samples  draws of z for each cell, whose expression is averaged; 0: the posterior mean of z
    Returns a table, index `gene`: `similar_gene` and Pearson's `correlation`, in descending order for each gene.
    These are correlations of what the model expects, without the noise of counting: higher than those of counts.
    `correlate_genes` gives a whole matrix, of rates drawn with the dispersion of the counts, as scvi-tools does.
    Memory is [genes asked for, genes of the model], and that of a minibatch. Raises GeneError for an unknown gene,
    QueryError for an unknown batch, fewer than two cells, or a gene asked for that does not vary.
    """
    opened = ask(asked)
    need_at_least(1, top=top)
    need_at_least(2, max_cells=max_cells)
    need_at_least(0, n_samples=n_samples)
    if not genes:
        raise QueryError("No genes to find similar ones of: name at least one.")
    if scale not in ("log", "linear"):
        raise QueryError(f"scale {scale!r}: use 'log' or 'linear'.")
    wanted = list(dict.fromkeys(genes))
    columns = np.asarray(find_genes(opened.run, wanted, opened.cells.path))
    batches, model, generator = find_batches(opened.run, transform_batch), opened.run.model, opened.make_generator(seed)
    n_cells = opened.cells.n_cells if chosen is None else len(chosen)
    if n_cells < 2:
        raise QueryError(f"{opened.cells.path}: only one cell was chosen: correlations need at least two.")
    if max_cells is not None and n_cells > max_cells:
        chosen, n_cells = sample_cells(take_chosen(chosen, 0, opened.cells.n_cells), max_cells, generator), max_cells
    products, done = CrossProducts(columns), 0
    for posterior in opened.cells.read_posteriors(model, chosen, max(batch_size // max(n_samples, 1), 1)):
        total: Tensor | None = None
        for batch in batches:
            z, _ = posterior.draw(model, generator, n_samples) if n_samples else posterior.mean(model)
            part = model.proportions(z, posterior.codes, transform_batch=batch)
            part = part.mean(0) if n_samples > 1 else part
            total = part if total is None else total + part
        assert total is not None
        expression = total / len(batches)
        products.add(expression if scale == "linear" else (LIBRARY_SIZE * expression).log1p())
        done += len(posterior)
        progress("decoding", done, n_cells)
    names, tables = pd.Index(opened.run.genes), []
    for gene, column, found in zip(wanted, columns.tolist(), products.correlate()):
        if np.isnan(found[column]):
            raise QueryError(
                f"{opened.cells.path}: gene {gene!r} has the same decoded expression in all these cells, so nothing "
                "correlates with it: choose more cells."
            )
        found[column] = np.nan  # itself
        order = np.argsort(-found, kind="stable")  # NaN, genes that do not vary, come last
        order = order[~np.isnan(found[order])][:top]
        tables.append(
            pd.DataFrame(
                {"similar_gene": names[order], "correlation": found[order]},
                index=pd.Index([gene] * len(order), name="gene"),
            )
        )
    return pd.concat(tables)
