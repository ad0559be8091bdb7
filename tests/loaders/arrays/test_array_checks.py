"""Arrays that can't be read safely and whole are refused before they are read; what may rightly be missing is read."""

import json
import pickle
import shutil
import types
from pathlib import Path

import anndata as ad
import h5py
import numcodecs.pickles
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr

from atlasvi.loaders.arrays import array_checks as stored_checks
from atlasvi.loaders.arrays.missing_chunks import find_missing_chunks
from atlasvi.loaders.cells.cell_store import CellStore
from atlasvi.loaders.errors import SourceError
from atlasvi.loaders.ingestion.ingest import ingest
from atlasvi.loaders.sources.open_source import open_source
from atlasvi.loaders.tables.store_tables import AppendedArray
from tests.loaders.sources.test_anndata_files import Mischief, counts, write_zarr
from tests.text_as_objects import text_as_objects

N = 40


def annotated() -> ad.AnnData:
    obs = pd.DataFrame(
        {
            "batch": pd.Categorical([f"b{k % 2}" for k in range(N)]),
            "one": pd.Categorical(["same"] * N),
            "doublet": np.zeros(N, bool),
            "zero": np.zeros(N),
            "total": np.arange(1, N + 1),
            "note": [f"note {k}" for k in range(N)],
            "maybe": pd.array([1 + k for k in range(N)], dtype="Int64"),
        },
        index=[f"c{k}" for k in range(N)],
    )
    var = pd.DataFrame({"length": np.arange(1, 10)}, index=[f"g{k}" for k in range(9)])
    return ad.AnnData(
        counts(N, 9), text_as_objects(obs), text_as_objects(var)
    )  # text is one array then, without a mask


def read_all(path: Path | str) -> tuple[np.ndarray, pd.DataFrame, pd.DataFrame]:
    source = open_source(path)
    try:
        return source.read_counts(0, source.n_cells).toarray(), source.read_obs(0, source.n_cells), source.var
    finally:
        source.close()


@pytest.mark.parametrize("version", [2, 3])
def test_columns_of_which_zarr_writes_no_chunk_are_read_as_they_were_written(tmp_path, version):
    adata = annotated()
    path = write_zarr(adata, tmp_path / "a.zarr", version)
    assert not any((path / "obs" / "zero").rglob("*0"))  # what this test is about
    matrix, obs, _ = read_all(path)
    assert (matrix == adata.X.toarray()).all()
    assert obs["one"].tolist() == ["same"] * N
    assert not obs["doublet"].any()
    assert not obs["zero"].any()
    assert not obs["maybe"].isna().any()
    source = open_source(path)
    assert any("obs/doublet, obs/zero are read as zeros" in note for note in source.notes)


ARRAYS = ["X/data", "X/indices", "X/indptr", "obs/_index", "obs/batch/codes", "obs/batch/categories", "obs/note"]
ARRAYS += ["var/_index", "obs/one/categories", "obs/total", "obs/maybe/values", "var/length"]


@pytest.mark.parametrize("array", ARRAYS)
def test_no_deleted_chunk_is_read_as_zeros(tmp_path, array):
    path = write_zarr(annotated(), tmp_path / "a.zarr", 3)
    (path / array / "c" / "0").unlink()
    with pytest.raises(SourceError, match=f"1 of 1 chunks of {array} are missing: the copy is incomplete"):
        open_source(path)


@pytest.mark.parametrize("array", ["X/data", "X/indices", "X/indptr", "obs/batch/codes", "obs/batch/categories"])
def test_nor_is_one_of_zarr_v2_where_zeros_make_no_sense(tmp_path, array):
    path = write_zarr(annotated(), tmp_path / "a.zarr", 2)
    (path / array / "0").unlink()
    with pytest.raises(SourceError, match=f"1 of 1 chunks of {array} are missing"):
        open_source(path)


def test_a_column_whose_chunks_beside_the_missing_ones_end_in_no_zeros_is_refused_unless_asked_for(tmp_path):
    path = write_zarr(annotated(), tmp_path / "a.zarr", 3)
    group = zarr.open_group(path, mode="r+", use_consolidated=False)["obs/batch"]
    attributes = dict(group["codes"].attrs)
    del group["codes"]
    codes = np.repeat([1, 0, 1, 1], N // 4).astype("int8")  # zarr does not write the second chunk
    group.create_array("codes", data=codes, chunks=(N // 4,)).attrs.update(attributes)
    with pytest.raises(SourceError, match=r"1 of 4 chunks of obs/batch/codes .*::missing_chunks=zeros"):
        open_source(path)
    _, obs, _ = read_all(f"{path}::missing_chunks=zeros")
    assert obs["batch"].cat.codes.tolist() == codes.tolist()


def test_what_we_write_has_all_its_chunks_those_of_zeros_too(tmp_path):
    root = zarr.open_group(tmp_path / "a", mode="w")
    AppendedArray(root, "flag", 6, np.dtype("int8"), chunk_rows=2).append(np.array([0, 0, 0, 1, 0, 0], "int8"))
    assert find_missing_chunks(root["flag"]) == (3, [])


def test_a_missing_chunk_of_a_dense_matrix_is_refused(tmp_path):
    adata = annotated()
    adata.X = adata.X.toarray()
    path = write_zarr(adata, tmp_path / "a.zarr", 3)
    (path / "X" / "c" / "0" / "0").unlink()
    with pytest.raises(SourceError, match="1 of 1 chunks of X are missing"):
        open_source(path)


def test_a_last_cell_with_the_first_gene_alone_needs_no_chunk_of_indices(tmp_path):
    matrix = sp.csr_matrix(np.array([[0, 1, 2, 0], [0, 0, 3, 4], [5, 0, 0, 0]], np.float32))
    path = write_zarr(ad.AnnData(matrix), tmp_path / "a.zarr", 3)
    group = zarr.open_group(path, mode="r+", use_consolidated=False)["X"]
    attributes = dict(group["indices"].attrs)
    del group["indices"]
    group.create_array("indices", data=matrix.indices, chunks=(4,)).attrs.update(attributes)
    assert not (path / "X" / "indices" / "c" / "1").exists()
    assert (read_all(path)[0] == matrix.toarray()).all()


def replace_dataset(path: Path, name: str, **create) -> None:
    with h5py.File(path, "r+") as file:
        attributes, old = dict(file[name].attrs), file[name]
        create = {"shape": old.shape, "dtype": old.dtype} | create
        del file[name]
        file.create_dataset(name, **create).attrs.update(attributes)


@pytest.mark.parametrize("chunks", [None, (10,)])
@pytest.mark.parametrize("name", ["X/data", "obs/total", "obs/batch/codes"])
def test_what_was_never_written_to_hdf5_is_not_read_as_zeros(tmp_path, name, chunks):
    path = tmp_path / "a.h5ad"
    annotated().write_h5ad(path)
    replace_dataset(path, name, chunks=chunks)
    with pytest.raises(SourceError, match=rf"(\d+) of \1 chunks of {name} are missing: writing the file was interr"):
        open_source(path)


@pytest.mark.parametrize("name", ["X/data", "obs/total", "obs/_index"])
def test_another_file_is_not_read_in_place_of_a_dataset(tmp_path, name):
    path, secret = tmp_path / "a.h5ad", tmp_path / "secret"
    secret.write_bytes(bytes(range(1, 255)) * 20)
    annotated().write_h5ad(path)
    kind = {"dtype": "S4"} if name == "obs/_index" else {}
    replace_dataset(path, name, external=[(str(secret), 0, h5py.h5f.UNLIMITED)], **kind)
    with pytest.raises(SourceError, match=f"{name} lies in another file .* not followed"):
        open_source(path)


@pytest.mark.parametrize("there", [True, False])
def test_virtual_data_are_refused_with_their_source_or_without(tmp_path, there):
    path, other = tmp_path / "a.h5ad", tmp_path / "b.h5ad"
    annotated().write_h5ad(path)
    shutil.copyfile(path, other)
    with h5py.File(path, "r+") as file:
        length, attributes = file["X/data"].shape[0], dict(file["X/data"].attrs)
        layout = h5py.VirtualLayout((length,), file["X/data"].dtype)
        layout[:] = h5py.VirtualSource(str(other), "X/data", shape=(length,))
        del file["X/data"]
        file.create_virtual_dataset("X/data", layout).attrs.update(attributes)
    if not there:
        other.unlink()
    with pytest.raises(SourceError, match="X/data lies in another file"):
        open_source(path)


@pytest.mark.parametrize("name", ["X", "obs/total", "var"])
@pytest.mark.parametrize("soft", [False, True])
def test_links_to_another_hdf5_file_are_refused(tmp_path, name, soft):
    path, other = tmp_path / "a.h5ad", tmp_path / "b.h5ad"
    annotated().write_h5ad(path)
    shutil.copyfile(path, other)
    with h5py.File(path, "r+") as file:
        del file[name]
        if soft:  # through a link to the other file's root
            file["elsewhere"] = h5py.ExternalLink(str(other), "/")
            file[name] = h5py.SoftLink(f"/elsewhere/{name}")
        else:
            file[name] = h5py.ExternalLink(str(other), name)
    with pytest.raises(SourceError, match=f"{name} lies in another file"):
        open_source(path)


def test_links_inside_a_file_are_followed(tmp_path):
    adata = annotated()
    adata.write_h5ad(tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "r+") as file:
        file.move("X", "kept")
        file["X"] = h5py.SoftLink("/kept")
    assert (read_all(tmp_path / "a.h5ad")[0] == adata.X.toarray()).all()


def test_a_chunk_of_gigabytes_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    adata = annotated()
    adata.write_h5ad(tmp_path / "a.h5ad", compression="gzip")
    write_zarr(adata, tmp_path / "a.zarr", 3)
    monkeypatch.setattr(stored_checks, "LARGEST_CHUNK", 100)
    for name in ("a.h5ad", "a.zarr"):
        with pytest.raises(SourceError, match="GB, each of which must be decoded as a whole"):
            open_source(tmp_path / name)


@pytest.mark.parametrize("name", ["indices", "indptr", "data"])
def test_the_arrays_of_a_sparse_matrix_have_one_dimension_and_whole_indices(tmp_path, name):
    annotated().write_h5ad(tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "r+") as file:
        values = file[f"X/{name}"][:]
        del file[f"X/{name}"]
        file[f"X/{name}"] = values[:, None] if name != "indices" else values.astype(float)
    with pytest.raises(SourceError, match=f"X is damaged: {name} is an array of"):
        open_source(tmp_path / "a.h5ad")


def hide_pickle(array: Path, folder: Path, hidden: str) -> None:
    """Have a Zarr v2 array of text decoded by pickle at last, in one of the places that codecs can be named in."""
    pickled = {"id": "pickle", "protocol": 5}
    places = {"filters": {"filters": [{"id": "vlen-utf8"}, pickled]}, "compressor": {"compressor": pickled}}
    described = json.loads((array / ".zarray").read_text()) | places[hidden]
    (array / ".zarray").write_text(json.dumps(described))
    (array / "0").write_bytes(pickle.dumps(Mischief(folder)))


@pytest.mark.parametrize("hidden", ["filters", "compressor"])
@pytest.mark.parametrize("array", ["obs/_index", "obs/batch/categories", "var/_index", "X/data"])
def test_a_pickle_is_never_run_wherever_its_codec_is_named(tmp_path, monkeypatch, array, hidden):
    monkeypatch.setattr(numcodecs.pickles, "ALLOW_UNSAFE_PICKLE_DECODE", True)  # numcodecs before 0.16.6 asked nobody
    path = write_zarr(annotated(), tmp_path / "a.zarr", 2)
    hide_pickle(path / array, tmp_path / "mischief", hidden)
    with pytest.raises(SourceError, match="pickle"):
        read_all(path)
    assert not (tmp_path / "mischief").exists()


def test_a_codec_that_is_not_known_is_refused(tmp_path):
    path = write_zarr(annotated(), tmp_path / "a.zarr", 3)
    array = zarr.open_array(path / "X" / "data", mode="r")
    monkey = types.SimpleNamespace(metadata=types.SimpleNamespace(to_dict=lambda: {"codecs": [{"name": "mine"}]}))
    stored_checks.check_codecs(array)
    monkey.store_path = "a.zarr"
    with pytest.raises(SourceError, match="the codec 'mine', which is not known to be safe"):
        stored_checks.check_codecs(monkey)


@pytest.mark.parametrize("where", ["array", "consolidated"])
def test_a_pickle_in_a_store_of_ours_is_refused_unread(tmp_path, where):
    annotated().write_h5ad(tmp_path / "a.h5ad")
    ingest(tmp_path / "a.h5ad", tmp_path / "store", empty_cells="keep")
    codecs = [{"name": "numcodecs.pickle", "configuration": {"protocol": 5}}]
    root = tmp_path / "store" / "zarr.json"
    content = json.loads(root.read_text())
    arrays = content.pop("consolidated_metadata")["metadata"]
    arrays["obs/_index"]["codecs"] = codecs
    if where == "consolidated":
        content["consolidated_metadata"] = {"kind": "inline", "must_understand": False, "metadata": arrays}
    else:
        (tmp_path / "store/obs/_index/zarr.json").write_text(json.dumps(arrays["obs/_index"]))
    root.write_text(json.dumps(content))
    with pytest.raises(SourceError, match="pickle"):
        CellStore(tmp_path / "store")
