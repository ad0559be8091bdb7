"""Chunks that zarr left out because they hold only zeros are read as zeros; those that were lost are refused."""

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr

from atlasvi.loaders.arrays.missing_chunks import ends_in_long_zeros, find_missing_chunks
from atlasvi.loaders.errors import SourceError
from atlasvi.loaders.sources.open_source import open_source
from atlasvi.loaders.sources.source_protocol import Source
from tests.loaders.sources.test_anndata_files import counts, write_zarr

N, GENES, CHUNK = 1000, 12, 100


def write(adata: ad.AnnData, path: Path, version: int = 3, **chunks: int | tuple[int, ...]) -> Path:
    """An AnnData as Zarr, the arrays whose names are given (`/` written as `__`) in chunks of another size."""
    write_zarr(adata, path, version)
    root = zarr.open_group(path, mode="r+", use_consolidated=False)
    for name, size in chunks.items():
        folder, _, last = name.replace("__", "/").rpartition("/")
        group = root[folder] if folder else root
        values, attributes = group[last][:], dict(group[last].attrs)
        del group[last]
        shape = (size,) if isinstance(size, int) else size
        group.create_array(last, data=values, chunks=shape).attrs.update(attributes)
    return path


def make(batch_sizes: tuple[int, ...] = (250, 330, 420), **columns: object) -> ad.AnnData:
    """Cells in the order of their batches, as anndata.concat leaves them."""
    batch = np.repeat([f"b{k}" for k in range(len(batch_sizes))], batch_sizes)
    obs = pd.DataFrame({"batch": pd.Categorical(batch), **columns}, index=[f"c{k}" for k in range(N)])
    return ad.AnnData(counts(N, GENES), obs, pd.DataFrame(index=[f"g{k}" for k in range(GENES)]))


def assert_missed(path: Path, name: str, layer: str | None = None) -> int:
    """Of the chunks that are stored, the first, the last and one between are missed when gone; returns how many are."""
    places = sorted((file for file in (path / name).rglob("*") if file.name.isdigit()), key=lambda file: int(file.name))
    for place in (places[0], places[len(places) // 2], places[-1]):
        content = place.read_bytes()
        place.unlink()
        with pytest.raises(SourceError, match=f"chunks of {name} are missing: the copy is incomplete"):
            open_source(path, layer=layer)
        place.write_bytes(content)
    return len(places)


def read_obs(source: Source) -> pd.DataFrame:
    return source.read_obs(0, source.n_cells)


@pytest.mark.parametrize("version", [2, 3])
def test_the_first_of_sorted_batches_may_fill_chunks_that_no_one_wrote(tmp_path, version):
    adata = make()
    path = write(adata, tmp_path / "a.zarr", version, obs__batch__codes=CHUNK)
    source = open_source(path)
    assert read_obs(source)["batch"].tolist() == adata.obs["batch"].tolist()
    assert any("missing chunks of obs/batch/codes are read as zeros" in note for note in source.notes)
    assert assert_missed(path, "obs/batch/codes") == 8  # of 10


@pytest.mark.parametrize("order", [("b", "a", "c"), ("b", "c", "a"), ("c", "a", "b")])
def test_a_chunk_at_either_end_is_lost_if_a_category_would_have_no_cell_without_it(tmp_path, order):
    adata = make()
    adata.obs["batch"] = pd.Categorical(np.repeat(order, (250, 705, 45)))
    path = write(adata, tmp_path / "a.zarr", obs__batch__codes=CHUNK)
    assert read_obs(open_source(path))["batch"].tolist() == adata.obs["batch"].tolist()
    if order[2] != "a":  # else the last chunks are those of a, and nothing that was stored comes after them
        assert_missed(path, "obs/batch/codes")


def test_numbers_masks_and_text_that_one_part_of_the_cells_has_are_read(tmp_path):
    late = np.arange(N) >= 450
    columns = {
        "flag": late & (np.arange(N) % 7 > 0),
        "score": np.where(late, np.linspace(1, 2, N), 0),
        "maybe": pd.array(np.where(late, np.arange(N), 0), dtype="Int64"),
    }
    adata = make(**columns)
    chunks = {f"obs__{name}": CHUNK for name in ("flag", "score", "maybe__values")}
    path = write(adata, tmp_path / "a.zarr", **chunks)
    obs = read_obs(open_source(path))
    for name in columns:
        assert find_missing_chunks(zarr.open_array(path / "obs" / name / ("values" if name == "maybe" else "")))[1]
        assert obs[name].tolist() == adata.obs[name].tolist()
        assert assert_missed(path, f"obs/{name}" + "/values" * (name == "maybe")) == 6


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("only", ["", 0, 0.0, False])
def test_the_only_category_of_a_column_may_be_empty_text_or_zero(tmp_path, version, only):
    adata = make(one=pd.Categorical([only] * N))
    path = write(adata, tmp_path / "a.zarr", version)
    assert find_missing_chunks(zarr.open_array(path / "obs/one/categories", mode="r")) == (1, [0])
    assert read_obs(open_source(path))["one"].tolist() == [only] * N


def test_text_that_no_cell_has_is_missing_in_all_of_them(tmp_path):
    adata = make(cdr3=pd.array([None] * N, dtype="string"))
    path = tmp_path / "a.zarr"
    with ad.settings.override(allow_write_nullable_strings=True, zarr_write_format=3):
        adata.write_zarr(path, convert_strings_to_categoricals=False)
    assert find_missing_chunks(zarr.open_array(path / "obs/cdr3/values", mode="r"))[1]
    assert read_obs(open_source(path))["cdr3"].isna().all()
    assert assert_missed(path, "obs/cdr3/mask") == 1
    assert_missed(path, "obs/batch/categories")


def test_the_first_cells_may_be_empty_so_that_their_pointers_are_zeros(tmp_path):
    adata = make()
    matrix = adata.X.toarray()
    matrix[:230] = 0
    adata.X = sp.csr_matrix(matrix)
    path = write(adata, tmp_path / "a.zarr", X__indptr=CHUNK)
    assert find_missing_chunks(zarr.open_array(path / "X/indptr", mode="r")) == (11, [0, 1])
    source = open_source(path)
    assert (source.read_counts(0, N).toarray() == matrix).all()
    assert not source.notes
    assert assert_missed(path, "X/indptr") == 9


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("zeros", [slice(0, 450), slice(450, 740), slice(740, None)])
def test_a_layer_that_shares_the_structure_of_x_is_read_where_its_entries_are_zeros(tmp_path, version, zeros):
    adata = make()
    layer = adata.X.copy()
    layer.data[zeros] = 0
    adata.layers["unspliced"] = layer
    path = write(adata, tmp_path / "a.zarr", version, layers__unspliced__data=CHUNK, X__data=CHUNK)
    source = open_source(path, layer="unspliced")
    assert (source.read_counts(0, N).toarray() == layer.toarray()).all()
    assert any("layers/unspliced/data are read as zeros" in note for note in source.notes)
    assert_missed(path, "layers/unspliced/data", "unspliced")
    next((path / "X/data").rglob("3")).unlink()
    with pytest.raises(SourceError, match=r"1 of .* chunks of X/data are missing"):
        open_source(path)


def test_genes_of_a_dense_matrix_that_next_to_no_cell_has_need_no_chunk(tmp_path):
    rng = np.random.default_rng(0)
    dense = rng.poisson(1.0, (N, GENES)).astype(np.float32)
    dense[:, 4:8] = 0  # in no cell
    dense[:, 8:] = 0  # in a few of one block of cells
    dense[320:323, 9] = 1
    adata = make()
    adata.X = dense
    path = write(adata, tmp_path / "a.zarr", X=(CHUNK, 4))
    source = open_source(path)
    assert (source.read_counts(0, N).toarray() == dense).all()
    assert any("missing chunks of X are read as zeros" in note for note in source.notes)
    for row in range(10):
        place = path / "X" / "c" / str(row) / "0"
        content = place.read_bytes()
        place.unlink()
        with pytest.raises(SourceError, match="chunks of X are missing"):
            open_source(path)
        place.write_bytes(content)


def test_who_stores_one_chunk_of_zeros_leaves_none_out(tmp_path):
    path = write(make(score=np.zeros(N)), tmp_path / "a.zarr")
    group = zarr.open_group(path, mode="r+", use_consolidated=False)["obs"]
    attributes = dict(group["score"].attrs)
    del group["score"]
    array = group.create_array("score", shape=(N,), dtype="f8", chunks=(CHUNK,), config={"write_empty_chunks": True})
    array.attrs.update(attributes)
    array[:] = np.zeros(N)
    assert not read_obs(open_source(path))["score"].any()
    assert assert_missed(path, "obs/score") == 10


@pytest.mark.parametrize(
    ("share", "expected"), [(0.3, False), (0.9, False), (0.99, False), (0.0, True)], ids=["30%", "90%", "99%", "none"]
)
def test_zeros_here_and_there_say_nothing_of_the_next_chunk(share, expected):
    rng = np.random.default_rng(0)
    at_end = np.ones(0 if share else 40, bool)
    assert {ends_in_long_zeros(np.append(rng.random(5000) < share, at_end)) for _ in range(50)} == {expected}
