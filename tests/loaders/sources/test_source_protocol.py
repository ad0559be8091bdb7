"""Every format answers the whole of `Source`, also where it is opened again and again, or is made of several files."""

from pathlib import Path

import anndata
import numpy as np
import pytest
from scipy import sparse

from atlasvi.loaders.sources import reopened_sources as reopened
from atlasvi.loaders.sources.data_spec import DataSpec, parse_source
from atlasvi.loaders.sources.open_source import open_source
from atlasvi.loaders.sources.reopened_sources import open_many
from atlasvi.loaders.sources.source_protocol import Source
from tests.loaders.cells.test_open_cells import write_collection
from tests.loaders.conftest import make_counts
from tests.loaders.sources.test_mtx_folder import CELLS, GENES, lines, matrix_text, write

COUNTS = make_counts(40, 6)


def write_kind(kind: str, folder: Path) -> str:
    """A source of the kind; returns how it is named."""
    adata = anndata.AnnData(COUNTS * 0.5, layers={"counts": COUNTS})
    adata.var_names = [f"g{k}" for k in range(6)]
    if kind == "mtx":
        write(folder / "m", matrix__mtx=matrix_text(), genes__tsv=lines(GENES), barcodes__tsv=lines(CELLS))
        return str(folder / "m")
    if kind == "csc":
        adata.layers["counts"] = sparse.csc_matrix(COUNTS)
    if kind == "dense":
        adata.layers["counts"] = COUNTS.toarray()
    if kind == "collection":
        parts = {"dataset_0": adata[:10].copy(), "dataset_1": adata[10:].copy()}
        return f"{write_collection(folder / 'c.zarr', parts)}::layer=counts"
    adata.write_h5ad(folder / "a.h5ad")
    return f"{folder / 'a.h5ad'}::layer=counts"


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("kind", ["csr", "csc", "dense", "mtx", "collection"])
def test_every_format_answers_all_of_the_protocol(tmp_path: Path, monkeypatch, kind: str, many: bool):
    named = write_kind(kind, tmp_path)
    monkeypatch.setattr(reopened, "MOST_OPEN", 1)
    spec = parse_source(named)
    source = open_many([spec] * 2)[0] if many else open_source(named)
    assert isinstance(source, Source)
    assert (source.spec, source.path) == (spec, spec.path)
    assert source.anndata_layer == spec.layer == (None if kind == "mtx" else "counts")
    assert source.spooled == (kind in ("csc", "mtx"))
    assert source.shuffled == (kind == "collection")
    assert source.read_obs(0, 0).columns.equals(source.read_obs(0, 2).columns)
    assert source.count_run_cells() >= 1
    counts, narrow = source.read_counts(0, source.n_cells), source.read_narrow(0, source.n_cells)
    if narrow is not None:
        assert np.array_equal(narrow.to_csr()[2], counts.data)
    if kind != "mtx":
        assert (counts != COUNTS).nnz == 0
    source.close()


def test_a_source_that_is_not_there_leaves_none_open(tmp_path: Path):
    named = write_kind("csr", tmp_path)
    with pytest.raises(ValueError, match="no such file"):
        open_many([parse_source(named), DataSpec(str(tmp_path / "gone.h5ad"))])
