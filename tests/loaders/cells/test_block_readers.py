"""The fast reader of a cell store's counts, and the slow one through zarr-python: the same rows, bit for bit."""

from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

from atlasvi.loaders.cells import cell_store
from atlasvi.loaders.cells.block_readers import VARIABLE, ShardRows, ZarrRows
from atlasvi.loaders.cells.cell_store import CellStore
from atlasvi.loaders.errors import DamagedChunkError, SourceError
from atlasvi.loaders.ingestion.ingest import ingest
from tests.loaders.conftest import make_counts


def wide_counts() -> sparse.csr_matrix:
    """70,000 genes (int32 indices), counts up to a million (uint32), every third cell empty."""
    counts = sparse.lil_matrix((90, 70_000), dtype=np.float32)
    for cell in range(90):
        if cell % 3:
            counts[cell, [cell, 40_000 + cell, 69_999 - cell]] = (1, 10**cell % 65_537, 10**6)
    return counts.tocsr()


COUNTS = {
    "uint8": make_counts(501, 40),
    "uint16": make_counts(501, 40, largest=300),
    "uint32 over many genes": wide_counts(),
}


def open_both(store: Path, monkeypatch) -> tuple[CellStore, CellStore]:
    monkeypatch.setenv(VARIABLE, "shards")
    fast = CellStore(store)
    monkeypatch.setenv(VARIABLE, "zarr")
    slow = CellStore(store)
    assert isinstance(fast._rows, ShardRows)
    assert isinstance(slow._rows, ZarrRows)
    return fast, slow


@pytest.mark.parametrize("profile", ["fast", "small"])
@pytest.mark.parametrize("kind", COUNTS)
def test_both_readers_give_the_same_blocks_bit_for_bit(write_h5ad, tmp_path, monkeypatch, kind: str, profile: str):
    monkeypatch.setattr(cell_store, "CHUNK", 16)
    monkeypatch.setattr(cell_store, "BLOCK_CHUNKS", 3)
    monkeypatch.setattr(cell_store, "SHARD_BLOCKS", 2)
    ingest(write_h5ad("a", COUNTS[kind]), tmp_path / "store", empty_cells="keep", profile=profile, workers=1)
    fast, slow = open_both(tmp_path / "store", monkeypatch)
    n_blocks = len(fast.block_starts) - 1
    assert n_blocks > 3
    total = 0
    for block in range(n_blocks):
        ours, reference = fast.read_block(block), slow.read_block(block)
        assert ours.first == reference.first
        assert np.array_equal(ours.lengths, reference.lengths)
        for mine, plain in zip(ours.to_csr(), reference.to_csr(), strict=True):
            assert mine.dtype == plain.dtype
            assert mine.tobytes() == plain.tobytes()
        total += reference.to_csr()[2].sum(dtype=np.int64)
    assert total == COUNTS[kind].sum(dtype=np.float64)


def test_both_readers_refuse_a_flipped_byte(write_h5ad, tmp_path: Path, monkeypatch):
    ingest(write_h5ad("a", COUNTS["uint16"]), tmp_path / "store", workers=1)
    both = open_both(tmp_path / "store", monkeypatch)
    for name in ("data", "indices", "indptr"):
        shard = tmp_path / "store" / "X" / name / "c" / "0"
        content = shard.read_bytes()
        shard.write_bytes(content[:40] + bytes([content[40] ^ 1]) + content[41:])
        for store in both:
            with pytest.raises((DamagedChunkError, SourceError), match=r"block 0|replaced"):
                store.read_block(0)
        shard.write_bytes(content)


def test_a_reader_that_there_is_not_is_named(write_h5ad, tmp_path: Path, monkeypatch):
    ingest(write_h5ad("a", COUNTS["uint8"]), tmp_path / "store", workers=1)
    monkeypatch.setenv(VARIABLE, "tiledb")
    with pytest.raises(SourceError, match="ATLASVI_READER is 'tiledb': it can be 'shards' or 'zarr'"):
        CellStore(tmp_path / "store")
