"""Coordinates are written into a finished store whole or not at all, and read by row from all minified data."""

import shutil
from pathlib import Path

import anndata
import numpy as np
import pytest

from atlasvi.engine.cli.checking import check
from atlasvi.engine.cli.describe import describe
from atlasvi.engine.minified.embedding import SCRATCH, writing_embedding
from atlasvi.engine.minified.minified_anndata import MinifiedAnnData
from atlasvi.engine.minified.minified_by_scvi_tools import open_minified
from atlasvi.engine.minified.minified_h5ad import write_minified_h5ad
from atlasvi.engine.minified.minified_store import MinifiedStore
from atlasvi.engine.neighbours.index_file import identify_latents
from atlasvi.loaders.errors import OutputError, SourceError
from atlasvi.loaders.manifest import read_manifest
from atlasvi.loaders.outputs import lock_folder

N = 60  # cells of `forms`
PLACES = np.random.default_rng(0).normal(size=(N, 2)).astype(np.float32)


@pytest.fixture
def mini(forms: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(forms / "x.mini", tmp_path / "x.mini"))


def write(mini: Path, places: np.ndarray = PLACES, replace: bool = False) -> None:
    with writing_embedding(MinifiedStore(mini), {"method": "test"}, replace) as append:
        append(places[:25])
        append(places[25:])


def test_coordinates_are_read_by_row_and_listed_with_the_other_files(mini: Path):
    before = identify_latents(MinifiedStore(mini))
    assert not MinifiedStore(mini).has_embedding
    write(mini)
    store, rows = MinifiedStore(mini), np.array([0, 3, 31, 59])
    assert store.has_embedding
    assert store.read_embedding().dtype == np.float32
    np.testing.assert_array_equal(store.read_embedding(), PLACES)
    np.testing.assert_array_equal(store.read_embedding(slice(10, 20)), PLACES[10:20])
    np.testing.assert_array_equal(store.read_embedding(rows), PLACES[rows])
    files = read_manifest(mini)
    assert files is not None
    assert any(name.startswith("obsm/X_umap/c") for name in files)
    assert not any(SCRATCH in name for name in files)
    assert list(check(mini))[-1].endswith("nothing is damaged")
    assert "  embedding: obsm X_umap" in list(describe(mini))
    assert identify_latents(store) == before  # an index of neighbours stays valid
    np.testing.assert_array_equal(anndata.read_zarr(mini).obsm["X_umap"], PLACES)


def test_exported_file_and_anndata_have_the_coordinates(mini: Path, tmp_path: Path):
    write(mini)
    write_minified_h5ad(mini, tmp_path / "x.h5ad")
    adata = anndata.read_h5ad(tmp_path / "x.h5ad")
    np.testing.assert_array_equal(adata.obsm["X_umap"], PLACES)
    for cells in (open_minified(tmp_path / "x.h5ad"), MinifiedAnnData(adata)):
        assert cells.has_embedding
        np.testing.assert_array_equal(cells.read_embedding(np.array([2, 50])), PLACES[[2, 50]])
        np.testing.assert_array_equal(cells.read_embedding(slice(5, 9)), PLACES[5:9])
    adata.obsm["X_umap"] = np.zeros((N, 3))  # a UMAP in three dimensions
    assert not MinifiedAnnData(adata).has_embedding


def test_coordinates_that_are_there_are_replaced_only_if_asked(mini: Path):
    write(mini)
    with pytest.raises(OutputError, match=r"obsm has X_umap already: keep it, or make it anew \(--replace"):
        write(mini, -PLACES)
    np.testing.assert_array_equal(MinifiedStore(mini).read_embedding(), PLACES)
    write(mini, -PLACES, replace=True)
    np.testing.assert_array_equal(MinifiedStore(mini).read_embedding(), -PLACES)
    assert list(check(mini))[-1].endswith("nothing is damaged")


def test_an_error_leaves_the_store_as_it_was(mini: Path):
    before = sorted(file.name for file in mini.rglob("*"))
    with pytest.raises(KeyboardInterrupt), writing_embedding(MinifiedStore(mini), {}) as append:
        append(PLACES[:25])
        raise KeyboardInterrupt
    with pytest.raises(ValueError, match="25 of 60 cells"), writing_embedding(MinifiedStore(mini), {}) as append:
        append(PLACES[:25])
    assert sorted(file.name for file in mini.rglob("*")) == before
    (mini / SCRATCH / "X_umap").mkdir(parents=True)  # left by a killed process
    write(mini)
    assert not (mini / SCRATCH).exists()


def test_a_store_without_coordinates_and_one_in_use_say_so(mini: Path):
    with pytest.raises(SourceError, match=r"obsm has no X_umap .* with: atlasvi embed MINI\."):
        MinifiedStore(mini).read_embedding()
    with (
        lock_folder(mini, "busy"),
        pytest.raises(OutputError, match="another process is changing it: wait for it"),
    ):
        write(mini)


def test_a_damaged_chunk_of_coordinates_is_noticed(mini: Path):
    write(mini)
    chunk = next(file for file in (mini / "obsm" / "X_umap" / "c").rglob("*") if file.is_file())
    content = bytearray(chunk.read_bytes())
    content[5] ^= 1
    chunk.write_bytes(content)
    with pytest.raises(SourceError, match="does not match its checksum"):
        MinifiedStore(mini).read_embedding()
