"""Cells straight from sources: read past the libraries where the layout allows, and then the same as through them."""

import os
import warnings
import zlib
from contextlib import ExitStack
from pathlib import Path

import anndata as ad
import h5py
import numcodecs
import numcodecs.abc
import numpy as np
import pandas as pd
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from zarr.codecs import BloscCodec, Crc32cCodec, GzipCodec, ZstdCodec

from atlasvi.loaders.arrays.stored_arrays import SlicedArray, open_array
from atlasvi.loaders.arrays.zarr_arrays import decode_bounded
from atlasvi.loaders.cells.open_cells import CellData, align_genes, enter_cells, find_missing, open_cells, select_genes
from atlasvi.loaders.errors import AtlasviWarning, CountsError, GeneError, SourceError
from atlasvi.loaders.ingestion.ingest import ingest
from atlasvi.loaders.rows.buffers import Buffers
from atlasvi.loaders.rows.narrowing import narrow_rows
from tests.loaders.conftest import make_counts

COUNTS = make_counts(300, 30, largest=300)

HDF5_LAYOUTS = {
    "contiguous": {},
    "chunks": {"chunks": (100,)},
    "gzip": {"chunks": (100,), "compression": "gzip"},
    "gzip of shuffled bytes": {"chunks": (100,), "compression": "gzip", "shuffle": True},
    "lzf": {"chunks": (100,), "compression": "lzf"},
    "checksums": {"chunks": (100,), "fletcher32": True},
}
ZARR_LAYOUTS = {
    "v2 blosc": (2, {"chunks": (100,), "compressors": numcodecs.Blosc()}),
    "v2 zstd": (2, {"chunks": (100,), "compressors": numcodecs.Zstd()}),
    "v2 zlib": (2, {"chunks": (100,), "compressors": numcodecs.Zlib()}),
    "v2 lz4": (2, {"chunks": (100,), "compressors": numcodecs.LZ4()}),
    "v2 uncompressed": (2, {"chunks": (100,), "compressors": None}),
    "v3 blosc": (3, {"chunks": (100,), "compressors": BloscCodec(typesize=4)}),
    "v3 gzip": (3, {"chunks": (100,), "compressors": GzipCodec()}),
    "v3 uncompressed": (3, {"chunks": (100,), "compressors": None}),
    "v3 in shards": (3, {"chunks": (100,), "shards": (400,), "compressors": BloscCodec(cname="lz4")}),
    "v3 in shards, checked": (3, {"chunks": (100,), "shards": (400,), "compressors": [ZstdCodec(), Crc32cCodec()]}),
    "v3 in uncompressed shards": (3, {"chunks": (100,), "shards": (400,), "compressors": None}),
}
THROUGH_THE_LIBRARY = {"lzf", "checksums", "v2 lz4"}


def annotated(counts: sparse.csr_matrix, first: int = 0, **obs) -> ad.AnnData:
    names = [f"cell{first + k}" for k in range(counts.shape[0])]
    var = pd.DataFrame(index=[f"g{k}" for k in range(counts.shape[1])])
    return ad.AnnData(counts, pd.DataFrame(obs, index=names), var)


def write_zarr(adata: ad.AnnData, path: Path, version: int = 3, **layout) -> Path:
    """An AnnData Zarr whose data and indices have the given layout."""
    with warnings.catch_warnings(), ad.settings.override(zarr_write_format=version):
        warnings.simplefilter("ignore")
        adata.write_zarr(path)
        group = zarr.open_group(path, mode="r+", use_consolidated=False)["X"]
        for name, dtype in (("data", "float32"), ("indices", "int32")) if layout else ():
            values, attributes = group[name][:].astype(dtype), dict(group[name].attrs)
            del group[name]
            group.create_array(name, data=values, attributes=attributes, **layout)
        zarr.consolidate_metadata(path)
    return path


def write_layout(layout: str, folder: Path) -> Path:
    """COUNTS as an AnnData file in one of the layouts."""
    if layout in ZARR_LAYOUTS:
        version, options = ZARR_LAYOUTS[layout]
        return write_zarr(annotated(COUNTS), folder / "a.zarr", version, **options)
    annotated(COUNTS).write_h5ad(folder / "a.h5ad")
    with h5py.File(folder / "a.h5ad", "r+") as file:
        for name in ("data", "indices"):
            values = file["X"][name][:]
            del file["X"][name]
            file["X"].create_dataset(name, data=values, **HDF5_LAYOUTS[layout])
    return folder / "a.h5ad"


def read_all(data: CellData) -> np.ndarray:
    """The counts of all blocks, dense; in the types of a minibatch."""
    dense = []
    for block in range(len(data.block_starts) - 1):
        rows = data.read_block(block)
        assert rows.indices.dtype == np.uint16
        assert rows.counts.dtype in (np.uint8, np.uint16)
        indptr, indices, counts = rows.to_csr()
        dense.append(sparse.csr_matrix((counts, indices, indptr), shape=(len(rows), len(data.genes))).toarray())
    return np.concatenate(dense)


@pytest.mark.parametrize("layout", [*HDF5_LAYOUTS, *ZARR_LAYOUTS])
def test_every_layout_gives_the_same_counts(tmp_path: Path, layout: str):
    path = write_layout(layout, tmp_path)
    root = h5py.File(path) if path.suffix == ".h5ad" else zarr.open_group(path, mode="r")
    for name in ("data", "indices"):
        by_library = isinstance(open_array(str(path), root["X"][name], Buffers()), SlicedArray)
        assert by_library == (layout in THROUGH_THE_LIBRARY)
    data = open_cells(path)
    assert len(data.block_starts) > 2
    assert np.array_equal(read_all(data), COUNTS.toarray())
    data.close()


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_slice_of_any_zarr_array_is_that_of_zarr(tmp_path_factory, data):
    dtype = data.draw(st.sampled_from(["u1", "u2", "i4", "f4", "i8"]))
    values = np.arange(1, data.draw(st.integers(2, 100)), dtype=dtype)  # chunks full of zeros are not stored
    chunk, per_shard = data.draw(st.integers(1, 120)), data.draw(st.sampled_from([0, 1, 3]))
    codecs = [BloscCodec(), BloscCodec(cname="lz4", shuffle="bitshuffle"), ZstdCodec(), GzipCodec(), None]
    array = zarr.create_array(
        tmp_path_factory.mktemp("array"),
        data=values,
        chunks=(chunk,),
        shards=(chunk * per_shard,) if per_shard else None,
        compressors=data.draw(st.sampled_from(codecs)),
    )
    direct = open_array("a", array, Buffers())
    start, stop = sorted(data.draw(st.tuples(*[st.integers(0, len(values))] * 2)))
    assert np.array_equal(direct.read(start, stop), values[start:stop])


@given(
    rows=st.lists(st.lists(st.integers(-1, 8), max_size=5), min_size=1, max_size=5),
    draw=st.data(),
    dtype=st.sampled_from(["u1", "u2", "i2", "i4", "u8", "f4", "f8"]),
)
def test_only_sorted_whole_positive_counts_are_taken_as_they_are(rows, draw, dtype):
    indptr = np.cumsum([0] + [len(row) for row in rows])
    indices = np.array([gene for row in rows for gene in row], "i4")
    choices = [0, 1, 2, 255] + ([300] if dtype != "u1" else []) + ([-1] if "u" not in dtype else [])
    choices += [1.5, np.nan, np.inf, 2.0**31] if "f" in dtype else []
    values = np.array([draw.draw(st.sampled_from(choices)) for _ in indices]).astype(dtype)
    fine = all(sorted(set(row)) == row and min(row, default=0) >= 0 and max(row, default=0) < 8 for row in rows)
    fine &= bool(np.isin(values, [1, 2, 255, 300]).all())
    narrow = narrow_rows(7, indptr, indices, values, 8, Buffers())
    assert (narrow is not None) == fine
    if narrow is not None:
        assert narrow.first == 7
        assert np.array_equal(narrow.indices, indices)
        assert np.array_equal(narrow.counts, values.astype(int))
        assert narrow.counts.dtype == (np.uint16 if (values > 255).any() else np.uint8)


@pytest.mark.parametrize(
    ("value", "found"), [(1.5, "values that are not whole numbers"), (np.nan, "NaN"), (-1, "negative values")]
)
def test_what_is_no_count_is_refused_with_its_place(tmp_path: Path, value: float, found: str):
    counts = COUNTS.copy()
    counts.data[counts.indptr[200]] = value
    annotated(counts).write_h5ad(tmp_path / "a.h5ad")
    gene = counts.indices[counts.indptr[200]]
    with pytest.raises(CountsError, match=rf"X holds {found}.* \(first: .* at cell 'cell200', gene 'g{gene}'\)"):
        read_all(open_cells(tmp_path / "a.h5ad"))


def test_stored_zeros_duplicates_and_disorder_are_put_right(tmp_path: Path):
    annotated(COUNTS[:2, :4].copy()).write_h5ad(tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "r+") as file:
        odd = {"data": [3.0, 200, 100, 0, 7], "indices": [3, 1, 1, 0, 2], "indptr": [0, 4, 5]}
        for name, values in odd.items():
            del file["X"][name]
            file["X"][name] = values
    assert read_all(open_cells(tmp_path / "a.h5ad")).tolist() == [[0, 300, 0, 3], [0, 0, 7, 0]]


@pytest.mark.parametrize("layout", [name for name in ZARR_LAYOUTS if name != "v2 lz4"])
def test_a_damaged_chunk_is_found_and_its_file_named(tmp_path: Path, layout: str):
    path = write_layout(layout, tmp_path)
    file = path / "X" / "data" / (("c/" if layout.startswith("v3") else "") + "0")
    content = bytearray(file.read_bytes())
    if "uncompressed" in layout:  # nothing but its length can be seen of such a chunk
        content = content[:-30]
    else:
        content[2:12] = b"\xff" * 10
    file.write_bytes(content)
    with pytest.raises(SourceError, match=rf"{file}.* is damaged"):
        read_all(open_cells(path))


@pytest.mark.parametrize("layout", ["gzip", "gzip of shuffled bytes"])
def test_a_damaged_chunk_of_an_h5ad_is_found(tmp_path: Path, layout: str):
    path = write_layout(layout, tmp_path)
    with h5py.File(path) as file:
        place = file["X/data"].id.get_chunk_info(1).byte_offset
    with open(path, "r+b") as raw:
        raw.seek(place)
        raw.write(b"\xff" * 20)
    with pytest.raises(SourceError, match=r"a.h5ad: /X/data is damaged or cut short \(chunk 1"):
        read_all(open_cells(path))


@pytest.mark.parametrize("codec", [numcodecs.Zstd(), numcodecs.GZip(), numcodecs.Zlib()])
@pytest.mark.parametrize("size", [1, 200, 256, 70_000])
def test_a_chunk_that_holds_more_than_it_should_is_not_decoded_to_its_end(codec: numcodecs.abc.Codec, size: int):
    values = np.random.default_rng(0).integers(0, 9, size, dtype="u1")
    coded = np.frombuffer(codec.encode(values), np.uint8)
    assert np.array_equal(np.frombuffer(decode_bounded(codec, coded, size), np.uint8), values)
    bomb = np.frombuffer(codec.encode(np.zeros(10**7, "u1")), np.uint8)
    if codec.codec_id == "zstd":
        with pytest.raises(ValueError, match=f"says that it holds 10000000 bytes where {size} should be"):
            decode_bounded(codec, bomb, size)
    else:
        assert len(decode_bounded(codec, bomb, size)) == size + 1


def test_a_gzip_chunk_of_hdf5_that_goes_on_is_found(tmp_path: Path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        array = file.create_dataset("x", data=np.arange(200, dtype="i4"), chunks=(100,), compression="gzip")
        array.id.write_direct_chunk((100,), zlib.compress(bytes(10**6)))
    with h5py.File(tmp_path / "a.h5") as file, pytest.raises(SourceError, match="chunk 1 has 401 bytes where 400"):
        open_array("a.h5", file["x"], Buffers()).read(0, 200)


def test_blosc_frames_damaged_anywhere_never_read_past_their_end(tmp_path: Path):
    """They have no checksum, so some flips can't be seen; but none may bring the process down."""
    values = np.random.default_rng(0).integers(0, 999, 3_000).astype("u2")
    array = zarr.create_array(
        tmp_path / "a", data=values, chunks=(1_000,), compressors=BloscCodec(cname="lz4", blocksize=2_000)
    )
    file = tmp_path / "a" / "c" / "1"
    whole = file.read_bytes()
    for at in range(64):
        for bit in (0x80, 0x01):
            content = bytearray(whole)
            content[at] ^= bit
            file.write_bytes(content)
            try:
                read = open_array("a", array, Buffers()).read(0, 3_000)
            except SourceError:
                continue
            assert np.array_equal(read[:1_000], values[:1_000])


def test_a_file_that_is_cut_or_written_to_while_it_is_read_is_noticed(tmp_path: Path):
    path = write_layout("contiguous", tmp_path)
    data = open_cells(path)
    data.read_block(0)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(SourceError, match=r"a.h5ad"):
        read_all(data)


@pytest.mark.parametrize("layout", ["v3 in shards", "v3 blosc"])
def test_a_chunk_file_that_is_replaced_or_deleted_while_it_is_read_is_noticed(tmp_path: Path, layout: str):
    path = write_layout(layout, tmp_path)
    file = path / "X" / "data" / "c" / "0"
    data = open_cells(path)
    data.read_block(0)
    copy = file.with_suffix(".copy")
    copy.write_bytes(file.read_bytes())
    copy.replace(file)
    with pytest.raises(SourceError, match=rf"{file} was replaced or written to"):
        data.read_block(0)
    file.unlink()
    with pytest.raises(SourceError, match=rf"{file} is missing"):
        data.read_block(0)


# Collections of annbatch


def write_collection(path: Path, parts: dict[str, ad.AnnData]) -> Path:
    """As annbatch 0.3 lays it out: AnnData groups below a root with attributes of its own."""
    root = zarr.open_group(path, mode="w", zarr_format=3)
    root.attrs.update({"encoding-type": "annbatch-preshuffled", "encoding-version": "0.1.0"})
    for name, adata in parts.items():
        write_zarr(adata, path / name, chunks=(100,), shards=(400,), compressors=BloscCodec(cname="lz4"))
    return path


def test_a_collection_is_one_source_whose_datasets_follow_each_other(tmp_path: Path):
    cuts = {"dataset_2": (100, 250), "dataset_10": (250, 300), "dataset_0": (0, 100)}
    parts = {
        name: annotated(COUNTS[a:b], a, batch=pd.Categorical([f"{name} {k % 2}" for k in range(a, b)]), n=range(a, b))
        for name, (a, b) in cuts.items()
    }
    path = write_collection(tmp_path / "c.zarr", parts)
    whole = ad.concat([ad.read_zarr(path / name) for name in ("dataset_0", "dataset_2", "dataset_10")])
    data = open_cells(path)
    assert data.n_cells == 300
    assert np.array_equal(read_all(data), whole.X.toarray())
    batch = data.read_column("batch")
    assert batch.tolist() == whole.obs["batch"].tolist()
    assert sorted(batch.cat.categories) == sorted(set(whole.obs["batch"]))
    assert data.read_obs(90, 260).index.tolist() == whole.obs_names[90:260].tolist()
    assert data.read_obs(90, 260)["n"].tolist() == list(range(90, 260))
    assert len(np.unique(data.split_keys(0, 300))) == 300


def test_datasets_of_a_collection_must_have_the_same_genes(tmp_path: Path):
    other = annotated(COUNTS[:50])
    other.var_names = other.var_names[::-1]
    path = write_collection(tmp_path / "c.zarr", {"dataset_0": annotated(COUNTS), "dataset_1": other})
    with pytest.raises(GeneError, match=r"dataset_1: its genes are not those of .*dataset_0"):
        open_cells(path)


def test_a_damaged_dataset_of_a_collection_is_named(tmp_path: Path):
    path = write_collection(tmp_path / "c.zarr", {"dataset_0": annotated(COUNTS), "dataset_1": annotated(COUNTS)})
    (path / "dataset_1" / "X" / "indices" / "c" / "0").write_bytes(b"")
    with pytest.raises(SourceError, match=r"dataset_1/X/indices/c/0 is damaged or cut short"):
        read_all(open_cells(path))


# How well cells are mixed


def test_the_mixing_of_a_source_is_said_in_numbers(tmp_path: Path):
    many = sparse.csr_matrix(np.ones((20_000, 3), np.float32))
    annotated(many).write_h5ad(tmp_path / "a.h5ad")
    source = open_cells(tmp_path / "a.h5ad")
    assert source.mixing == ("in the order of the source: each minibatch draws from 128 runs of 128 neighbouring cells")
    assert select_genes(source, ["g1"]).mixing == source.mixing
    path = write_collection(tmp_path / "c.zarr", {"dataset_0": annotated(many)})
    assert open_cells(path).mixing.startswith("shuffled as a whole when the collection was written; ")
    annotated(COUNTS).write_h5ad(tmp_path / "b.h5ad")
    assert open_cells(tmp_path / "b.h5ad").mixing == "all 300 cells are mixed with each other in every epoch"


def test_chosen_genes_come_in_the_order_asked_for(tmp_path: Path):
    annotated(COUNTS).write_h5ad(tmp_path / "a.h5ad")
    source = open_cells(tmp_path / "a.h5ad")
    columns = np.random.default_rng(0).permutation(30)[:11]
    chosen = select_genes(source, [f"g{k}" for k in columns])
    assert np.array_equal(read_all(chosen), COUNTS[:, columns].toarray())
    loader = pytest.importorskip("atlasvi.loaders.batches.loader")  # its batches are torch's tensors
    for batch in loader.BatchLoader(chosen, 64, seed=0):
        assert np.array_equal(batch.to_dense().numpy(), COUNTS[batch.rows.numpy()][:, columns].toarray())


def test_genes_that_the_data_lacks_count_as_zeros_if_it_was_opened_so_and_its_spec_says_so(tmp_path: Path):
    annotated(COUNTS).write_h5ad(tmp_path / "cells.h5ad")
    ingest([tmp_path / "cells.h5ad"], tmp_path / "cells.store")
    wanted = ["g3", "new", "g1"]
    for name in ("cells.h5ad", "cells.store"):
        with pytest.raises(GeneError, match="1 of the 3 genes"):
            select_genes(open_cells(tmp_path / name), wanted)
        with pytest.warns(AtlasviWarning, match=r"66.7% of the 3 genes .*'new'\) count as zero"):
            padded = select_genes(open_cells(f"{tmp_path / name}::missing_genes=zeros"), wanted)
        assert padded.genes.tolist() == wanted
        with pytest.warns(AtlasviWarning, match="66.7%"):
            aligned = align_genes(open_cells(tmp_path / name), wanted)
        assert aligned.spec.missing_genes == "zeros"
        with pytest.warns(AtlasviWarning, match="66.7%"):
            select_genes(open_cells(tmp_path / name, like=aligned.spec), wanted)
        assert align_genes(open_cells(tmp_path / name), ["g3", "g1"]).spec.missing_genes is None
    with pytest.raises(SourceError, match="ingest has none: --genes union"):
        ingest([f"{tmp_path / 'cells.h5ad'}::missing_genes=zeros"], tmp_path / "other.store")


@pytest.mark.parametrize(
    ("there", "wanted", "found"),
    [
        (["Cd3e", "Cd19", "Ms4a1", "C3"], ["CD3E", "CD19", "MS4A1", "C3"], "1 of the 4 genes of the model, and 4 if"),
        (["ENSG01.2", "ENSG02.5"], ["ENSG01", "ENSG02"], "none of the 2 genes of the model, and 2 if"),
        (["ENSMUSG01", "ENSMUSG02"], ["ENSG01", "ENSG02"], r"none of the 2 genes of the model \("),
    ],
)
def test_genes_under_other_names_are_refused_rather_than_taken_as_missing(there, wanted, found):
    with pytest.raises(GeneError, match=found + ".*gene_column.*orthologues"):
        find_missing("new.h5ad", pd.Index(there), pd.Index(wanted))


def test_a_panel_of_few_genes_is_no_other_species():
    wanted = pd.Index([f"G{k}" for k in range(1000)])
    assert len(find_missing("panel.h5ad", pd.Index(["G1", "G7", "g8", "Other"]), wanted)) == 998


def test_an_anndata_in_memory_is_refused_with_the_way_to_train_it(tmp_path: Path):
    adata = ad.AnnData(sparse.csr_matrix(np.ones((20, 3), np.float32)))
    for call in (lambda: open_cells(adata), lambda: ingest([adata], tmp_path / "store")):
        with pytest.raises(
            SourceError, match=r"The data is of type AnnData: give the path .* by atlasvi\.engine\.SCVI"
        ):
            call()


def test_what_is_opened_stays_open_and_what_is_not_is_closed_with_the_rest(tmp_path: Path):
    ad.AnnData(sparse.csr_matrix(np.ones((20, 3), np.float32))).write_h5ad(tmp_path / "cells.h5ad")
    with ExitStack() as opened:
        cells = enter_cells(tmp_path / "cells.h5ad", opened)
        assert enter_cells(cells, opened) is cells
        assert len(cells.read_block(0)) == 20
    with pytest.raises(ValueError, match=r"Bad file descriptor|[Nn]ot open|closed"):
        cells.read_block(0)
