"""Values of chosen cells from obs are those of the whole column, in whatever slices they are read."""

import json
import shutil
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atlasvi.engine.queries import obs_rows
from atlasvi.engine.queries.obs_rows import ObsRows, slice_cells
from atlasvi.loaders.cells.memory_cells import MemoryCells
from atlasvi.loaders.cells.open_cells import open_cells
from atlasvi.loaders.errors import ColumnError
from atlasvi.loaders.ingestion.ingest import ingest

N = 23


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ObsRows]:
    folder = tmp_path_factory.mktemp("obs")
    numbers = np.arange(N)
    obs = pd.DataFrame(
        {
            "kind": pd.Categorical([None if k % 5 == 0 else "ab"[k % 2] for k in numbers]),
            "text": [f"text {k}" for k in numbers],
            "whole": pd.array([None if k % 7 == 0 else 2**60 + k for k in numbers.tolist()], "Int64"),
            "number": numbers / 3,
            "source": [f"their {k}" for k in numbers],  # a name that stores have for themselves
        },
        index=[f"c{k}" for k in numbers],
    )
    adata = anndata.AnnData(np.ones((N, 2), np.float32), obs, pd.DataFrame(index=["g0", "g1"]))
    adata.write_h5ad(folder / "cells.h5ad")
    ingest(folder / "cells.h5ad", folder / "cells.store")
    data = {
        "memory": MemoryCells(adata),
        "file": open_cells(folder / "cells.h5ad"),
        "store": open_cells(folder / "cells.store"),
    }
    return {name: ObsRows(cells) for name, cells in data.items()}


def plain(values: pd.Series) -> list:
    return [None if pd.isna(value) else value for value in values.astype(object)]


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["memory", "file", "store"]),
    st.lists(st.integers(0, N - 1), max_size=12),
    st.sampled_from([4, 100]),
)
def test_chosen_values_are_those_of_the_whole_column(
    opened: dict[str, ObsRows], kind: str, cells: list[int], size: int
):
    chosen, rows = np.array(cells, np.int64), opened[kind]
    rows._kept.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(obs_rows, "SLICE_CELLS", size)
        for name in ("kind", "text", "whole", "number", "source"):
            whole = rows.read_column(name)
            found = rows.take_column(name, chosen)
            assert plain(found) == plain(whole.iloc[chosen])
            assert found.index.tolist() == list(range(len(cells)))
            assert found.dtype == whole.dtype or name == "text"
        assert rows.read_names(chosen).tolist() == rows.read_names()[chosen].tolist()


def test_a_column_that_is_not_there_is_said_with_those_that_are(opened: dict[str, ObsRows]):
    for rows in opened.values():
        for read in (rows.read_column, lambda name, rows=rows: rows.take_column(name, np.array([1]))):
            with pytest.raises(ColumnError, match="obs has no column 'none'"):
                read("none")


def test_an_older_store_says_that_a_column_may_have_lost_values(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    obs = pd.DataFrame({"count": np.arange(1, N + 1)}, index=[f"c{k}" for k in range(N)])
    anndata.AnnData(np.ones((N, 2), np.float32), obs).write_h5ad(tmp_path / "cells.h5ad")
    ingest(tmp_path / "cells.h5ad", tmp_path / "old.store")
    (tmp_path / "old.store" / "manifest.json").unlink()
    metadata = tmp_path / "old.store" / "zarr.json"
    content = json.loads(metadata.read_text())
    del content["attributes"]["atlasvi"]["manifest"]
    metadata.write_text(json.dumps(content))
    shutil.rmtree(tmp_path / "old.store" / "obs" / "count" / "c")
    cells = open_cells(tmp_path / "old.store")
    rows = ObsRows(cells)
    for _ in range(2):
        assert plain(rows.take_column("count", np.array([3, 1]))) == [0, 0]
    assert [record.getMessage().count("or were lost in a copy") for record in caplog.records] == [1]


@pytest.mark.parametrize("cells", [None, [], [0, 3, 4, 9, 22], [8, 9]])
def test_slices_hold_the_chosen_cells_in_their_order(cells: list[int] | None):
    chosen = None if cells is None else np.array(cells, np.int64)
    found = list(slice_cells(chosen, N, 4))
    expected = np.arange(N) if chosen is None else chosen
    assert np.array_equal(np.concatenate([np.empty(0, np.int64), *(here for _, here in found)]), expected)
    assert all(start % 4 == 0 and ((here >= start) & (here < start + 4)).all() and len(here) for start, here in found)
