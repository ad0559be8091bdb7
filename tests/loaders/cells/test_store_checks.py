"""Cell stores that were damaged, copied in part, or made to mislead: each is noticed, none reaches compiled code."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import pytest
import zarr

from atlasvi.loaders.arrays.shard_writing import ShardWriter, create_sharded
from atlasvi.loaders.batches.loader import BatchLoader
from atlasvi.loaders.cells import cell_store
from atlasvi.loaders.cells.open_cells import CellStore
from atlasvi.loaders.errors import SourceError
from atlasvi.loaders.ingestion.ingest import ingest
from atlasvi.loaders.manifest import MANIFEST
from atlasvi.loaders.sources.open_source import open_source
from tests.loaders.conftest import make_counts, write_counts


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    ingest(write_counts(folder, "a", make_counts(200, 60)), folder / "store")
    return folder / "store"


@pytest.fixture
def store(built: Path, tmp_path: Path) -> Path:
    """A store of this test's own, which it may change."""
    return shutil.copytree(built, tmp_path / "store")


def make_old(store: Path) -> None:
    """As a version before the list of files wrote it."""
    (store / MANIFEST).unlink()
    change_attributes(store, lambda attributes: attributes.pop("manifest"))


def change_attributes(store: Path, change: Callable[[dict], object]) -> None:
    root = json.loads((store / "zarr.json").read_text())
    change(root["attributes"]["atlasvi"])
    (store / "zarr.json").write_text(json.dumps(root))


def rewrite(store: Path, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Change an array of X, all checksums made right again."""
    make_old(store)
    opened = CellStore(store)
    data, indices = cell_store.layouts(opened.attributes)
    layout = {"data": data, "indices": indices, "indptr": cell_store.INDPTR_LAYOUT}[name]
    root = zarr.open_group(store, mode="r+", use_consolidated=False)
    values = change(root[f"X/{name}"][:])
    writer = ShardWriter(create_sharded(root["X"], f"{name}_new", len(values), layout), layout)
    writer.append(values)
    writer.close()
    (store / "X" / name / "c" / "0").write_bytes((store / "X" / f"{name}_new" / "c" / "0").read_bytes())


def put(at: int, value: int) -> Callable[[np.ndarray], np.ndarray]:
    def change(values: np.ndarray) -> np.ndarray:
        values[at] = value
        return values

    return change


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("indptr", put(100, 2**60)),
        ("indptr", put(100, -5)),
        ("indptr", put(-1, 2**40)),
        ("indices", put(500, 65_535)),
        ("indices", lambda values: values[::-1]),
        ("indices", lambda values: values + 1),
        ("indices", lambda values: np.repeat(values[::2], 2)[: len(values)]),
    ],
)
def test_pointers_and_genes_that_leave_their_arrays_are_refused_though_checksums_are_right(store: Path, name, change):
    rewrite(store, name, change)
    with pytest.raises(SourceError, match=r"block 0 .*store.* is damaged \(.*\): copy the store"):
        list(BatchLoader(store, 32, seed=0))


def test_a_store_over_fewer_genes_than_its_counts_is_refused(store: Path):
    make_old(store)
    root = zarr.open_group(store, mode="r+")
    root["var/_index"].resize((30,))
    with pytest.raises(SourceError, match=r"var has 30 genes, and X 60"):
        CellStore(store)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("format_version", "2"),
        ("n_cells", -1),
        ("n_cells", 199),
        ("n_cells", 10**15),
        ("nnz", 10**15),
        ("nnz", None),
        ("chunk", 0),
        ("chunk", 2**50),
        ("block_chunks", 2**40),
        ("counts_dtype", "<f8"),
        ("counts_dtype", 5),
        ("indices_dtype", "what"),
        ("codecs", []),
        ("codecs", {}),
        ("sources", 3),
        ("n_genes", 61),
    ],
)
def test_attributes_of_another_type_or_size_are_said_in_a_sentence(store: Path, name: str, value: object):
    make_old(store)
    change_attributes(store, lambda attributes: attributes.update({name: value}))
    with pytest.raises(SourceError, match=r"damaged"):
        CellStore(store)


def test_blocks_that_are_not_all_cells_one_after_the_other_are_refused(store: Path):
    make_old(store)
    root = zarr.open_group(store, mode="r+")
    root["uns/atlasvi/block_starts"][:] = [0, 10**12]
    with pytest.raises(SourceError, match="block_starts is damaged"):
        CellStore(store)


def test_every_file_of_a_new_store_is_missed_when_it_is_gone(store: Path):
    CellStore(store)
    for path in [path for path in store.rglob("*") if path.is_file() and path != store / "zarr.json"]:
        content = path.read_bytes()
        path.unlink()
        with pytest.raises(SourceError, match=rf"{path.name} is missing: copy"):
            CellStore(store)
        path.write_bytes(content[:-2])
        with pytest.raises(SourceError, match="damaged"):
            CellStore(store)
        path.write_bytes(content)
    CellStore(store)


def test_a_chunk_that_is_missing_is_noticed_also_where_a_store_is_a_source(store: Path, tmp_path: Path):
    open_source(store).close()
    shutil.rmtree(store / "obs/n/c")  # Zarr reads zeros instead
    with pytest.raises(SourceError, match=r"obs/n/c/0 is missing: copy"):
        ingest([store], tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_a_flipped_bit_anywhere_is_noticed_when_it_is_opened_or_read(store: Path):
    for path in [path for path in store.rglob("*") if path.is_file() and path != store / "zarr.json"]:
        whole = path.read_bytes()
        for at in {0, len(whole) // 2, len(whole) - 1}:
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
            if path.name == MANIFEST and at in (0, len(whole) - 1):
                continue  # white space and braces of JSON
            with pytest.raises(SourceError, match="damaged"):
                opened = CellStore(store)
                opened.read_block(0)
                for name in opened.obs_columns:
                    opened.read_column(name)
                opened.read_obs(0, 1)
        path.write_bytes(whole)


def test_the_list_of_files_is_right_to_the_byte_and_anndata_reads_the_store(store: Path):
    from atlasvi.loaders.manifest import check_files, read_manifest

    files = read_manifest(store)
    assert files is not None
    check_files(store, files, lambda name: True)
    assert set(files) == {str(path.relative_to(store)) for path in store.rglob("*") if path.is_file()} - {MANIFEST}
    assert anndata.read_zarr(store).shape == (200, 60)


@pytest.mark.parametrize("lost", ["obs/batch/codes", "obs/_index", "var/_index", "obs/source_row"])
def test_a_chunk_that_an_older_store_has_lost_is_noticed_where_it_can_be(store: Path, lost: str):
    make_old(store)
    (store / lost / "c" / "0").unlink()
    with pytest.raises(SourceError, match=rf"{lost}/c/0 is missing"):
        CellStore(store)


def test_of_an_older_store_zeros_are_read_with_a_word(store: Path, caplog):
    make_old(store)
    shutil.rmtree(store / "obs" / "source" / "codes" / "c")  # all cells are of the first source: no chunk was written
    (store / "obs" / "n" / "c" / "0").unlink()
    with caplog.at_level(logging.WARNING):
        opened = CellStore(store)
        assert not caplog.text
        assert not opened.read_column("n").any()
    assert "obs/n/c/0 is missing: its values are zero, or were lost" in caplog.text
