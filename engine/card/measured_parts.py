"""One pass over cells: real counts and draws of them, added to the sums of the part that each cell is in.

What is kept of every cell (three numbers per source) leaves the process in slices; of sampled cells the counts stay.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from atlasvi.engine.card.cell_statistics import CellStatistics, cell_statistics
from atlasvi.engine.card.part_statistics import PartStatistics
from atlasvi.engine.model.vae import VAE, kl_of_normals
from atlasvi.engine.queries.predictive_counts import draw_batches
from atlasvi.engine.queries.question_cells import BATCH_SIZE, Posterior, QuestionCells
from atlasvi.loaders.batches.batch import Batch
from atlasvi.loaders.identity import mix64

CELL_VALUES = CellStatistics._fields


@dataclass(frozen=True)
class PassOptions:
    """What is computed.

    part_names  names of the parts, by the codes of the cells
    part_codes  uint8 [cells of the data]: the part of each cell; cells of NO_PART are not read
    labels      int [cells of the data], below 0 for a cell without one; None: no differential expression
    sampled     ascending int64 indices of the cells whose counts are kept
    n_tested    draws of which differential expression is computed;  n_kept  draws that are kept of sampled cells
    """

    part_names: tuple[str, ...]
    part_codes: np.ndarray
    labels: np.ndarray | None
    n_labels: int
    sampled: np.ndarray
    seed: int
    n_draws: int
    n_tested: int
    n_kept: int
    batch_size: int = BATCH_SIZE


NO_PART = 255


@dataclass
class Measured:
    """The result of a pass over some cells.

    parts    sums by part; a part without cells is missing
    rows     int64: indices of the sampled cells among them, ascending
    counts   their counts, then those of each kept draw, float32 CSR [sampled, genes]; [] where there are no counts
    latents  their qzm, float32 [sampled, latent]
    hashes   `CellHashes`, the sums over cells modulo 2**64
    """

    parts: dict[str, PartStatistics] = field(default_factory=dict)
    rows: list[np.ndarray] = field(default_factory=list)
    counts: list[list[sparse.csr_matrix]] = field(default_factory=list)
    latents: list[np.ndarray] = field(default_factory=list)
    hashes: np.ndarray = field(default_factory=lambda: np.zeros(3, np.uint64))


def measure_cells(
    model: VAE,
    cells: QuestionCells,
    chosen: np.ndarray,
    options: PassOptions,
    take_values: Callable[[np.ndarray, np.ndarray], None],
    take_posterior: Callable[[np.ndarray, Posterior], None] = lambda here, posterior: None,
) -> Measured:
    """One pass over the chosen cells (ascending int64 indices), all of which are in a part.

    take_values  called with the indices of some cells, and their values float32 [1 + draws, 3, cells]: `CellStatistics`
                 of the real counts, then of each draw
    take_posterior  called with the indices of some cells, and their posterior
    The draws are those of `predictive_counts` with this seed, whatever the minibatches and the parts. Of cells without
    counts, only their library size and KL are measured, and draws.
    Raises QueryError where the model gives a cell no distribution of counts.
    """
    found, n_genes, at = Measured(), model.settings.n_genes, 0
    batches = draw_batches(model, cells, options.seed, chosen, n_draws=options.n_draws, batch_size=options.batch_size)

    def add(here: np.ndarray, posterior: Posterior, draws: list[sparse.csr_matrix], *losses: np.ndarray) -> None:
        real = None if posterior.counts is None else to_csr(posterior.counts, n_genes)
        take_values(here, _cell_values(real, posterior, draws))
        take_posterior(here, posterior)
        _add_cells(found, options, here, posterior, real, draws, *losses)

    # one minibatch is added up on one core while the next one is drawn on all
    with ThreadPoolExecutor(1, thread_name_prefix="atlasvi-card") as beside:
        adding: Future[None] | None = None
        for posterior, draws in batches:
            here = chosen[at : at + len(posterior)]
            at += len(posterior)
            losses = measure_losses(model, posterior, options.seed, here, options.n_draws)
            if adding is not None:
                adding.result()
            adding = beside.submit(add, here, posterior, draws, *losses)
        if adding is not None:
            adding.result()
    return found


def _add_cells(
    found: Measured,
    options: PassOptions,
    here: np.ndarray,
    posterior: Posterior,
    real: sparse.csr_matrix | None,
    draws: list[sparse.csr_matrix],
    kl: np.ndarray,
    losses: np.ndarray,
) -> None:
    """Add cells to what was found: their indices in the data, their counts and each draw, and their losses."""
    for code in np.unique(options.part_codes[here]):
        name, rows = options.part_names[code], np.flatnonzero(options.part_codes[here] == code)
        if name not in found.parts:
            n_genes = draws[0].shape[1]
            found.parts[name] = PartStatistics(n_genes, options.n_draws, options.n_labels, options.n_tested)
        whole = len(rows) == len(here)
        labels = None if options.labels is None else options.labels[here[rows]]
        if real is not None:
            some = [each if whole else each[rows] for each in (real, *draws)]
            found.parts[name].add(some[0], some[1:], labels)
        else:
            found.parts[name].genes[0].n_cells += len(rows)
        found.parts[name].add_losses(kl[rows], losses[:, rows])
    kept = np.flatnonzero(np.isin(here, options.sampled, assume_unique=True))
    if len(kept):
        found.rows.append(here[kept])
        found.latents.append(posterior.qzm[torch.from_numpy(kept)].cpu().numpy())
        if real is not None:
            found.counts.append([each[kept] for each in (real, *draws[: options.n_kept])])
    found.hashes += np.array([0 if real is None else hash_counts(real), *hash_libraries(posterior, here)], np.uint64)


@torch.inference_mode()
def measure_losses(
    model: VAE, posterior: Posterior, seed: int, cells: np.ndarray, n_draws: int
) -> tuple[np.ndarray, np.ndarray]:
    """KL of each cell, float32 [cells], and its reconstruction loss at each draw of z, float32 [draws, cells]; nats.

    The latents are those of the draws of counts. Without counts there is no reconstruction loss: NaN.
    """
    kl = kl_of_normals(posterior.qzm, posterior.qzv).sum(1)
    if posterior.qlm is not None and posterior.qlv is not None:
        kl = kl + kl_of_normals(posterior.qlm, posterior.qlv, *model.library_prior(posterior.codes, len(posterior)))
    losses = np.full((n_draws, len(posterior)), np.nan, np.float32)
    if posterior.counts is not None:
        numbers: Tensor = torch.from_numpy(cells).to(posterior.library.device)
        for draw in range(n_draws):
            z, library = posterior.draw_numbered(model, seed, numbers, draw)
            losses[draw] = model.reconstruction(posterior.counts, z, library).cpu().numpy()
    return kl.cpu().numpy(), losses


def to_csr(batch: Batch, n_genes: int) -> sparse.csr_matrix:
    """The counts of a minibatch, float32 [cells, genes]."""
    on_cpu = batch.to("cpu")
    n = int(on_cpu.indptr[-1])
    values = on_cpu.counts[:n].numpy().astype(np.float32), on_cpu.indices[:n].numpy().astype(np.int32)
    return sparse.csr_matrix((*values, on_cpu.indptr.numpy()), (len(batch), n_genes))


def hash_counts(counts: sparse.csr_matrix) -> int:
    """The sum of a hash of the counts of each cell (row), modulo 2**64; columns may be in any order."""
    values = counts.data.view(np.uint32).astype(np.uint64)
    with np.errstate(over="ignore"):
        entries = mix64(counts.indices.astype(np.uint64) << np.uint64(32) | values, seed=3)
        ends = np.concatenate([np.zeros(1, np.uint64), np.cumsum(entries, dtype=np.uint64)])
        rows = ends[counts.indptr[1:]] - ends[counts.indptr[:-1]]
        return int(mix64(rows, seed=4).sum(dtype=np.uint64))


class CellHashes(NamedTuple):
    """Which cells these are: sums of hashes of each cell, modulo 2**64.

    counts     of a cell's counts, the same for any order of the cells; 0 without counts
    libraries  of its library size alone, which minified data has too, the same for any order
    order      of its library size and its place, which numbers its draws
    """

    counts: int
    libraries: int
    order: int


def hash_libraries(posterior: Posterior, cells: np.ndarray) -> tuple[int, int]:
    """`libraries` and `order` of `CellHashes`, of the cells with these indices."""
    bits = posterior.library.cpu().numpy().astype(np.float32).view(np.uint32).astype(np.uint64)
    places = mix64(cells.astype(np.uint64), seed=5)
    with np.errstate(over="ignore"):
        return int(mix64(bits, seed=6).sum(dtype=np.uint64)), int(mix64(bits ^ places, seed=7).sum(dtype=np.uint64))


def _cell_values(real: sparse.csr_matrix | None, posterior: Posterior, draws: list[sparse.csr_matrix]) -> np.ndarray:
    library = posterior.library.cpu().numpy()
    unknown = np.full(len(library), np.nan, np.float32)
    first = CellStatistics(unknown, library, unknown) if real is None else cell_statistics(real)
    return np.stack([np.stack(each) for each in (first, *map(cell_statistics, draws))])
