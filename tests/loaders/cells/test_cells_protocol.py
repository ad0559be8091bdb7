"""Whatever is opened to be trained on answers the whole of `Cells`, and a view says what the cells behind it say."""

from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import pytest

from atlasvi.loaders.cells.cells_protocol import Cells
from atlasvi.loaders.cells.memory_cells import MemoryCells
from atlasvi.loaders.cells.open_cells import add_column, open_cells, select_genes
from atlasvi.loaders.errors import ColumnError, CountsError
from atlasvi.loaders.ingestion.ingest import ingest
from atlasvi.loaders.sources.data_spec import DataSpec
from tests.loaders.cells.test_open_cells import write_collection
from tests.loaders.conftest import make_counts

COUNTS = make_counts(300, 12)
KINDS = ["store", "source", "layer", "collection", "memory", "genes", "column", "genes of a column"]
WANTED = ["g7", "g2", "g11"]


@pytest.fixture
def open_kind(write_h5ad, tmp_path: Path) -> Callable[[str], Cells]:
    """Opens the same 300 cells in one of the ways that there are."""
    path = write_h5ad("a", COUNTS)
    adata = anndata.read_h5ad(path)
    layered = anndata.AnnData(COUNTS * 0.5, adata.obs, adata.var, layers={"counts": COUNTS})

    def open_one(kind: str) -> Cells:
        if kind == "store":
            ingest(path, tmp_path / "store")
            return open_cells(tmp_path / "store")
        if kind == "collection":
            write_collection(
                tmp_path / "c.zarr", {"dataset_0": layered[:100].copy(), "dataset_1": layered[100:].copy()}
            )
            return open_cells(tmp_path / "c.zarr", layer="counts")
        if kind == "layer":
            layered.write_h5ad(tmp_path / "layered.h5ad")
            return open_cells(tmp_path / "layered.h5ad", layer="counts", empty_cells="keep")
        source = open_cells(path)
        views = {
            "source": lambda: source,
            "memory": lambda: MemoryCells(layered, "counts"),
            "genes": lambda: select_genes(source, WANTED),
            "column": lambda: add_column(source, "part", np.arange(300) % 3),
            "genes of a column": lambda: select_genes(add_column(source, "part", np.arange(300) % 3), WANTED),
        }
        return views[kind]()

    return open_one


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_cells_answers_all_of_the_protocol(open_kind, kind: str):
    cells = open_kind(kind)
    assert isinstance(cells, Cells)
    edges = cells.block_starts
    assert (edges[0], edges[-1], cells.n_cells) == (0, 300, 300)
    assert cells.group_blocks >= 1
    assert cells.mixing
    assert isinstance(cells.spec, DataSpec)
    assert str(cells.spec).startswith(cells.path)
    assert len(cells.var) == len(cells.genes)
    lengths = [cells.read_block(block).lengths for block in range(len(edges) - 1)]
    assert list(map(len, lengths)) == np.diff(edges).tolist()
    obs = cells.read_obs(40, 300)
    assert cells.read_names(40).tolist() == obs.index.tolist()
    assert cells.read_names().tolist() == cells.read_names(0, 40).tolist() + obs.index.tolist()
    assert set(cells.obs_columns) <= {*obs.columns, *cells.obs_columns}
    for name in cells.obs_columns:
        column = cells.read_column(name)
        assert column.index.equals(cells.read_column(name).reset_index(drop=True).index)
        assert column.tolist()[40:] == obs[name].tolist()
        part = cells.read_column(name, 50, 60)
        assert part.to_dict() == dict(enumerate(column.tolist()[50:60]))
        assert cells.read_column(name, 7, 7).empty
    sources = obs["source"].cat.codes.to_numpy()
    assert (obs["source_row"].to_numpy() < np.array(cells.source_sizes)[sources]).all()
    assert len(np.unique(cells.split_keys(0, 300))) == 300
    with pytest.raises(ColumnError, match="nonsense"):
        cells.read_column("nonsense")
    cells.close()


@pytest.mark.parametrize(
    ("kind", "layer"),
    [("store", None), ("source", None), ("layer", "counts"), ("collection", "counts"), ("memory", "counts")],
)
def test_the_layer_and_the_options_go_with_every_view(open_kind, kind: str, layer: str | None):
    cells = open_kind(kind)
    seen = select_genes(add_column(cells, "part", np.arange(300)), WANTED)
    for view in (cells, seen):
        assert view.layer == view.spec.layer == layer
        assert view.spec == cells.spec
        assert (view.spec.empty_cells == "keep") == (kind == "layer")
    assert seen.spec == cells.spec


def test_an_added_column_is_there_whoever_asks_and_the_others_stay(open_kind):
    cells = open_kind("column")
    assert cells.obs_columns[-1] == "part"
    assert cells.read_obs(10, 13)["part"].tolist() == [1, 2, 0]
    assert cells.read_column("batch").tolist()[:3] == ["b0", "b1", "b2"]


def test_fractions_are_allowed_through_a_view(write_h5ad):
    path = write_h5ad("a", COUNTS * 0.5)
    seen = select_genes(add_column(open_cells(path), "part", np.arange(300)), WANTED)
    with pytest.raises(CountsError, match="not whole"):
        seen.read_block(0)
    allowed = seen.allow_fractions()
    assert allowed.spec.values == "numbers"
    assert allowed.read_column("part").tolist() == list(range(300))
    assert allowed.genes.tolist() == WANTED
    assert allowed.read_block(0).counts.dtype.kind == "f"
