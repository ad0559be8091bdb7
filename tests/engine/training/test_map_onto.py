"""New cells mapped onto a run, into a run of its own."""

import warnings
from pathlib import Path

import anndata
import numpy as np
import pytest
import torch

from atlasvi.engine import MinifiedStore, load_run, minify, train
from atlasvi.engine.model.model_options import Freezing
from atlasvi.engine.training.map_onto import map_onto
from atlasvi.engine.training.settings import SettingError
from atlasvi.loaders.cells.open_cells import open_cells
from atlasvi.loaders.errors import AtlasviWarning, ColumnError, GeneError, OutputError, SourceError
from atlasvi.loaders.ingestion.ingest import ingest
from tests.engine.distributed.rank_processes import run_ranks
from tests.engine.training.small_runs import SMALL, Killed, assert_same_run, at_step, write_cells

SHORT = {"epochs": 2, "settings": {"batch_size": 32, "checkpoint_minutes": 1e-9}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reference")
    write_cells(folder / "old.h5ad")
    train(folder / "old.h5ad", folder / "run", batch_key="batch", labels_key="type", epochs=2, settings=SMALL)
    minify(folder / "run", folder / "old.h5ad", folder / "old.mini")
    return folder


def write_new(path: Path, n_genes: int = 30, batches: tuple[str, ...] = ("b2", "x", "y"), n_cells: int = 120) -> Path:
    """New cells of three batches, of which the reference knows one, without the reference's labels."""
    new = anndata.read_h5ad(write_cells(path, n_cells=n_cells, seed=1))[:, :n_genes].copy()
    new.obs["batch"] = np.array(batches)[np.arange(new.n_obs) % len(batches)]
    del new.obs["type"]
    new.var["chromosome"] = "1"
    new.write_h5ad(path)
    return path


def test_a_mapped_run_keeps_the_latents_of_its_reference_and_says_where_it_is_from(folder: Path, tmp_path: Path):
    new = write_new(tmp_path / "new.h5ad")
    run = map_onto(folder / "run", new, tmp_path / "mapped", **SHORT)
    assert run.setup.batch_categories == ["b1", "b2", "b3", "x", "y"]
    reference, loaded = load_run(folder / "run"), load_run(tmp_path / "mapped")
    assert loaded.mapped_from == run.mapped_from
    assert (loaded.mapped_from.path, loaded.mapped_from.weights_sha256) == (
        str(folder / "run"),
        reference.weights_sha256,
    )
    assert loaded.freezing == Freezing(n_batches=3)
    assert not torch.equal(loaded.model.encoder.first.batch[3:], torch.zeros(2, SMALL["n_hidden"]))
    assert torch.equal(loaded.model.encoder.first.batch[:3], reference.model.encoder.first.batch)
    minify(tmp_path / "mapped", folder / "old.h5ad", tmp_path / "old.mini")
    for ours, before in zip(MinifiedStore(tmp_path / "old.mini").read_latent(0, 200), _latents(folder)):
        assert np.array_equal(ours, before)


def _latents(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    return MinifiedStore(folder / "old.mini").read_latent(0, 200)


def test_missing_genes_count_as_zeros_wherever_the_mapped_run_is_used_and_each_time_their_share_is_said(
    folder: Path, tmp_path: Path
):
    new = write_new(tmp_path / "new.h5ad", n_genes=24)
    with pytest.warns(AtlasviWarning, match=r"80.0% of the 30 genes .* 6 others \(first: 'g24'\) count as zero"):
        run = map_onto(folder / "run", new, tmp_path / "mapped", **SHORT)
    assert run.data.missing_genes == "zeros"
    with pytest.warns(AtlasviWarning, match="80.0%"):
        minify(tmp_path / "mapped", new, tmp_path / "new.mini")
    mini = MinifiedStore(tmp_path / "new.mini")
    assert mini.run.mapped_from == run.mapped_from
    assert mini.genes.tolist() == run.genes
    ingest([new], tmp_path / "new.store")
    with pytest.warns(AtlasviWarning, match="80.0%"):
        minify(tmp_path / "mapped", tmp_path / "new.store", tmp_path / "stored.mini", source_order=True)
    np.testing.assert_allclose(
        MinifiedStore(tmp_path / "stored.mini").read_latent(0, 120)[0], mini.read_latent(0, 120)[0], atol=1e-5
    )
    padded = anndata.read_h5ad(new)
    zeros = anndata.AnnData(np.zeros((120, 6), np.float32), padded.obs, None)
    zeros.var_names = [f"g{k}" for k in range(24, 30)]
    anndata.concat([padded, zeros], axis="var", merge="first").write_h5ad(tmp_path / "full.h5ad")
    with warnings.catch_warnings(action="error", category=AtlasviWarning):
        full = map_onto(folder / "run", tmp_path / "full.h5ad", tmp_path / "full", **SHORT)
    assert full.weights_sha256 == run.weights_sha256


@pytest.mark.filterwarnings("ignore::atlasvi.loaders.errors.AtlasviWarning")
def test_a_mapped_run_that_was_interrupted_ends_as_one_that_was_not(folder: Path, tmp_path: Path, monkeypatch):
    new = write_new(tmp_path / "new.h5ad", n_genes=24)
    whole = map_onto(folder / "run", new, tmp_path / "whole", **SHORT)

    def kill() -> None:
        raise Killed

    for name, resume in (
        ("by map", lambda out: map_onto(folder / "run", new, out, resume=True)),
        ("of opened cells", lambda out: map_onto(folder / "run", open_cells(new), out, resume=True)),
        ("by train", lambda out: train(new, out, resume=True)),
    ):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            at_step(patch, 3, kill)
            map_onto(folder / "run", new, tmp_path / name, **SHORT)
        resumed = resume(tmp_path / name)
        assert_same_run(whole, resumed)
        assert resumed.mapped_from == whole.mapped_from
        assert load_run(tmp_path / name).mapped_from == whole.mapped_from


def test_only_the_same_mapping_is_resumed(folder: Path, tmp_path: Path):
    new = write_new(tmp_path / "new.h5ad")
    other = train(folder / "old.h5ad", tmp_path / "other", batch_key="batch", epochs=1, settings=SMALL)
    map_onto(folder / "run", new, tmp_path / "mapped", **SHORT)
    with pytest.raises(SettingError, match=r"mapped from .*run \(weights .* name the same model"):
        map_onto(tmp_path / "other", new, tmp_path / "mapped", resume=True)
    with pytest.raises(SettingError, match="other parameters frozen"):
        map_onto(folder / "run", new, tmp_path / "mapped", freezing=Freezing(unfrozen=True), resume=True)
    with pytest.raises(SettingError, match="a run that was not mapped"):
        map_onto(folder / "run", new, other.path, resume=True)
    with pytest.raises(OutputError, match="finished run already"):
        map_onto(folder / "run", new, tmp_path / "mapped")


def test_a_mapped_run_is_trained_further_and_mapped_further_as_it_was(folder: Path, tmp_path: Path):
    new = write_new(tmp_path / "new.h5ad")
    map_onto(folder / "run", new, tmp_path / "mapped", **SHORT)
    further = train(new, tmp_path / "further", start=tmp_path / "mapped", epochs=1, note="longer")
    reference = load_run(folder / "run")
    made_by = [run.provenance for run in (further, load_run(tmp_path / "mapped"), reference)]
    assert made_by[0].note == "longer"
    assert (made_by[0].of, made_by[1].of) == (made_by[1], made_by[2])
    assert further.mapped_from == load_run(tmp_path / "mapped").mapped_from
    assert torch.equal(further.model.encoder.first.batch[:3], reference.model.encoder.first.batch)
    again = map_onto(
        tmp_path / "mapped", write_new(tmp_path / "more.h5ad", batches=("z",)), tmp_path / "again", **SHORT
    )
    assert again.setup.batch_categories == ["b1", "b2", "b3", "x", "y", "z"]
    assert again.mapped_from.path == str(tmp_path / "mapped")


def test_new_batches_are_named_and_so_is_it_if_there_are_none(folder: Path, tmp_path: Path, capsys):
    map_onto(folder / "run", write_new(tmp_path / "new.h5ad"), tmp_path / "mapped", **SHORT)
    assert "new.h5ad: new to the model: batch x, y." in capsys.readouterr().out
    many = tuple(f"n{k}" for k in range(9))
    map_onto(folder / "run", write_new(tmp_path / "many.h5ad", batches=many), tmp_path / "many", epochs=1)
    assert "batch n0, n1, n2, n3, n4 and 4 others." in capsys.readouterr().out
    known = write_new(tmp_path / "known.h5ad", batches=("b1", "b3"))
    run = map_onto(folder / "run", known, tmp_path / "known", **SHORT)
    assert "knows all batches and categories of these cells. Only how they are decoded" in capsys.readouterr().out
    assert run.setup.batch_categories == ["b1", "b2", "b3"]


def test_mistakes_are_sentences_and_nothing_is_written(folder: Path, tmp_path: Path):
    new = anndata.read_h5ad(write_new(tmp_path / "new.h5ad"))
    bare, gaps, fractions, mouse = (new.copy() for _ in range(4))
    bare.obs = bare.obs.drop(columns="batch").rename(columns={"lane": "batches"})
    gaps.obs["batch"] = gaps.obs["batch"].astype(object).where(np.arange(120) != 7)
    fractions.X = fractions.X + 0.5
    mouse.var_names = [name.upper() if k % 10 else name for k, name in enumerate(mouse.var_names)]
    cases = {"bare": bare, "gaps": gaps, "fractions": fractions, "mouse": mouse, "none": new[:0].copy()}
    for name, adata in cases.items():
        adata.write_h5ad(tmp_path / f"{name}.h5ad")
    for name, error, sentence in (
        ("bare", ColumnError, r"no column 'batch' \(it has: .*the model's batch: add it .*'batches'"),
        ("gaps", ColumnError, "'batch' has missing values"),
        ("fractions", ValueError, "fractions.h5ad.*whole"),
        ("mouse", GeneError, r"3 of the 30 genes of the model, and 30 if case .*orthologues"),
        ("none", ValueError, "none.h5ad"),
        ("nowhere", SourceError, "nowhere.h5ad"),
    ):
        with pytest.raises(error, match=sentence):
            map_onto(folder / "run", tmp_path / f"{name}.h5ad", tmp_path / "out", **SHORT)
        assert not (tmp_path / "out").exists()
    with pytest.raises(SourceError, match="minified"):
        map_onto(folder / "run", folder / "old.mini", tmp_path / "out", **SHORT)
    with pytest.raises(SettingError, match="n_latent = 4, not 3"):
        map_onto(folder / "run", tmp_path / "new.h5ad", tmp_path / "out", settings={"n_latent": 3})


def test_a_single_new_cell_is_mapped(folder: Path, tmp_path: Path):
    new = write_new(tmp_path / "new.h5ad", n_cells=1, batches=("x",))
    run = map_onto(folder / "run", new, tmp_path / "mapped", epochs=1, settings={"validation_fraction": 0.0})
    assert run.setup.batch_categories[-1] == "x"


def test_a_model_without_covariates_has_nothing_to_train_unless_all_is(folder: Path, tmp_path: Path):
    train(folder / "old.h5ad", tmp_path / "plain", epochs=1, settings=SMALL)
    with pytest.raises(SettingError, match=r"use it as it is .*--unfrozen"):
        map_onto(tmp_path / "plain", write_new(tmp_path / "new.h5ad"), tmp_path / "out", **SHORT)
    assert not (tmp_path / "out").exists()
    map_onto(tmp_path / "plain", tmp_path / "new.h5ad", tmp_path / "out", freezing=Freezing(unfrozen=True), **SHORT)
    assert load_run(tmp_path / "out").weights_sha256 != load_run(tmp_path / "plain").weights_sha256


def map_on_rank(reference: Path, new: Path, out: Path) -> None:
    map_onto(reference, new, out, **SHORT, device="cpu")


def test_two_ranks_map_as_one_process_does(folder: Path, tmp_path: Path):
    new = write_new(tmp_path / "new.h5ad")
    whole = map_onto(folder / "run", new, tmp_path / "whole", **SHORT)
    run_ranks(map_on_rank, 2, tmp_path / "ranks", folder / "run", new, tmp_path / "both")
    both = load_run(tmp_path / "both")
    assert both.mapped_from == whole.mapped_from
    for name, values in both.model.state_dict().items():
        torch.testing.assert_close(values, whole.model.state_dict()[name], rtol=1e-4, atol=1e-5)
