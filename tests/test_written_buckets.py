"""What is written to a bucket is what is written to disk, bit by bit; a job that was killed there is continued."""

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, tzinfo
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from atlasvi.engine import SCVI, provenance
from atlasvi.engine.card import make_card as card_module
from atlasvi.engine.cli.commands import app
from atlasvi.engine.minified import minify_parts
from atlasvi.engine.minified.minify import minify
from atlasvi.engine.model.trained_run import load_run
from atlasvi.engine.scvi_tools.model_directories import open_model
from atlasvi.engine.training.train import train
from atlasvi.loaders.cells.open_cells import open_cells
from atlasvi.loaders.errors import AtlasviError, OutputError, SourceError
from atlasvi.loaders.ingestion import bucket_sorting as sorting
from atlasvi.loaders.ingestion.ingest import ingest
from atlasvi.loaders.ingestion.ingest_job import open_ingests
from atlasvi.loaders.places import connections, requests
from atlasvi.loaders.places.object_path import to_place
from atlasvi.loaders.workers import Task, Workers, run_task
from tests.engine.training.small_runs import FREQUENT, SMALL, Killed, assert_same_run, at_step, write_cells
from tests.faulty_proxy import run_proxy
from tests.s3_server import KEY, SECRET, Bucket


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


obstore = pytest.importorskip("obstore")
REFUSALS = ["500", *(pytest.param(fault, marks=pytest.mark.slow) for fault in ("expired", "denied"))]


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


@pytest.mark.slow
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
    with pytest.raises(Killed), killed_before("run/config.json"):
        train(made / "store", out, **FREQUENT)
    assert bucket.get("run")
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


@contextmanager
def killed_before(name: str) -> Iterator[None]:
    """A process that is killed when it begins to write this object: nothing is written or removed any more."""
    dead = list[bool]()
    with pytest.MonkeyPatch.context() as patch:

        def watch(act: str) -> None:
            call = getattr(obstore, act)

            def check(store: object, *rest: object, **options: object) -> object:
                target = rest[-1] if act == "copy" else rest[0]
                if act != "delete" and str(target).endswith(name):
                    dead.append(True)
                if dead:
                    raise Killed
                return call(store, *rest, **options)

            patch.setattr(obstore, act, check)

        for act in ("put", "copy", "delete"):
            watch(act)
        yield


def test_an_ingest_that_is_killed_while_it_writes_to_a_bucket_leaves_no_store_and_is_continued(
    made: Path, bucket: Bucket
):
    out = f"{bucket.url}/store"
    for point in ("sorted/000000.json", "encoded/000000.npz", "result/manifest.json", "store/obs/zarr.json"):
        with pytest.raises(Killed), killed_before(point):
            ingest(made / "cells.h5ad", out, workers=1)
        with pytest.raises(SourceError, match=f"{out}: (there is no such file or folder|a folder of no known format)"):
            open_cells(out)
    assert bucket.get("store")
    with killed_before("sorted/000000.json"):  # which was written already
        ingest(made / "cells.h5ad", out, workers=1)
    assert_same_files(made / "store", bucket, "store")
    with pytest.raises(OutputError, match=f"{out} exists already"):
        ingest(made / "cells.h5ad", out, workers=1)


@pytest.mark.slow
def test_what_a_killed_job_has_copied_is_removed_by_another_job_and_what_others_wrote_is_not(
    made: Path, bucket: Bucket
):
    out = f"{bucket.url}/store"
    with pytest.raises(Killed), killed_before("store/zarr.json"):
        ingest(made / "cells.h5ad", out, workers=1, seed=3)
    bucket.put(made / "cells.h5ad", "store/cells.h5ad")
    before = bucket.get("store")
    with pytest.raises(OutputError, match=r"store exists already: choose another place"):
        ingest(made / "cells.h5ad", out, workers=1)
    assert bucket.get("store") == before
    bucket.remove("store/cells.h5ad")
    ingest(made / "cells.h5ad", out, workers=1)
    assert_same_files(made / "store", bucket, "store")


def test_a_minify_that_is_killed_while_it_writes_to_a_bucket_is_continued_with_the_parts_that_are_left(
    made: Path, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(minify_parts, "LEAST_PART_CELLS", 20)
    out, options = f"{bucket.url}/mini", {"batch_size": 20, "source_order": True}
    minify(made / "run", made / "store", tmp_path / "mini", **options)
    with pytest.raises(Killed), killed_before("done/encoded-3"):
        minify(made / "run", made / "store", out, **options)
    assert not bucket.get("mini")
    with killed_before("done/encoded-2"):  # which was written already
        minify(made / "run", made / "store", out, **options)
    assert_same_files(tmp_path / "mini", bucket, "mini")


@pytest.mark.slow
def test_writing_through_a_bad_network_gives_the_same_files(
    made: Path, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for module in (requests, connections):
        monkeypatch.setattr(module, "LIMITS", requests.Limits(first_pause=0.01, longest_pause=0.05, silence=0.5))
    bad = ["500", "503", "refused", "reset", "broken off", None, None, None, None, None]
    with run_proxy(bucket.endpoint) as proxy:
        monkeypatch.setenv("ATLASVI_STORAGE", f"endpoint={proxy.endpoint}")
        proxy.faults = np.random.default_rng(0).choice(np.array(bad, object), 10_000).tolist()
        ingest(made / "cells.h5ad", f"{bucket.url}/store", workers=1)
        resumed = train(made / "store", f"{bucket.url}/run", **FREQUENT)
        assert len(proxy.faults) < 9_800
        assert_same_run(load_run(made / "run"), resumed)
    assert_same_files(made / "store", bucket, "store")


@pytest.mark.parametrize(
    "fault", ["500", *(pytest.param(each, marks=pytest.mark.slow) for each in ("expired", "denied"))]
)
def test_a_bucket_that_takes_nothing_ends_the_job_with_a_sentence_that_names_the_object(
    fault: str, made: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
):
    for module in (requests, connections):
        monkeypatch.setattr(module, "LIMITS", requests.Limits(total=0.3, first_pause=0.01, longest_pause=0.05))
    out = f"{bucket.url}/store"
    with run_proxy(bucket.endpoint) as proxy:
        monkeypatch.setenv("ATLASVI_STORAGE", f"endpoint={proxy.endpoint}")
        proxy.faults = [None] * 30 + [fault] * 1000
        sentence = {
            "500": r"it can't be (written|read) \(\d+ attempts",
            "expired": "the credentials have expired",
            "denied": "no permission to (write|read) it",
        }[fault]
        with pytest.raises(AtlasviError, match=rf"^{bucket.url}/\S+: {sentence}"):
            ingest(made / "cells.h5ad", out, workers=1)
    monkeypatch.setenv("ATLASVI_STORAGE", f"endpoint={bucket.endpoint}")
    ingest(made / "cells.h5ad", out, workers=1)
    assert_same_files(made / "store", bucket, "store")


def test_tasks_that_know_nothing_but_the_address_of_their_job_write_the_same(
    made: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
):
    def run(self: Workers, tasks: list[Task], done: Callable[[Task], None], here: bool = False) -> None:
        for task in tasks:
            for kept in (open_ingests, sorting.kept_parts):
                kept.forget(to_place(task[1]))
            run_task(task)
            done(task)

    monkeypatch.setattr(Workers, "run", run)
    monkeypatch.setattr(sorting, "UNIT_NNZ", 1500)  # in each of three tasks; the store stays the same
    ingest(made / "cells.h5ad", f"{bucket.url}/store")
    assert_same_files(made / "store", bucket, "store")


@pytest.mark.slow
def test_workers_of_a_dask_cluster_that_share_nothing_but_a_bucket_write_the_same(
    made: Path, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    distributed = pytest.importorskip("distributed")
    monkeypatch.setattr(minify_parts, "LEAST_PART_CELLS", 20)
    monkeypatch.setattr(sorting, "UNIT_NNZ", 1500)
    data, options = bucket.put(made / "cells.h5ad", "cells.h5ad"), {"batch_size": 20, "source_order": True}
    ingest(data, tmp_path / "store", workers=1)
    minify(made / "run", data, tmp_path / "mini", **options)
    reached = os.environ["ATLASVI_STORAGE"]
    monkeypatch.delenv("ATLASVI_STORAGE")  # workers have credentials, and are not told where the server is
    with distributed.LocalCluster(n_workers=2, threads_per_worker=2, dashboard_address=None) as cluster:
        monkeypatch.setenv("ATLASVI_STORAGE", reached)
        ingest(data, f"{bucket.url}/store", dask=cluster.scheduler_address)
        minify(made / "run", data, f"{bucket.url}/mini", dask=cluster.scheduler_address, **options)
    assert_same_files(tmp_path / "store", bucket, "store")
    different = {name for name, content in read_files(tmp_path / "mini").items() if bucket.get("mini")[name] != content}
    assert different <= {"zarr.json", "manifest.json"}, "the provenance holds another command and time"


@pytest.mark.slow
def test_the_commands_write_to_a_bucket_and_read_what_they_wrote(
    made: Path, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def call(*words: object) -> str:
        answer = CliRunner().invoke(app, [*map(str, words), "--storage", f"endpoint={bucket.endpoint}"])
        assert answer.exit_code == 0, answer.exception or answer.output
        assert "s3:/" not in answer.output.replace("s3://", "")
        return answer.output

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ATLASVI_STORAGE", "")
    monkeypatch.setattr(card_module, "place_cells", lambda latent, seed: ("PCA", latent[:, :2].astype(float)))
    store, run, card, further = (f"{bucket.url}/{name}" for name in ("store", "run", "card", "further"))
    monkeypatch.setattr("atlasvi.engine.minified.minify_parts.LEAST_PART_CELLS", 100)
    assert f"{store}: 200 cells" in call("ingest", made / "cells.h5ad", "--out", store)
    small = [f"--set={name}={value}" for name, value in SMALL.items()]
    call("train", store, "--out", run, "--batch-key", "batch", "--epochs", 1, *small)
    assert "already" in call("train", store, "--out", run, "--resume")
    assert f"{run}: run of atlasvi" in call("info", run)
    assert f"{run}: nothing is damaged" in call("check", run)
    assert "200 cells" in call("minify", run, store, "--out", f"{run}.mini", "--batch-size", 100)
    assert "minified store" in call("info", f"{run}.mini")
    kept, encoded = (
        pd.read_csv(io.StringIO(call("query", *words, "latent", "--limit", 3)), index_col=0, comment="#")
        for words in ((f"{run}.mini",), (run, store))
    )
    pd.testing.assert_frame_equal(kept, encoded, rtol=1e-4)  # of other minibatches, whose sums round otherwise
    assert f"{card}/card.html" in call("card", run, store, "--out", card, "--draws", 1, "--labels-key", "type")
    assert f"{card}: card of" in call("info", card)
    call("train", store, "--out", further, "--start", run, "--epochs", 1)
    assert f"{further}: run of atlasvi" in call("info", further)
    loaded = SCVI.load(run)
    assert loaded.module.n_latent == SMALL["n_latent"]
    assert list(tmp_path.iterdir()) == []
    secret = KEY.encode(), SECRET.encode()
    assert not [name for name, content in bucket.get().items() if any(each in content for each in secret)]
