"""How many neighbouring cells of a source are read as one run, and how many such runs are mixed when shuffling.

Shorter runs mix cells better; longer runs decode fewer cells at their edges that are not needed.
"""

import math

GROUP_CELLS = 2**14  # mixed at a time; two groups in narrow dtypes take about 150 MB
FEWEST_RUNS = 16  # mixed at a time, for a source in its authors' order
FEWEST_CELLS = 128  # a read of fewer cells is mostly overhead
MOST_CELLS = {False: 2**10, True: 2**12}  # for a source in its authors' order; for a shuffled one
PIECES = {False: 4, True: 16}  # pieces of a file in a run; for the cells at its edges one more is decoded


def choose_run(piece_cells: float, shuffled: bool) -> int:
    """Cells in a run, a power of two, if `piece_cells` cells are decoded together and runs begin anywhere in them."""
    wanted = max(PIECES[shuffled] * piece_cells, FEWEST_CELLS)
    return min(2 ** math.ceil(math.log2(wanted)), MOST_CELLS[shuffled])


def count_mixed_runs(run_cells: int, shuffled: bool) -> int:
    """Number of runs that are mixed at a time."""
    return max(GROUP_CELLS // run_cells, 1 if shuffled else FEWEST_RUNS)


def describe_mixing(n_cells: int, run_cells: int, n_runs: int, shuffled: bool) -> str:
    """A sentence about how the cells of a source are mixed with runs of this length and number."""
    if n_cells <= run_cells * n_runs:
        return f"all {n_cells:,} cells are mixed with each other in every epoch"
    runs = f"each minibatch draws from {n_runs} runs of {run_cells:,} neighbouring cells"
    if shuffled:
        return f"shuffled as a whole when the collection was written; in an epoch {runs} of that order"
    return f"in the order of the source: {runs}"
