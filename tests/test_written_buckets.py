"""What is written to a bucket is what is written to disk, bit by bit; a job that was killed there is continued."""

from datetime import datetime, tzinfo
from pathlib import Path

import pytest

from atlasvi.engine import provenance
from atlasvi.engine.minified.minify import minify
from atlasvi.engine.model.trained_run import load_run
from atlasvi.engine.scvi_tools.model_directories import open_model
from atlasvi.engine.training.train import train
from atlasvi.loaders.errors import OutputError
from atlasvi.loaders.ingestion.ingest import ingest
from tests.engine.training.small_runs import FREQUENT, Killed, assert_same_run, at_step, write_cells
from tests.s3_server import Bucket


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with cells, their store, and a run over it; no test changes it."""
    folder = tmp_path_factory.mktemp("made")
    ingest(write_cells(folder / "cells.h5ad"), folder / "store", workers=1)
    train(folder / "store", folder / "run", **FREQUENT)
    return folder


class NoClock(datetime):
    """The same time always: it is in the provenance of what is made."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> "NoClock":
        return cls(2026, 1, 1, tzinfo=tz)


@pytest.fixture(autouse=True)
def _no_clock(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(provenance, "datetime", NoClock)


def read_files(folder: Path) -> dict[str, bytes]:
    """The content of all files below a folder, by their paths in it."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def assert_same_files(folder: Path, bucket: Bucket, name: str) -> None:
    """The bucket holds what the folder holds, and nothing is left of its making."""
    there, here = bucket.get(name), read_files(folder)
    assert there.keys() == here.keys()
    assert [each for each in here if here[each] != there[each]] == []
    assert not [each for each in bucket.get() if ".unfinished" in each]


def test_a_cell_store_is_written_to_a_bucket_as_to_disk(made: Path, bucket: Bucket):
    ingest(made / "cells.h5ad", f"{bucket.url}/store", workers=1)
    assert_same_files(made / "store", bucket, "store")


@pytest.mark.parametrize("source_order", [False, True])
def test_a_minified_store_is_written_to_a_bucket_as_to_disk(
    source_order: bool, made: Path, bucket: Bucket, tmp_path: Path
):
    for out in (tmp_path / "mini", f"{bucket.url}/mini"):
        minify(made / "run", made / "store", out, source_order=source_order, batch_size=20)
    assert_same_files(tmp_path / "mini", bucket, "mini")


def test_a_run_in_a_bucket_is_resumed_by_a_process_that_has_nothing_else(
    made: Path, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def kill() -> None:
        raise Killed

    out = f"{bucket.url}/run"
    at_step(monkeypatch, 8, kill)
    with pytest.raises(Killed):
        train(made / "store", out, **FREQUENT)
    assert any(name.startswith("checkpoints/step-") for name in bucket.get("run"))
    with pytest.raises(OutputError, match=f"{out}: this is an unfinished run already: resume it"):
        train(made / "store", out, **FREQUENT)
    monkeypatch.chdir(tmp_path)
    resumed = train(made / "store", out, resume=True)
    whole = load_run(made / "run")
    assert_same_run(whole, resumed)
    assert_same_run(whole, open_model(out))
    here, there = read_files(made / "run"), bucket.get("run")
    named_by_time = ("checkpoints/", "tensorboard/")
    assert [name for name in sorted({*here} ^ {*there}) if not name.startswith(named_by_time)] == []
    assert list(tmp_path.iterdir()) == []
