from pathlib import Path

import pytest
import zarr

from atlasvi.engine.cli.checking import DamageError, check
from atlasvi.engine.minified.minify import minify
from atlasvi.engine.training.checkpoint_files import CheckpointError
from atlasvi.engine.training.train import train
from atlasvi.loaders.ingestion.ingest import ingest
from atlasvi.loaders.manifest import MANIFEST
from tests.engine.training.small_runs import SMALL, write_cells


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with a cell store, a run and a minified store."""
    folder = tmp_path_factory.mktemp("made")
    ingest(write_cells(folder / "cells.h5ad"), folder / "store")
    train(folder / "store", folder / "run", batch_key="batch", epochs=1, device="cpu", settings=SMALL)
    minify(folder / "run", folder / "store", folder / "mini", device="cpu")
    return folder


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("store", "1 block of counts and 200 rows of obs decoded"),
        ("run", "2 checkpoints read"),
        ("mini", "latents and obs of 200 cells, and the model, decoded"),
        ("cells.h5ad", "200 rows of obs decoded"),
    ],
)
def test_what_is_whole_is_said_to_be(made: Path, name: str, said: str):
    lines = list(check(made / name))
    assert any(said in line for line in lines)
    assert lines[-1] == f"{made / name}: nothing is damaged"
    assert ("checked against their sizes and checksums" in lines[0]) == (name != "cells.h5ad")


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("store", "X/data/c/0"),
        ("store", "obs/batch/codes/c/0"),
        ("run", "metrics.jsonl"),
        ("run", "checkpoints"),
        ("mini", "obsm/scvi_latent_qzm/c/0/0"),
        ("mini", "uns/atlasvi/weights/log_theta/c/0"),
    ],
)
def test_a_flipped_bit_and_a_missing_file_are_found_and_named(made: Path, name: str, file: str):
    path = made / name / file
    path = max(path.iterdir()) if path.is_dir() else path
    content = path.read_bytes()
    try:
        path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
        with pytest.raises(DamageError, match=r"is damaged: \d problems?, the first: .*damaged"):
            list(check(made / name))
        if file != "checkpoints":
            path.unlink()
            with pytest.raises(DamageError, match=rf"{path.name} is missing"):
                list(check(made / name))
    finally:
        path.write_bytes(content)


def test_training_further_refuses_an_older_checkpoint_than_the_run_ended_with(made: Path, tmp_path: Path):
    newest = max((made / "run/checkpoints").iterdir())
    content = newest.read_bytes()
    try:
        newest.write_bytes(content[:-1] + b"x")
        with pytest.raises(CheckpointError, match=rf"{newest.name} is damaged, and it is the newest checkpoint"):
            train(made / "store", tmp_path / "further", start=made / "run", epochs=1, device="cpu")
        newest.unlink()
        with pytest.raises(CheckpointError, match=r"the newest checkpoint is of step 0, and the run ended at step 6"):
            train(made / "store", tmp_path / "further", start=made / "run", epochs=1, device="cpu")
    finally:
        newest.write_bytes(content)
    assert not (tmp_path / "further").exists()


def test_without_a_list_of_files_it_is_said_what_was_not_compared(made: Path):
    path = made / "run" / MANIFEST
    content = path.read_bytes()
    path.unlink()
    try:
        assert "it has no list of its files" in next(iter(check(made / "run")))
    finally:
        path.write_bytes(content)


def test_a_store_that_was_changed_on_purpose_is_taken_as_it_is(tmp_path: Path):
    ingest(write_cells(tmp_path / "cells.h5ad", n_cells=40), tmp_path / "store")
    root = zarr.open_group(tmp_path / "store", mode="r+", use_consolidated=False)
    root["obs/lane"][:] = 7
    with pytest.raises(DamageError, match="check --renew"):
        list(check(tmp_path / "store"))
    assert "a new list of its files was written" in next(iter(check(tmp_path / "store", renew=True)))
    assert list(check(tmp_path / "store"))[-1].endswith("nothing is damaged")


def test_what_is_nothing_of_these_is_said(tmp_path: Path):
    with pytest.raises(DamageError, match="nothing there"):
        list(check(tmp_path / "nothing there"))
