from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from atlasvi.engine.training.splits import split_by_column, split_by_hash
from atlasvi.loaders.errors import ColumnError
from atlasvi.loaders.identity import cell_keys, mix64
from atlasvi.loaders.tables.store_tables import check_column


def cells_with(column: list | None = None, n_cells: int = 10_000) -> Any:
    """Stands for data: its keys and one obs column."""
    n_cells = n_cells if column is None else len(column)
    obs = {} if column is None else {"split": pd.Series(column)}

    def read_column(name: str, start: int = 0, stop: int | None = None) -> pd.Series:
        check_column(name, list(obs), "atlas.h5ad")
        return obs[name].iloc[start:stop].reset_index(drop=True)

    keys = cell_keys(0, np.arange(n_cells))
    return SimpleNamespace(
        path="atlas.h5ad", n_cells=n_cells, read_column=read_column, split_keys=lambda start, stop: keys[start:stop]
    )


def test_the_hash_holds_out_about_the_share_asked_for_and_covers_all_cells():
    split = split_by_hash(cells_with(), 0.1, seed=0)
    assert 900 < split.validation.count() < 1100
    assert np.array_equal(split.train.read(0, 10_000), ~split.validation.read(0, 10_000))
    assert split.test.count() == 0


def test_the_hash_goes_by_identity_not_by_place():
    whole = split_by_hash(cells_with(n_cells=300_000), 0.2, seed=3)  # more than a slice of keys
    head = split_by_hash(cells_with(n_cells=1000), 0.2, seed=3)
    assert np.array_equal(whole.train.read(0, 1000), head.train.read(0, 1000))
    held_out = mix64(cell_keys(0, np.arange(300_000)), 3) < np.uint64(0.2 * 2**64)
    assert np.array_equal(whole.validation.read(0, 300_000), held_out)


def test_another_seed_holds_out_other_cells():
    first, second = (split_by_hash(cells_with(), 0.1, seed).validation.read(0, 10_000) for seed in (0, 1))
    assert 0.005 < (first & second).mean() < 0.015


def test_a_few_cells_still_leave_one_to_validate_on():
    for n_cells in (2, 3, 5):
        split = split_by_hash(cells_with(n_cells=n_cells), 0.01, seed=0)
        assert split.validation.count() == 1
        hashes = mix64(cell_keys(0, np.arange(n_cells)), 0)
        assert split.validation.read(0, n_cells)[hashes.argmin()]


def test_nothing_is_held_out_where_nothing_is_asked():
    assert split_by_hash(cells_with(), 0.0, seed=0).train.count() == 10_000


def test_one_cell_is_too_few_to_hold_some_out():
    with pytest.raises(ColumnError, match="too few to hold some out"):
        split_by_hash(cells_with(n_cells=1), 0.5, seed=0)


@pytest.mark.parametrize("categorical", [True, False])
def test_the_column_says_which_is_which_in_any_case_of_letters(categorical: bool):
    data = cells_with(["train", "Validation", "test", "TRAIN", "val", "valid", "holdout", "training"])
    if categorical:
        column = data.read_column("split").astype("category")
        data.read_column = lambda name, start, stop: column.iloc[start:stop]
    split = split_by_column(data, "split")
    assert split.train.read(0, 8).tolist() == [True, False, False, True, False, False, False, True]
    assert split.validation.read(0, 8).tolist() == [False, True, False, False, True, True, True, False]
    assert split.test.read(0, 8).tolist() == [False, False, True, False, False, False, False, False]


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (["train", "validation", "maybe"], "holds 'maybe'.*train, validation .*or test"),
        (["train", "validation", 1], "holds '1'"),
        (["train", "validation", None], r"missing values \(first: cell 2\)"),
        (["train", "test"], "has no cell with 'validation'"),
        (["validation", "test"], "has no cell with 'train'"),
    ],
)
def test_a_column_that_is_no_split_is_explained(column: list, message: str):
    with pytest.raises(ColumnError, match=f"atlas.h5ad.*'split'.*{message}"):
        split_by_column(cells_with(column), "split")


def test_a_column_that_is_not_there_names_those_that_are():
    with pytest.raises(ColumnError, match=r"no column 'fold' \(it has: split\)"):
        split_by_column(cells_with(["train", "validation"]), "fold")


def test_a_store_and_its_source_are_split_alike(tmp_path: Path):
    import anndata

    from atlasvi.loaders.cells.open_cells import open_cells
    from atlasvi.loaders.ingestion.ingest import ingest

    path = tmp_path / "cells.h5ad"
    anndata.AnnData(np.ones((400, 5), np.float32)).write_h5ad(path)
    ingest(path, tmp_path / "cells.store")
    held_out = []
    for place in (path, tmp_path / "cells.store"):
        data = open_cells(place)
        rows = data.read_column("source_row").to_numpy()
        held_out.append(sorted(rows[split_by_hash(data, 0.2, seed=1).validation.read(0, 400)]))
    assert held_out[0] == held_out[1]


def test_no_validation_cell_is_ever_trained_on_and_they_are_not_the_first(tmp_path: Path):
    import anndata

    from atlasvi.loaders.batches.loader import BatchLoader
    from atlasvi.loaders.ingestion.ingest import ingest

    anndata.AnnData(np.ones((400, 5), np.float32)).write_h5ad(tmp_path / "cells.h5ad")
    ingest(tmp_path / "cells.h5ad", tmp_path / "cells.store")
    for place in (tmp_path / "cells.h5ad", tmp_path / "cells.store"):
        loader = BatchLoader(place, 32, seed=0)
        split = split_by_hash(loader.data, 0.2, seed=1)
        train, validation = (BatchLoader(place, 32, seed=0, cells=part) for part in (split.train, split.validation))
        seen = [{row for batch in part for row in batch.rows.tolist()} for part in (train, train, validation)]
        assert seen[0] == seen[1]
        assert not seen[0] & seen[2]
        assert len(seen[0] | seen[2]) == 400
        assert max(seen[2]) > len(seen[2])
