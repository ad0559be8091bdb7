"""Rows of an array, however it is stored, are those that were written."""

import os
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

from atlasvi.loaders.arrays import row_arrays
from atlasvi.loaders.arrays.row_arrays import NumberRows, TextRows, ZarrRows, open_rows
from atlasvi.loaders.errors import DamagedChunkError, SourceError

N = 50
TEXT = np.array([f"cell {k} \u00e4" * (k % 5) for k in range(N)], object)
VALUES = {
    "latents": np.random.default_rng(0).normal(size=(N, 3)).astype(np.float32),
    "half": np.random.default_rng(0).normal(size=(N, 3)).astype(np.float16),
    "codes": np.arange(N, dtype=np.int8) % 7,
    "doubles": np.arange(N) / 3,
    "mask": np.arange(N) % 3 == 0,
    "text": TEXT,
}
LAYOUTS = {
    "chunks": dict(chunks=10, compressors=[ZstdCodec(), Crc32cCodec()]),
    "raw shards": dict(chunks=4, shards=20, compressors=[Crc32cCodec()]),
    "compressed shards": dict(chunks=4, shards=20, compressors=[ZstdCodec(), Crc32cCodec()]),
    "no checksums": dict(chunks=16, compressors=None),
    "blosc": dict(chunks=16, compressors=[BloscCodec()]),
}


def write(path: Path, name: str, layout: str) -> zarr.Array:
    values, options = VALUES[name], dict(LAYOUTS[layout])
    for size in {"chunks", "shards"} & set(options):
        options[size] = (options[size], *values.shape[1:])
    dtype = str if name == "text" else values.dtype
    written = {"write_empty_chunks": True}
    array = zarr.create_array(path, shape=values.shape, dtype=dtype, config=written, overwrite=True, **options)
    array[:] = values
    return zarr.open_array(path, mode="r")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", VALUES)
@settings(deadline=None, max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.sets(st.integers(0, N - 1)), bounds=st.tuples(st.integers(0, N), st.integers(0, N + 9)))
def test_rows_are_those_of_the_whole(tmp_path: Path, name: str, layout: str, rows: set[int], bounds: tuple[int, int]):
    path = tmp_path / "array"
    reader = open_rows(zarr.open_array(path, mode="r") if path.exists() else write(path, name, layout))
    kind = ZarrRows if layout == "blosc" else TextRows if name == "text" else NumberRows
    assert isinstance(reader, kind)
    chosen = np.array(sorted(rows), np.int64)
    for picked in (reader.read(chosen), reader.read(slice(*bounds)), reader.read(slice(0, N))):
        assert picked.dtype == VALUES[name].dtype
    assert np.array_equal(reader.read(chosen), VALUES[name][chosen])
    assert np.array_equal(reader.read(slice(*bounds)), VALUES[name][slice(*bounds)])


@pytest.mark.parametrize("layout", ["chunks", "raw shards", "compressed shards"])
@pytest.mark.parametrize("name", ["latents", "text"])
def test_any_flipped_byte_of_what_is_read_is_noticed(tmp_path: Path, name: str, layout: str):
    write(tmp_path / "array", name, layout)
    file = tmp_path / "array" / ("c/0/0" if name == "latents" else "c/0")
    content = bytearray(file.read_bytes())
    for at in range(0, len(content), 7):
        content[at] ^= 1
        file.write_bytes(content)
        with pytest.raises(SourceError, match="damaged"):
            open_rows(zarr.open_array(tmp_path / "array", mode="r")).read(slice(0, N))
        content[at] ^= 1


@pytest.mark.parametrize("name", ["latents", "text"])
def test_rows_of_many_files_are_read_by_several_threads_and_damage_in_one_is_said(tmp_path: Path, monkeypatch, name):
    monkeypatch.setattr(row_arrays, "THREADS", 2)
    array = zarr.create_array(
        tmp_path / "many",
        shape=VALUES[name].shape,
        chunks=(3, *VALUES[name].shape[1:]),
        dtype=str if name == "text" else np.float32,
        compressors=[ZstdCodec(), Crc32cCodec()],
        config={"write_empty_chunks": True},
    )
    array[:] = VALUES[name]
    reader, rows = open_rows(array), np.arange(1, N, 2)
    assert np.array_equal(reader.read(rows), VALUES[name][rows])
    assert np.array_equal(reader.read(slice(0, N)), VALUES[name])
    next((tmp_path / "many/c/16").rglob("*") if name == "latents" else iter([tmp_path / "many/c/16"])).unlink()
    with pytest.raises(SourceError, match=r"c/16.* is missing"):
        reader.read(rows)


def test_damage_elsewhere_does_not_hinder_and_what_is_gone_or_cut_short_is_said(tmp_path: Path):
    reader = open_rows(write(tmp_path / "array", "latents", "raw shards"))
    file = tmp_path / "array/c/0/0"
    content = bytearray(file.read_bytes())
    content[5] ^= 1
    file.write_bytes(content)
    assert np.array_equal(reader.read(np.array([4, 7, 49])), VALUES["latents"][[4, 7, 49]])
    with pytest.raises(DamagedChunkError, match=r"c/0/0 is damaged or cut short \(chunk 0: it does not match"):
        reader.read(np.array([3]))
    file.write_bytes(content)
    os.utime(file, (0, 0))
    with pytest.raises(SourceError, match="replaced or written to"):
        reader.read(np.array([4]))
    file.write_bytes(content[:-30])
    with pytest.raises(SourceError, match="damaged or cut short"):
        open_rows(zarr.open_array(tmp_path / "array", mode="r")).read(np.array([4]))
    file.unlink()
    with pytest.raises(SourceError, match="c/0/0 is missing"):
        reader.read(np.array([4]))


def test_a_chunk_of_text_that_promises_more_than_it_holds_is_refused(tmp_path: Path):
    reader = open_rows(write(tmp_path / "array", "text", "no checksums"))
    file = tmp_path / "array/c/0"
    content = bytearray(file.read_bytes())
    content[4:8] = b"\xff\xff\xff\x7f"
    file.write_bytes(content)
    for rows in (np.array([2]), slice(0, 16)):
        with pytest.raises(SourceError, match="damaged"):
            reader.read(rows)
