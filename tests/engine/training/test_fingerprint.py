"""Whether a run goes on with the data that it was started with, in the same or in another format."""

import os
import signal
from pathlib import Path

import anndata
import pytest

from atlasvi.engine.distributed.signals import TrainingInterrupted
from atlasvi.engine.training.fingerprint import SAMPLE_CELLS, fingerprint, hash_sample
from atlasvi.engine.training.settings import SettingError
from atlasvi.engine.training.train import train
from atlasvi.loaders.cells.memory_cells import MemoryCells
from atlasvi.loaders.cells.open_cells import open_cells, select_genes
from atlasvi.loaders.ingestion.ingest import ingest
from atlasvi.loaders.manifest import read_json, write_json
from tests.engine.training.small_runs import SCHEDULE, STEPS_AN_EPOCH, at_step, write_cells


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same cells in four formats; those of the store are in another order."""
    folder = tmp_path_factory.mktemp("forms")
    forms = {name: folder / f"cells.{name}" for name in ("h5ad", "zarr", "store")}
    write_cells(forms["h5ad"])
    anndata.read_h5ad(forms["h5ad"]).write_zarr(forms["zarr"])
    ingest(forms["h5ad"], forms["store"], seed=1)
    return forms


def test_a_sample_of_cells_has_the_same_hash_in_every_format_and_another_in_other_data(forms: dict[str, Path]):
    opened = {name: open_cells(path) for name, path in forms.items()}
    adata = anndata.read_h5ad(forms["h5ad"])
    expected = hash_sample(MemoryCells(adata))
    assert {hash_sample(cells) for cells in opened.values()} == {expected}
    assert fingerprint(opened["store"])["first_block_sha256"] != fingerprint(opened["h5ad"])["first_block_sha256"]
    assert hash_sample(select_genes(opened["store"], list(adata.var_names[::-1]))) != expected
    assert hash_sample(MemoryCells(adata[::-1].copy())) != expected
    assert hash_sample(MemoryCells(adata[: SAMPLE_CELLS - 3].copy())) != expected
    adata.X = adata.X * 2
    assert hash_sample(MemoryCells(adata)) != expected


@pytest.mark.parametrize(("first", "then"), [("h5ad", "store"), ("store", "zarr")])
def test_a_run_goes_on_with_the_same_cells_in_another_format(
    forms: dict[str, Path], tmp_path: Path, monkeypatch, caplog, first: str, then: str
):
    at_step(monkeypatch, 1, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(TrainingInterrupted):
        train(forms[first], tmp_path / "run", **SCHEDULE)
    run = train(forms[then], tmp_path / "run", resume=True)
    assert run.result["steps"] == 3 * STEPS_AN_EPOCH
    assert "visits some cells twice" in caplog.text


def test_other_cells_in_another_format_are_refused_and_so_is_a_run_that_kept_no_sample(
    forms: dict[str, Path], tmp_path: Path, monkeypatch
):
    at_step(monkeypatch, 1, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(TrainingInterrupted):
        train(forms["h5ad"], tmp_path / "run", **SCHEDULE)
    ingest(write_cells(tmp_path / "other.h5ad", seed=1), tmp_path / "other.store")
    with pytest.raises(SettingError, match="the run was started with other data"):
        train(tmp_path / "other.store", tmp_path / "run", resume=True)
    config = tmp_path / "run" / "config.json"
    saved = read_json(config)
    write_json(config, {**saved, "split_column": "_atlasvi_part"})  # by the indices of cells, which differ in the store
    with pytest.raises(SettingError, match="the run was started with other data"):
        train(forms["store"], tmp_path / "run", resume=True)
    del saved["sample_sha256"]
    write_json(config, saved)
    with pytest.raises(SettingError, match="the run was started with other data"):
        train(forms["store"], tmp_path / "run", resume=True)
    assert train(forms["h5ad"], tmp_path / "run", resume=True).result["steps"] > 1
