"""A minify in parts: whoever does them, in however many attempts, the store is the same to the byte."""

import json
import os
import shutil
import signal
import zipfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import anndata
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from atlasvi.engine.distributed.signals import EXIT_RESUMABLE
from atlasvi.engine.minified import minify as posterior
from atlasvi.engine.minified import minify_parts
from atlasvi.engine.minified.minified_store import MinifiedStore
from atlasvi.engine.minified.minify import minify
from atlasvi.engine.model.covariates import Setup
from atlasvi.engine.model.trained_run import TrainedRun
from atlasvi.engine.model.vae import VAE, ModelSettings
from atlasvi.loaders.errors import SourceError
from atlasvi.loaders.ingestion.ingest import ingest
from atlasvi.loaders.manifest import write_json
from tests.engine.distributed.rank_processes import end_ranks, run_ranks, start_ranks
from tests.engine.training.small_runs import write_cells

PART_CELLS = 50  # of 400 cells

SETUP = Setup.from_saved({"batch_key": "batch", "batch_categories": ["b1", "b2", "b3"]})


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cells")
    ingest([write_cells(folder / f"{seed}.h5ad", seed=seed) for seed in range(2)], folder / "store")
    return folder / "store"


@pytest.fixture
def cells(built: Path, tmp_path: Path) -> Path:
    """A store of 400 cells from two sources."""
    return shutil.copytree(built, tmp_path / "store")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The directory of a model with drawn weights."""
    settings = ModelSettings(n_genes=30, n_batches=3, n_hidden=16, n_latent=4, n_layers=2)
    model = VAE(settings, torch.Generator().manual_seed(0)).eval()
    (tmp_path / "run").mkdir()
    TrainedRun(
        model,
        [f"g{k}" for k in range(30)],
        SETUP,
    ).save(tmp_path / "run")
    for name in ("config.json", "result.json"):
        write_json(tmp_path / "run" / name, {})
    return tmp_path / "run"


@pytest.fixture
def small_parts(monkeypatch) -> None:
    monkeypatch.setattr(minify_parts, "choose_part_cells", lambda n_cells, batch_size: PART_CELLS)


def files_of(folder: Path) -> dict[str, object]:
    """The files of a store by their names, without what says when and how it was made."""
    files: dict[str, object] = {
        str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }
    del files["manifest.json"]  # has the checksum of zarr.json
    root = json.loads((folder / "zarr.json").read_text())
    assert root["attributes"]["atlasvi"].pop("provenance")["created"]
    return files | {"zarr.json": root}


def minify_on_rank(run: Path, cells: Path, out: Path, source_order: bool, signal_at: int = -1) -> None:
    """Minify in small parts; rank 1 sends itself SIGTERM as it comes to a part."""
    minify_parts.choose_part_cells = lambda n_cells, batch_size: PART_CELLS
    encode = minify_parts.encode_parts

    def encode_and_note(scratch: str, parts: list[int]) -> Iterator[int]:
        for part in encode(scratch, parts):
            with open(out.parent / "encoded.txt", "a") as file:
                file.write(f"{part}\n")
            if part == signal_at:
                os.kill(os.getpid(), signal.SIGTERM)
            yield part

    posterior.minify_parts.encode_parts = encode_and_note
    minify(run, cells, out, source_order=source_order, batch_size=10)


@pytest.mark.parametrize("source_order", [False, True])
def test_ranks_write_the_store_that_one_process_writes(run, cells, tmp_path: Path, small_parts, source_order: bool):
    minify(run, cells, tmp_path / "alone", source_order=source_order, batch_size=10)
    run_ranks(minify_on_rank, 3, tmp_path / "said", run, cells, tmp_path / "shared", source_order)
    assert files_of(tmp_path / "shared") == files_of(tmp_path / "alone")
    encoded = sorted(map(int, (tmp_path / "encoded.txt").read_text().split()))
    assert encoded == list(range(400 // PART_CELLS))


def test_what_was_encoded_before_a_signal_is_not_encoded_again(run, cells, tmp_path: Path, small_parts):
    minify(run, cells, tmp_path / "alone", source_order=True, batch_size=10)
    ranks = start_ranks(minify_on_rank, 2, tmp_path / "said", run, cells, tmp_path / "mini", True, 5)
    assert end_ranks(ranks) == [EXIT_RESUMABLE, EXIT_RESUMABLE]
    assert "rank 1" in ranks[0].said
    assert "stopped by SIGTERM" in ranks[0].said
    assert not (tmp_path / "mini").exists()
    before = (tmp_path / "encoded.txt").read_text().split()
    run_ranks(minify_on_rank, 3, tmp_path / "said", run, cells, tmp_path / "mini", True)
    assert files_of(tmp_path / "mini") == files_of(tmp_path / "alone")
    encoded = (tmp_path / "encoded.txt").read_text().split()
    assert before
    assert sorted(map(int, encoded)) == list(range(400 // PART_CELLS))


def test_an_interrupted_minify_of_other_weights_or_data_is_not_gone_on_with(
    run, cells, tmp_path: Path, small_parts, monkeypatch
):
    def interrupt(stage: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        minify(run, cells, tmp_path / "mini", batch_size=10, progress=interrupt)
    assert len(list((tmp_path / ".mini.unfinished" / "done").iterdir())) == 1
    settings = ModelSettings(n_genes=30, n_batches=3, n_hidden=16, n_latent=4, n_layers=2)
    other = TrainedRun(
        VAE(settings, torch.Generator().manual_seed(1)).eval(),
        [f"g{k}" for k in range(30)],
        SETUP,
    )
    minify(other, cells, tmp_path / "mini", batch_size=10)
    minify(other, cells, tmp_path / "whole", batch_size=10)
    assert files_of(tmp_path / "mini") == files_of(tmp_path / "whole")
    assert not (tmp_path / ".mini.unfinished").exists()


@pytest.mark.parametrize(
    ("source_order", "damaged"),
    [
        (False, "done/encoded-0"),
        (False, "created.json"),
        (False, "result/uns/atlasvi/weights/log_theta/c/0"),
        (True, "pieces/1"),
        (True, "pieces/0.index"),
    ],
)
def test_a_flipped_bit_in_what_an_interrupted_minify_left_is_noticed(
    run, cells, tmp_path: Path, monkeypatch, source_order: bool, damaged: str
):
    monkeypatch.setattr(minify_parts, "choose_part_cells", lambda n_cells, batch_size: 200)
    scratch, out = interrupt_minify(run, cells, tmp_path, source_order)
    content = bytearray((scratch / damaged).read_bytes())
    content[len(content) // 2] ^= 1
    (scratch / damaged).write_bytes(content)
    with pytest.raises(SourceError, match="damaged"):
        minify(run, cells, out, source_order=source_order, batch_size=100)
    assert not scratch.exists()
    assert not out.exists()


def test_a_flipped_bit_of_the_model_is_noticed_by_the_processes_that_open_it(run, cells, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(minify_parts, "choose_part_cells", lambda n_cells, batch_size: 200)
    scratch, _ = interrupt_minify(run, cells, tmp_path, False)
    model = scratch / "run" / "model.pt"
    content = bytearray(model.read_bytes())
    with zipfile.ZipFile(model) as archive:  # between its members there is room that holds nothing
        largest = max(archive.infolist(), key=lambda member: member.file_size)
        content[content.find(archive.read(largest)) + largest.file_size // 2] ^= 1
    model.write_bytes(content)
    minify_parts.forget(scratch)
    with pytest.raises(SourceError, match="damaged"):
        minify_parts.open_minifies.get(scratch)


def interrupt_minify(run: Path, cells: Path, tmp_path: Path, source_order: bool) -> tuple[Path, Path]:
    """A minify that was stopped after the first part was done; its scratch folder, and where the store was to be."""

    def interrupt(stage: str, done: int, total: int) -> None:
        if (stage == "ordering") == source_order:
            raise KeyboardInterrupt

    scratch, out = tmp_path / ".mini.unfinished", tmp_path / "mini"
    with pytest.raises(KeyboardInterrupt):
        minify(run, cells, out, source_order=source_order, batch_size=100, progress=interrupt)
    return scratch, out


def test_latents_that_an_interrupted_minify_wrote_and_that_are_gone_are_noticed(run, cells, tmp_path, monkeypatch):
    monkeypatch.setattr(minify_parts, "choose_part_cells", lambda n_cells, batch_size: 200)
    scratch, out = interrupt_minify(run, cells, tmp_path, False)
    (scratch / "result/obsm/scvi_latent_qzm/c/0/0").unlink()
    with pytest.raises(SourceError, match=r"qzm/c/0/0 is missing"):
        minify(run, cells, out, batch_size=100)
    assert not scratch.exists()


def test_a_finished_store_notices_what_is_missing_or_flipped(run, cells, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(minify_parts, "choose_part_cells", lambda n_cells, batch_size: 200)
    out = tmp_path / "mini"
    minify(run, cells, out, batch_size=100)
    MinifiedStore(out).model()
    files = ("obs/_index", "obs/batch/codes", "obsm/scvi_latent_qzv", "uns/atlasvi/weights/log_theta", "var/_index")
    for name in files:
        path = next((out / name / "c").rglob("0"))
        path = path / "0" if path.is_dir() else path
        content = path.read_bytes()
        path.unlink()
        with pytest.raises(SourceError, match=rf"{name}/c/0.* is missing"):
            MinifiedStore(out)
        path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
        with pytest.raises(SourceError, match=r"damaged"):
            store = MinifiedStore(out)
            store.obs.read(0, 400)
            store.read_latent(0, 400)
        path.write_bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize("source_order", [False, True])
def test_a_dask_cluster_writes_the_same_store(run, cells, tmp_path: Path, small_parts, source_order: bool):
    distributed = pytest.importorskip("distributed")
    minify(run, cells, tmp_path / "alone", source_order=source_order, batch_size=10)
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        address = cluster.scheduler_address
        minify(run, cells, tmp_path / "others", source_order=source_order, batch_size=10, dask=address)
    assert files_of(tmp_path / "others") == files_of(tmp_path / "alone")


@given(n_cells=st.integers(1, 10**9), batch_size=st.integers(1, 10**5))
def test_a_part_is_whole_minibatches_and_no_larger_than_it_must_be(n_cells: int, batch_size: int):
    cells = minify_parts.choose_part_cells(n_cells, batch_size)
    assert cells % batch_size == 0
    assert 0 < cells <= max(minify_parts.MOST_PART_CELLS + batch_size, batch_size)


@given(st.sets(st.integers(0, 30)))
def test_neighbours_are_read_in_one_go(parts: set[int]):
    runs = list(minify_parts._join_neighbours(sorted(parts)))
    assert [part for first, stop in runs for part in range(first, stop)] == sorted(parts)
    assert all(b - a > 0 for (_, a), (b, _) in pairwise(runs))


def test_cells_that_a_store_left_out_leave_no_gap_in_the_order_of_the_sources(run, tmp_path: Path, small_parts):
    source = anndata.read_h5ad(write_cells(tmp_path / "cells.h5ad"))
    source.X[10:60] = 0
    source.write_h5ad(tmp_path / "empty.h5ad")
    ingest(tmp_path / "empty.h5ad", tmp_path / "store", empty_cells="drop")
    minify(run, tmp_path / "store", tmp_path / "mini", source_order=True, batch_size=10)
    rows = anndata.read_zarr(tmp_path / "mini").obs["source_row"].to_numpy()
    assert rows.tolist() == [*range(10), *range(60, 200)]


def test_processes_in_other_folders_open_the_data_with_the_options_of_its_path(run, tmp_path: Path, monkeypatch):
    source = anndata.read_h5ad(write_cells(tmp_path / "cells.h5ad"))
    source.layers["counts"], source.X = source.X, source.X * 0.5
    source.write_h5ad(tmp_path / "cells.h5ad")
    jobs, kept = [], minify_parts.open_minifies
    keep = kept.keep
    monkeypatch.setattr(kept, "keep", lambda scratch, opened: jobs.append(opened) or keep(scratch, opened))
    monkeypatch.chdir(tmp_path)
    minify(run, "cells.h5ad::layer=counts", tmp_path / "mini")
    assert jobs[0].job.data == {"path": str(tmp_path / "cells.h5ad"), "layer": "counts", "format": "h5ad"}
    attributes = json.loads((tmp_path / "mini" / "zarr.json").read_text())["attributes"]["atlasvi"]
    assert attributes["data"] == {"path": "cells.h5ad", "layer": "counts", "format": "h5ad"}
