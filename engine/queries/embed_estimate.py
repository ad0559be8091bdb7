"""What an embedding would take, reckoned from the numbers of cells."""

from pathlib import Path

from atlasvi.engine.minified.embedding import check_no_embedding
from atlasvi.engine.queries.embed import open_for_embedding
from atlasvi.engine.queries.umap_layout import MIN_DISTANCE, N_NEIGHBOURS
from atlasvi.loaders.places.object_path import need_local
from atlasvi.loaders.work_estimate import WorkEstimate, check_room, peak_memory_bytes

UMAP_SECONDS = 1.2e-3  # for a cell that UMAP lays out: 100,000 take about two minutes on two cores
CELL_BYTES = 8  # of coordinates


def estimate_embedding(
    store: str | Path,
    *,
    sample: int,
    strata: str | None = None,
    n_neighbours: int = N_NEIGHBOURS,
    min_distance: float = MIN_DISTANCE,
    replace: bool = False,
) -> WorkEstimate:
    """What `embed` with these arguments would write, and take; nothing is written.

    Raises the errors of `embed`, as far as they come before its work; OutputError if the disk is too small.
    """
    opened = open_for_embedding(store, sample, strata, n_neighbours, min_distance)
    path = need_local(opened.path, "coordinates are written")
    check_no_embedding(path, replace)
    n_sample, n_cells = min(sample, opened.n_cells), opened.n_cells
    notes = [f"UMAP would lay out {'all' if n_sample == n_cells else f'{n_sample:,}'} of the cells."]
    if n_sample < n_cells:
        notes.append(f"To place the other {n_cells - n_sample:,} beside them takes time that is not in this.")
    # the neighbours of the sample, the graph of UMAP (each edge twice) and its copies; two bytes for each cell
    memory = n_sample * (4 * opened.n_latent + 100 * n_neighbours) + 2 * n_cells
    return WorkEstimate(
        out=opened.path,
        n_cells=n_cells,
        n_genes=0,
        n_tried=0,
        seconds=UMAP_SECONDS * n_sample,
        memory_bytes=peak_memory_bytes() + memory,
        disk_bytes=CELL_BYTES * n_cells,
        free_bytes=check_room(path / "obsm", CELL_BYTES * n_cells),
        notes=tuple(notes),
    )
