"""AnnData files of every age and layout give what anndata reads from them, or say what is wrong."""

import json
import os
import pickle
import shutil
import warnings
import zipfile
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr

from atlasvi.loaders.arrays import matrices
from atlasvi.loaders.arrays.matrices import dense_tile
from atlasvi.loaders.cells.memory_cells import list_layers
from atlasvi.loaders.errors import GeneError, SourceError
from atlasvi.loaders.sources.open_source import open_source
from tests.text_as_objects import text_as_objects

READERS = [
    "anndata/v0.5.0/adata.h5ad",
    "anndata/v0.7.0/adata.h5ad",
    "anndata/v0.7.0/adata.zarr.zip",
    "anndata/v0.7.8/adata.h5ad",
    "anndata/v0.7.8/adata.zarr.zip",
    "bpcells/mini_mat.anndata-v0.10.9.h5ad",
    "bpcells/mini_mat.anndata-v0.6.22.h5ad",
    "bpcells/mini_mat.anndata-v0.7.h5ad",
    "bpcells/mini_mat_int_64.anndata-v0.12.6.h5ad",
    "bpcells/mini_mat_uint_16.anndata-v0.10.9.h5ad",
]


def counts(n_cells: int = 20, n_genes: int = 9, dtype: str = "float32") -> sp.csr_matrix:
    matrix = sp.random(n_cells, n_genes, 0.4, format="csr", random_state=0)
    matrix.data = np.arange(1, matrix.nnz + 1)
    return matrix.astype(dtype)


def annotated(matrix, **more) -> ad.AnnData:
    cells, genes = (
        pd.Index([f"{name}{i}" for i in range(n)], dtype=object) for name, n in zip(("cell", "gene"), matrix.shape)
    )
    return ad.AnnData(matrix, pd.DataFrame(index=cells), pd.DataFrame(index=genes), **more)


def write_zarr(adata: ad.AnnData, path: Path, version: int) -> Path:
    with warnings.catch_warnings(), ad.settings.override(zarr_write_format=version):
        warnings.simplefilter("ignore")
        adata.write_zarr(path)
    return path


def read_as_anndata(path: Path, tmp_path: Path) -> ad.AnnData:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if path.suffix == ".h5ad":
            return ad.read_h5ad(path)
        zipfile.ZipFile(path).extractall(tmp_path / "unzipped")
        return ad.read_zarr(tmp_path / "unzipped")


def assert_same(expected, source, var: pd.DataFrame, obs: pd.DataFrame) -> None:
    dense = expected.toarray() if sp.issparse(expected) else np.asarray(expected)
    whole = source.read_counts(0, source.n_cells)
    np.testing.assert_array_equal(whole.toarray(), dense)
    assert whole.dtype == dense.dtype
    sevens = [source.read_counts(i, min(i + 7, source.n_cells)) for i in range(0, source.n_cells, 7)]
    assert (sp.vstack(sevens) != whole).nnz == 0
    var, obs = text_as_objects(var), text_as_objects(obs)
    pd.testing.assert_frame_equal(source.var, var, check_names=False)
    pd.testing.assert_frame_equal(source.read_obs(0, source.n_cells), obs, check_names=False)
    pd.testing.assert_frame_equal(source.read_obs(3, 5), obs.iloc[3:5], check_names=False)
    pd.testing.assert_series_equal(source.read_obs(0, 0).dtypes, obs.dtypes)


@pytest.mark.parametrize("name", READERS)
def test_files_of_every_age_read_as_anndata_reads_them(shared, tmp_path, name):
    path = shared / "data" / "readers" / name
    adata = read_as_anndata(path, tmp_path)
    with_raw = ["raw"] if adata.raw is not None else []
    for layer in [None, "X", *list_layers(adata), *with_raw]:
        expected = adata.raw.X if layer == "raw" else adata.layers.get(layer, adata.X)
        source = open_source(path, layer=layer, scratch=tmp_path)
        assert_same(expected, source, adata.raw.var if layer == "raw" else adata.var, adata.obs)
        assert source.layers == ["X", *sorted(list_layers(adata)), *with_raw]
        source.close()


def test_a_zarr_whose_uns_this_zarr_does_not_know_is_read_all_the_same(shared):
    # Written with types newer than the oldest zarr we allow: anndata.read_zarr itself may refuse the file.
    source = open_source(shared / "data" / "readers" / "scanpy" / "10x_pbmc68k_reduced.zarr.zip")
    h5ad = open_source(shared / "data" / "readers" / "anndata" / "v0.5.0" / "adata.h5ad")
    np.testing.assert_array_equal(source.read_counts(0, 700).toarray(), h5ad.read_counts(0, 700).toarray())
    pd.testing.assert_frame_equal(source.read_obs(0, 700), h5ad.read_obs(0, 700), check_names=False)
    pd.testing.assert_index_equal(source.var.index, h5ad.var.index, check_names=False)


@pytest.mark.parametrize("name", ["adata.h5ad", "adata.zarr.zip"])
def test_a_file_without_x_is_refused(shared, name):
    with pytest.raises(SourceError, match="it has no X and no layers, so no counts"):
        open_source(shared / "data" / "readers" / "anndata" / "v0.11.4" / name)


@pytest.mark.parametrize("version", [None, 2, 3])
@pytest.mark.parametrize("dtype", ["float32", "int64", "uint8", "bool", ">f4", ">i2", "float16"])
@pytest.mark.parametrize("layout", ["csr", "csc", "dense"])
def test_each_layout_and_number_type_gives_the_same_rows(tmp_path, version, dtype, layout):
    matrix = counts(12, 5).astype("float32")
    path = tmp_path / "a.h5ad"
    written = {"csr": matrix, "csc": matrix.tocsc(), "dense": matrix.toarray()}[layout]
    adata = annotated(written)
    adata.write_h5ad(path) if version is None else write_zarr(adata, path := tmp_path / "a.zarr", version)
    root = h5py.File(path, "r+") if version is None else zarr.open_group(path, mode="r+", use_consolidated=False)
    parent, key = (root, "X") if layout == "dense" else (root["X"], "data")
    stored, attrs = parent[key][:].astype(dtype), dict(parent[key].attrs)
    del parent[key]
    replaced = parent.create_dataset(key, data=stored) if version is None else parent.create_array(key, data=stored)
    replaced.attrs.update(attrs)
    if version is None:
        root.close()
    with open_closing(path, scratch=tmp_path) as source:
        rows = source.read_counts(2, 11)
        assert rows.has_canonical_format
        np.testing.assert_array_equal(rows.toarray(), matrix.toarray().astype(dtype).astype(rows.dtype)[2:11])
        assert rows.dtype == {"bool": "uint8", "float16": "float32"}.get(dtype, np.dtype(dtype).newbyteorder("="))


class open_closing:
    def __init__(self, path, **options):
        self.source = open_source(path, **options)

    def __enter__(self):
        return self.source

    def __exit__(self, *_):
        self.source.close()


def test_unsorted_indices_duplicates_and_stored_zeros_are_put_right(tmp_path):
    annotated(counts(2, 4)).write_h5ad(tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "r+") as file:
        x = file["X"]
        for key, values in {
            "data": np.array([3, 200, 100, 0, 7], "u1"),
            "indices": [3, 1, 1, 0, 2],
            "indptr": [0, 4, 5],
        }.items():
            del x[key]
            x[key] = values
    rows = open_source(tmp_path / "a.h5ad").read_counts(0, 2)
    assert rows.toarray().tolist() == [[0, 300, 0, 3], [0, 0, 7, 0]]
    assert rows.nnz == 3
    assert rows.has_canonical_format


def test_nan_in_a_dense_matrix_survives_as_a_stored_value(tmp_path):
    dense = np.array([[0, 1, np.nan], [2, 0, 0]], dtype="float32")
    annotated(dense).write_h5ad(tmp_path / "a.h5ad")
    rows = open_source(tmp_path / "a.h5ad").read_counts(0, 2)
    assert rows.nnz == 3
    assert np.isnan(rows[0, 2])


@pytest.mark.parametrize("chunks", [None, (3, 2), (4, 9), (20, 1)])
def test_dense_rows_are_the_same_in_tiles_of_any_size(tmp_path, monkeypatch, chunks):
    matrix = counts().toarray()
    annotated(matrix).write_h5ad(tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "r+") as file:
        attrs = dict(file["X"].attrs)
        del file["X"]
        file.create_dataset("X", data=matrix, chunks=chunks).attrs.update(attrs)
    source = open_source(tmp_path / "a.h5ad")
    for limit in (4, 50, 200, 2**20):
        monkeypatch.setattr(matrices, "DENSE_BYTES", limit)
        np.testing.assert_array_equal(source.read_counts(1, 19).toarray(), matrix[1:19])


def test_a_tile_of_a_dense_matrix_is_bounded_and_decodes_narrow_chunks_once():
    assert dense_tile(10, 20, None, 4) == (10, 20)
    rows, cols = dense_tile(1_000_000, 30_000, None, 4)
    assert cols == 30_000
    assert rows * cols * 4 <= matrices.DENSE_BYTES
    rows, cols = dense_tile(5_000, 30_000, (2_000, 78), 4)
    assert rows == 5_000
    assert cols % 78 == 0
    assert rows * cols * 4 <= matrices.DENSE_BYTES


@pytest.mark.parametrize("version", [None, 2, 3])
def test_columns_of_all_kinds_are_the_same_in_every_slice(tmp_path, version):
    adata = annotated(counts(6, 3))
    adata.obs["number"] = np.arange(6, dtype="int16")
    adata.obs["flag"] = [True, False] * 3
    adata.obs["text"] = list("abcdef")
    adata.obs["kind"] = pd.Categorical(["x", "y", None, "x", "z", "z"], categories=["z", "y", "x", "unused"])
    adata.obs["order"] = pd.Categorical([1, 2, 3, 1, 2, 3], ordered=True)
    adata.obs["maybe_number"] = pd.array([1, None, 3, 4, 5, 6], dtype="Int32")
    adata.obs["maybe_flag"] = pd.array([True, None, False, True, True, False], dtype="boolean")
    adata.obs["maybe_text"] = pd.array(["a", None, "c", "d", "e", "f"], dtype="string")
    adata.strings_to_categoricals = lambda *_: None  # keep text as text
    with ad.settings.override(allow_write_nullable_strings=True):
        path = tmp_path / "a.h5ad"
        adata.write_h5ad(path) if version is None else write_zarr(adata, path := tmp_path / "a.zarr", version)
    expected = text_as_objects(adata.obs.assign(maybe_text=np.array(["a", None, "c", "d", "e", "f"], dtype=object)))
    source = open_source(path)
    for start, stop in [(0, 6), (1, 3), (2, 2), (5, 6)]:
        pd.testing.assert_frame_equal(source.read_obs(start, stop), expected.iloc[start:stop])


@pytest.mark.parametrize("part", ["flag/mask", "flag/values", "number/mask"])
def test_text_in_place_of_truths_is_refused_and_not_taken_for_true(tmp_path: Path, part: str):
    adata = annotated(counts()[:3])
    adata.obs["number"] = pd.array([1, None, 3], dtype="Int32")
    adata.obs["flag"] = pd.array([True, None, False], dtype="boolean")
    adata.write_h5ad(path := tmp_path / "a.h5ad")
    with h5py.File(path, "a") as file:
        del file[f"obs/{part}"]
        file[f"obs/{part}"] = ["a", "b", "c"]
    column, what = part.split("/")
    with pytest.raises(SourceError, match=rf"obs/{column} is damaged: its {what} should be true or false"):
        open_source(path).read_obs(0, 3)


def test_raw_has_its_own_genes_unless_a_layer_is_called_raw(tmp_path):
    adata = annotated(counts())
    adata.raw = adata.copy()
    adata = adata[:, 3:].copy()
    adata.write_h5ad(tmp_path / "a.h5ad")
    raw = open_source(tmp_path / "a.h5ad", layer="raw")
    assert list(raw.var.index) == [f"gene{i}" for i in range(9)]
    assert (raw.read_counts(0, 20) != counts()).nnz == 0

    adata.layers["raw"] = adata.X * 2
    adata.write_h5ad(tmp_path / "b.h5ad")
    layer = open_source(tmp_path / "b.h5ad", layer="raw")
    assert layer.layers == ["X", "raw"]
    assert (layer.read_counts(0, 20) != counts()[:, 3:] * 2).nnz == 0


def test_a_layer_that_is_not_there_is_answered_with_those_that_are(tmp_path):
    annotated(counts(), layers={"counts": counts()}).write_h5ad(tmp_path / "a.h5ad")
    with pytest.raises(SourceError, match=r"a.h5ad: it has no layer 'count' \(this file has: X, counts\)"):
        open_source(tmp_path / "a.h5ad", layer="count")


def test_a_minified_file_says_that_it_has_no_counts(tmp_path):
    adata = annotated(sp.csr_matrix((5, 4), dtype="float32"))
    adata.uns["_scvi_adata_minify_type"] = "latent_posterior_parameters"
    adata.write_h5ad(tmp_path / "a.h5ad")
    with pytest.raises(SourceError, match=r"minified by scVI.*no counts"):
        open_source(tmp_path / "a.h5ad")


@pytest.mark.parametrize("shape", [(0, 4), (4, 0)])
def test_no_cells_or_no_genes_is_refused(tmp_path, shape):
    annotated(sp.csr_matrix(shape, dtype="float32")).write_h5ad(tmp_path / "a.h5ad")
    with pytest.raises(SourceError, match=f"it is empty: {shape[0]} cells x {shape[1]} genes"):
        open_source(tmp_path / "a.h5ad")


def test_a_matrix_that_does_not_fit_obs_and_var_is_refused(tmp_path):
    annotated(counts()).write_h5ad(tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "r+") as file:
        file["X"].attrs["shape"] = (20, 10)
    with pytest.raises(SourceError, match="X is 20 x 10 where obs has 20 rows and var 9"):
        open_source(tmp_path / "a.h5ad")


def test_arrays_of_a_matrix_that_do_not_fit_each_other_are_refused(tmp_path):
    annotated(counts()).write_h5ad(tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "r+") as file:
        values = file["X/data"][:-1]
        del file["X/data"]
        file["X/data"] = values
    with pytest.raises(SourceError, match="X is damaged"):
        open_source(tmp_path / "a.h5ad")


def test_an_index_outside_the_genes_is_refused_when_it_is_read(tmp_path):
    annotated(counts()).write_h5ad(tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "r+") as file:
        file["X/indices"][-1] = 9
    source = open_source(tmp_path / "a.h5ad")
    source.read_counts(0, 5)
    with pytest.raises(SourceError, match=r"a.h5ad: it is damaged.*gene index is outside 0 to 8"):
        source.read_counts(5, 20)


def test_a_cut_file_is_refused_wherever_it_was_cut(tmp_path):
    annotated(counts()).write_h5ad(tmp_path / "whole.h5ad")
    content = (tmp_path / "whole.h5ad").read_bytes()
    for i, fraction in enumerate([0.0, 1e-4, 0.01, 0.3, 0.6, 0.9, 0.999]):
        path = tmp_path / f"cut{i}.h5ad"
        path.write_bytes(content[: int(fraction * len(content))])
        with pytest.raises(SourceError, match=r"cut short|empty") as caught:
            open_source(path)
        assert str(caught.value).startswith(str(path))


def test_a_flipped_byte_in_real_data_is_refused_or_does_not_matter(shared, tmp_path):
    content = bytearray((shared / "data" / "onek1k.h5ad").read_bytes())
    reference = open_source(shared / "data" / "onek1k.h5ad")
    rows = reference.read_counts(0, 7811)
    rng = np.random.default_rng(0)
    refused = 0
    for i, place in enumerate(rng.integers(0, len(content), 12)):
        content[place] ^= 0x10
        path = tmp_path / f"{i}.h5ad"
        path.write_bytes(content)
        content[place] ^= 0x10
        try:
            source = open_source(path)
            source.read_obs(0, 7811)
            assert (source.read_counts(0, 7811) != rows).nnz == 0
        except (SourceError, GeneError):
            refused += 1
    assert refused > 6  # most of the file is compressed and checked; names are not


def test_a_missing_chunk_is_an_incomplete_copy_not_zeros(tmp_path):
    matrix = counts(200, 50)
    adata = annotated(matrix)
    path = write_zarr(adata, tmp_path / "a.zarr", 3)
    group = zarr.open_group(path, mode="r+", use_consolidated=False)
    for key in ("data", "indices"):
        values, attrs = group["X"][key][:], dict(group["X"][key].attrs)
        del group["X"][key]
        group["X"].create_array(key, data=values, chunks=(100,)).attrs.update(attrs)
    assert (open_source(path).read_counts(0, 200) != matrix).nnz == 0
    (path / "X" / "indices" / "c" / "7").unlink()
    with pytest.raises(SourceError, match="1 of 40 chunks of X/indices are missing"):
        open_source(path)


def test_a_chunk_cut_short_is_refused_when_it_is_read(tmp_path):
    path = write_zarr(annotated(counts(200, 50)), tmp_path / "a.zarr", 3)
    chunk = path / "X" / "data" / "c" / "0"
    chunk.write_bytes(chunk.read_bytes()[:20])
    source = open_source(path)
    with pytest.raises(SourceError, match=r"a.zarr: it is damaged or cut short"):
        source.read_counts(0, 10)


def test_a_zip_of_a_zarr_folder_is_read_too(tmp_path):
    write_zarr(annotated(counts()), tmp_path / "in" / "a.zarr", 2)
    shutil.make_archive(str(tmp_path / "a.zarr"), "zip", tmp_path / "in")
    source = open_source(tmp_path / "a.zarr.zip")
    assert (source.read_counts(0, 20) != counts()).nnz == 0
    source.close()


@pytest.mark.parametrize(
    ("array", "words"),
    [
        ("X/data", "pickle"),  # zarr's own refusal
        ("obs/kind/codes", "pickle"),
        ("var/maybe/mask", "pickle"),
        ("obs/kind/categories", "which can run any program when read"),  # ours: only new versions of numcodecs refuse
        ("obs/_index", "which can run any program when read"),
    ],
)
def test_pickled_arrays_are_refused_unread(tmp_path, array, words):
    adata = annotated(counts())
    adata.obs["kind"] = pd.Categorical(["a"] * 20)
    adata.var["maybe"] = pd.array([1] * 9, dtype="Int64")
    path = write_zarr(adata, tmp_path / "a.zarr", 2)
    metadata = path / array / ".zarray"
    described = json.loads(metadata.read_text()) | {"compressor": {"id": "pickle", "protocol": 5}}
    metadata.write_text(json.dumps(described))
    (path / array / "0").write_bytes(pickle.dumps(Mischief(tmp_path / "mischief")))
    with pytest.raises(SourceError, match=words):
        source = open_source(path)
        source.read_obs(0, 1)
        source.read_counts(0, 1)
    assert not (tmp_path / "mischief").exists()


class Mischief:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_a_column_of_an_encoding_of_the_future_names_itself(tmp_path):
    adata = annotated(counts())
    adata.obs["when"] = pd.Categorical(["a"] * 20)
    adata.write_h5ad(tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "r+") as file:
        file["obs/when"].attrs["encoding-type"] = "interval"
    with pytest.raises(SourceError, match=r"obs/when is stored as 'interval'.*update atlasvi"):
        open_source(tmp_path / "a.h5ad")
