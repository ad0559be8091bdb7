import gc
import weakref
from concurrent.futures import wait
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from atlasvi.loaders.arrays.shard_writing import ShardWriter, create_sharded
from atlasvi.loaders.arrays.shards import SHARD_BYTES, Layout, OpenShards, ShardReader
from atlasvi.loaders.errors import DamagedChunkError, SourceError
from atlasvi.loaders.manifest import hash_file
from atlasvi.loaders.places.object_path import to_place
from atlasvi.loaders.places.objects import traffic
from tests.s3_server import Bucket


def write(folder: Path, values: np.ndarray, layout: Layout) -> Path:
    path = create_sharded(zarr.open_group(folder, mode="w"), "x", len(values), layout)
    writer = ShardWriter(path, layout)
    for part in np.array_split(values, 3):
        writer.append(part)
    writer.close()
    return path


@settings(max_examples=30, deadline=None)
@given(
    values=st.lists(st.integers(0, 60_000), min_size=1, max_size=300),
    dtype=st.sampled_from(["|u1", "<u2", "<i4", "<i8", "<u4"]),
    delta=st.booleans(),
    compressor=st.sampled_from(["lz4", "lz4hc", "zstd"]),
    span=st.tuples(st.integers(0, 300), st.integers(0, 300)),
)
def test_any_reader_of_zarr_sees_what_was_written(tmp_path_factory, values, dtype, delta, compressor, span):
    folder = tmp_path_factory.mktemp("shards")
    array = np.array(values).astype(dtype)
    layout = Layout(np.dtype(dtype), chunk=16, shard=64, delta=delta, compressor=compressor)
    path = write(folder, array, layout)
    assert np.array_equal(zarr.open_group(folder, mode="r")["x"][:], array)
    start, stop = sorted(min(edge, len(array)) for edge in span)
    assert np.array_equal(ShardReader(path, layout, len(array)).read(start, stop), array[start:stop])


def test_gene_indices_take_less_room_as_gaps(tmp_path: Path):
    rng = np.random.default_rng(0)
    rows = [np.sort(rng.choice(20_000, 1_000, replace=False)) for _ in range(64)]
    values = np.concatenate(rows).astype("<u2")
    size = {}
    for delta in (False, True):
        path = write(tmp_path / str(delta), values, Layout(values.dtype, 2**15, 2**16, delta))
        size[delta] = (path / "c" / "0").stat().st_size
    assert size[True] < 0.85 * size[False]


LAYOUT = Layout(np.dtype("<u2"), chunk=256, shard=1024, delta=True)


@pytest.mark.parametrize("at", [10, 300, -10])
def test_a_flipped_byte_is_found_and_its_place_named(tmp_path: Path, at: int):
    values = np.random.default_rng(0).integers(0, 60_000, 1_000).astype("<u2")
    path = write(tmp_path / "s", values, LAYOUT)
    shard = path / "c" / "0"
    content = bytearray(shard.read_bytes())
    content[at] ^= 1
    shard.write_bytes(content)
    with pytest.raises(SourceError, match=r"x.*damaged.*copy"):
        ShardReader(path, LAYOUT, 1_000).read(0, 1_000)


@pytest.mark.parametrize("entry", [(2**62, 30), (0, 2**62), (2**63, 2**63), (5, 40), (0, 2)])
def test_an_index_that_names_places_outside_the_file_is_refused_though_its_checksum_is_right(tmp_path: Path, entry):
    path = write(tmp_path / "s", np.arange(1_000, dtype="<u2"), LAYOUT)
    shard = path / "c" / "0"
    content = shard.read_bytes()
    index = np.frombuffer(content[-4 * 16 - 4 : -4], "<u8").reshape(-1, 2).copy()
    index[1] = entry
    shard.write_bytes(
        content[: -4 * 16 - 4] + index.tobytes() + google_crc32c.value(index.tobytes()).to_bytes(4, "little")
    )
    with pytest.raises(DamagedChunkError, match=r"c/0.*damaged"):
        ShardReader(path, LAYOUT, 1_000).read(0, 1_000)


def test_descents_are_counted_over_chunks_and_shards(tmp_path: Path):
    values = np.random.default_rng(0).integers(0, 60_000, 3_000).astype("<u2")
    values[[256, 1024, 2048]] = values[[255, 1023, 2047]]  # at the edges of a chunk and of shards
    reader = ShardReader(write(tmp_path / "s", values, LAYOUT), LAYOUT, len(values))
    out = np.empty(12 * 256, "<u2")
    for low, high in ((0, 3_000), (256, 2_048), (255, 2_049), (1_000, 1_000), (1_500, 1_501)):
        part = values[low:high]
        assert reader.read_chunks(0, 12, out, low, high) == np.count_nonzero(part[1:] <= part[:-1])


def test_a_shard_cut_short_or_missing_is_named(tmp_path: Path):
    path = write(tmp_path / "s", np.arange(2_000, dtype="<u2"), LAYOUT)
    shard = path / "c" / "1"
    shard.write_bytes(shard.read_bytes()[:-20])
    with pytest.raises(SourceError, match=r"c/1 is damaged or cut short"):
        ShardReader(path, LAYOUT, 2_000).read(0, 2_000)
    shard.unlink()
    with pytest.raises(SourceError, match=r"c/1 is missing"):
        ShardReader(path, LAYOUT, 2_000).read(0, 2_000)


def test_a_shard_deleted_or_replaced_under_the_reader_is_noticed(tmp_path: Path):
    values = np.arange(2_000, dtype="<u2")
    path = write(tmp_path / "s", values, LAYOUT)
    reader = ShardReader(path, LAYOUT, 2_000)
    assert np.array_equal(reader.read(0, 2_000), values)
    write(tmp_path / "other", values[::-1].copy(), LAYOUT)
    (tmp_path / "other" / "x" / "c" / "0").rename(path / "c" / "0")
    with pytest.raises(SourceError, match=r"c/0 was replaced or changed while"):
        reader.read(0, 10)
    (path / "c" / "0").unlink()
    with pytest.raises(SourceError, match=r"c/0 is missing"):
        reader.read(0, 10)


def test_many_shards_of_many_arrays_are_read_with_few_open_files(tmp_path: Path, monkeypatch):
    gc.collect()  # readers of other tests
    monkeypatch.setattr(OpenShards, "most_open", 10)
    monkeypatch.setattr(OpenShards, "_arrays", weakref.WeakSet())
    layout = Layout(np.dtype("<u2"), chunk=16, shard=16, delta=False)
    values = np.arange(16 * 20, dtype="<u2")
    readers = [ShardReader(write(tmp_path / str(k), values + k, layout), layout, len(values)) for k in range(4)]
    assert np.array_equal(readers[0].read(0, len(values)), values)
    assert len(readers[0]._shards._shards) == 10
    for start in range(0, len(values), 16):
        for k, reader in enumerate(readers):
            assert reader.read(start, start + 16).tolist() == (values + k)[start : start + 16].tolist()
    assert [len(reader._shards._shards) for reader in readers] == [2, 2, 2, 2]
    for reader in readers[1:]:
        reader.close()
    assert np.array_equal(readers[0].read(0, len(values)), values)
    assert len(readers[0]._shards._shards) == 10


def test_indices_of_shards_in_a_bucket_take_no_more_memory_than_is_said(bucket: Bucket, tmp_path: Path, monkeypatch):
    gc.collect()
    monkeypatch.setattr(OpenShards, "kept_bytes", 3 * (SHARD_BYTES + 2 * 16))
    monkeypatch.setattr(OpenShards, "_arrays", weakref.WeakSet())
    layout = Layout(np.dtype("<u2"), chunk=8, shard=16, delta=False)
    values = np.arange(16 * 5, dtype="<u2")
    place = to_place(bucket.put(write(tmp_path / "x", values, layout), "x"))
    reader = ShardReader(place, layout, len(values))
    assert np.array_equal(reader.read(0, len(values)), values)
    assert len(reader._shards._shards) == 3


def test_what_was_asked_for_ahead_is_not_asked_for_again(bucket: Bucket, tmp_path: Path):
    layout = Layout(np.dtype("<u2"), chunk=8, shard=16, delta=False)
    values = np.arange(16 * 5, dtype="<u2")
    reader = ShardReader(to_place(bucket.put(write(tmp_path / "x", values, layout), "x")), layout, len(values))
    asked = reader.ask_ahead(1, 7)
    wait([ahead.content for ahead in asked])
    before = traffic.requests
    assert reader.read(8, 56).tolist() == values[8:56].tolist()
    assert traffic.requests == before
    assert reader.read(0, 32).tolist() == values[:32].tolist()  # of which a part was asked for
    assert traffic.requests == before + 1
    del asked
    reader.read(8, 16)
    assert traffic.requests == before + 2


def test_a_shard_is_listed_with_a_checksum_that_depends_on_its_content(tmp_path: Path):
    """A crc32c would not: a shard ends with that of its index, and each chunk with that of itself."""
    listed = []
    for name, values in (("one", np.arange(2_000)), ("other", np.arange(2_000)[::-1])):
        path = create_sharded(zarr.open_group(tmp_path / name, mode="w"), "x", 2_000, LAYOUT)
        writer = ShardWriter(path, LAYOUT)
        writer.append(values.astype("<u2"))
        writer.close()
        listed += [checksum for _, checksum in writer.files.values()]
        assert all(writer.files[shard] == hash_file(path / "c" / shard) for shard in writer.files)
    assert len(set(listed)) == len(listed) > 2
