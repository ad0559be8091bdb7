"""How many neighbouring cells of a source are read at a time, and how many such runs are mixed when shuffling.

The shorter the runs the better cells are mixed; the longer, the less is decoded in vain at their edges.
"""

import math

GROUP_CELLS = 2**14  # mixed at a time; two groups in narrow types take about 150 MB
FEWEST_RUNS = 16  # mixed at a time, of a source in its own order
FEWEST_CELLS = 128  # a read of fewer is mostly overhead
MOST_CELLS = {False: 2**10, True: 2**12}  # of a source in its own order; of a shuffled one, where runs do not matter
PIECES = {False: 4, True: 16}  # pieces of a file in a run: one more is decoded for the cells across its edges


def choose_run(piece_cells: float, shuffled: bool) -> int:
    """Cells of a run, a power of two, where so many cells are decoded together and runs begin anywhere in them."""
    wanted = max(PIECES[shuffled] * piece_cells, FEWEST_CELLS)
    return min(2 ** math.ceil(math.log2(wanted)), MOST_CELLS[shuffled])


def count_mixed_runs(run_cells: int, shuffled: bool) -> int:
    """Runs that are mixed at a time."""
    return max(GROUP_CELLS // run_cells, 1 if shuffled else FEWEST_RUNS)


def describe_mixing(n_cells: int, run_cells: int, n_runs: int, shuffled: bool) -> str:
    """A sentence on how the cells of a source are mixed when so many runs are."""
    if n_cells <= run_cells * n_runs:
        return f"all {n_cells:,} cells are mixed with each other in every epoch"
    runs = f"each minibatch draws from {n_runs} runs of {run_cells:,} neighbouring cells"
    if shuffled:
        return f"shuffled as a whole when the collection was written; in an epoch {runs} of that order"
    return f"in the order of the source: {runs}"
