"""One pass over the cells: real counts and draws of them, added to the statistics of the part that each cell is in."""

from collections.abc import Mapping

import numpy as np
from scipy import sparse

from atlasvi.engine.card.part_statistics import PartStatistics
from atlasvi.engine.model.vae import VAE
from atlasvi.engine.queries.predictive_counts import draw_batches
from atlasvi.engine.queries.question_cells import BATCH_SIZE, CountedCells
from atlasvi.loaders.batches.batch import Batch


def measure_parts(
    model: VAE,
    cells: CountedCells,
    parts: Mapping[str, np.ndarray],
    *,
    seed: int = 0,
    n_draws: int = 5,
    labels: np.ndarray | None = None,
    n_labels: int = 0,
    n_tested: int = 1,
    batch_size: int = BATCH_SIZE,
) -> dict[str, PartStatistics]:
    """The statistics of each part of the cells; cells in no part are not read.

    parts     masks by name (training, validation, test): bool [cells], of which no cell is in two
    labels    int [cells], from 0 to n_labels - 1, below 0 for a cell without one; None: no differential expression
    n_tested  draws of which differential expression is computed
    The draws are those of `predictive_counts` with this seed, whatever the minibatches and the parts.
    Raises QueryError where the model gives a cell no distribution of counts.
    """
    found = {
        name: PartStatistics(model.settings.n_genes, n_draws, 0 if labels is None else n_labels, n_tested)
        for name in parts
    }
    masks = np.array(list(parts.values()), bool).reshape(len(parts), cells.n_cells)
    chosen = np.flatnonzero(masks.any(0))
    at = 0
    for posterior, draws in draw_batches(model, cells, seed, chosen, n_draws=n_draws, batch_size=batch_size):
        assert posterior.counts is not None
        here, real = chosen[at : at + len(posterior)], to_csr(posterior.counts, model.settings.n_genes)
        at += len(posterior)
        for name, mask in zip(parts, masks):
            rows = np.flatnonzero(mask[here])
            if len(rows):
                some = None if labels is None else labels[here[rows]]
                found[name].add(real[rows], [draw[rows] for draw in draws], some)
    return found


def to_csr(batch: Batch, n_genes: int) -> sparse.csr_matrix:
    """The counts of a minibatch, float32 [cells, genes]."""
    on_cpu = batch.to("cpu")
    n = int(on_cpu.indptr[-1])
    values = on_cpu.counts[:n].numpy().astype(np.float32), on_cpu.indices[:n].numpy().astype(np.int32)
    return sparse.csr_matrix((*values, on_cpu.indptr.numpy()), (len(batch), n_genes))
