"""Find genes and batches of a model by their names."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from atlasvi.engine.model.covariates import find_categories, to_category
from atlasvi.engine.model.trained_run import TrainedRun
from atlasvi.engine.queries.cell_choice import name_some
from atlasvi.engine.queries.gene_names import GeneNames
from atlasvi.engine.queries.question_cells import QueryError
from atlasvi.loaders.tables.store_tables import suggest_names


def find_genes(run: TrainedRun, names: Sequence[str] | None, path: str) -> np.ndarray | slice:
    """int64 columns of the named genes, in their order (None: a slice of all genes).

    names  the model's own, or others that its var has (see `GeneNames`)
    path   of the data, for errors. Raises GeneError, with similar names, if a gene is not in the model.
    """
    if names is None:
        return slice(None)
    return GeneNames(run.genes, run.var).find(names, path)


def find_batches(run: TrainedRun, names: Any) -> list[int | None]:
    """Codes of one batch, or of several, by their names; None stands for each cell's own batch.

    Raises QueryError, with the model's batches, for an unknown batch.
    """
    several = isinstance(names, Iterable) and not isinstance(names, str)
    found = [None if name is None else find_batch(run, name) for name in (names if several else [names])]
    if not found:
        raise QueryError("The list of batches to decode as is empty: leave it out to use each cell's own batch.")
    return found


def find_batch(run: TrainedRun, name: Any) -> int:
    """Code of a batch by its name. Raises QueryError for an unknown batch."""
    known = run.setup.batch_categories or [0]
    place = find_categories(known, [to_category(name)])[0]
    if place is None:
        names = list(map(str, known))
        hint = suggest_names(str(name), names)
        raise QueryError(f"There is no batch {name!r}: the model's batches are {name_some(names, 20)}.{hint}")
    return place
