"""`atlasvi map`: new cells onto a model from the command line, and what the result is then good for."""

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest

from atlasvi.engine import load_run
from tests.engine.distributed.rank_processes import run_command
from tests.engine.training.small_runs import SMALL, write_cells


def run(*words: object) -> str:
    done = run_command(*words)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def refuse(*words: object) -> str:
    done = run_command(*words)
    assert done.returncode == 1, done.stdout
    assert (done.stdout, done.stderr.count("\n")) == ("", 1), done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, a store minified with it, and new cells of another batch that lack a fifth of the genes."""
    folder = tmp_path_factory.mktemp("map")
    write_cells(folder / "old.h5ad")
    settings = [f"--set={key}={value}" for key, value in SMALL.items()]
    run("train", folder / "old.h5ad", "--out", folder / "run", "--batch-key=batch", "--epochs=2", *settings)
    run("minify", folder / "run", folder / "old.h5ad", "--out", folder / "old.mini")
    new = anndata.read_h5ad(write_cells(folder / "new.h5ad", n_cells=90, seed=1))[:, :24].copy()
    new.obs["batch"] = "x"
    new.layers["raw"], new.X = new.X, np.log1p(new.X)
    new.var["id"], new.var_names = new.var_names, [f"other{k}" for k in range(24)]
    new.write_h5ad(folder / "new.h5ad")
    options = ["--epochs=2", "--batch-size=64", "--seed=3", "--layer=raw", "--gene-column=id", "--set=keep=last"]
    run("map", folder / "run", folder / "new.h5ad", "--out", folder / "mapped", *options)
    return folder


def test_options_are_those_of_train(folder: Path):
    mapped = load_run(folder / "mapped")
    assert (mapped.data.layer, mapped.data.gene_column, mapped.data.missing_genes) == ("raw", "id", "zeros")
    assert (mapped.result["epochs"], mapped.result["seed"], mapped.result["steps"]) == (2, 3, 4)
    assert mapped.setup.batch_categories == ["b1", "b2", "b3", "x"]
    said = run_command("map", folder / "run", folder / "new.h5ad", "--out", folder / "mapped", "--resume", "--seed=3")
    assert said.returncode == 0
    assert "finished already" in said.stderr


def test_info_card_and_minified_store_say_what_the_run_was_mapped_from(folder: Path, tmp_path: Path):
    origin = f"mapped from {folder / 'run'} (weights {load_run(folder / 'run').weights_sha256})"
    assert origin in run("info", folder / "mapped")
    said = run("minify", folder / "mapped", folder / "new.h5ad", "--out", tmp_path / "new.mini")
    assert "80.0% of the 30 genes" in said
    assert origin in run("info", tmp_path / "new.mini")
    assert origin in run("query", tmp_path / "new.mini", "info")
    run("card", folder / "mapped", folder / "new.h5ad", "--out", tmp_path / "card", "--labels-key=type")
    assert origin in run("info", tmp_path / "card")
    run("query", tmp_path / "new.mini", "expression", "--genes=g1,g29", "--out", tmp_path / "new.csv")
    assert len(pd.read_csv(tmp_path / "new.csv")) == 90


def test_new_cells_are_annotated_by_a_model_that_was_mapped_onto_them(folder: Path, tmp_path: Path):
    mini, mapped, new = folder / "old.mini", folder / "mapped", folder / "new.h5ad"
    out = tmp_path / "labels.csv"
    said = run("query", mini, "--model", mapped, "annotate", new, "--labels-key=type", "--out", out)
    assert "does not know batch" not in said
    assert "80.0% of the 30 genes" in said
    assert len(pd.read_csv(out)) == 90
    run("query", mini, "--model", mapped, new, "neighbours", "-k", 2, "--out", tmp_path / "near.csv")
    run("map", mini, new, "--out", tmp_path / "free", "--unfrozen", "--epochs=1", "--layer=raw", "--gene-column=id")
    assert str(mini) in run("info", tmp_path / "free")
    said = refuse("query", mini, "--model", tmp_path / "free", "annotate", new, "--labels-key=type")
    assert "not those that" in said
    assert "atlasvi map" in said
    assert "leave --model" in refuse("query", mini, "--model", mapped, "latent")


def test_mistakes_are_sentences(folder: Path, tmp_path: Path):
    new = folder / "new.h5ad"
    assert "none of the 30 genes" in refuse("map", folder / "run", f"{new}::layer=raw", "--out", tmp_path / "out")
    assert "is not a run" in refuse("map", new, folder / "run", "--out", tmp_path / "out")
    assert "exists" in refuse("map", folder / "run", new, "--out", folder)
    done = run_command("launch", "--nproc=1", "--", "mapp")
    assert "train, map, minify, card and plan can be launched" in done.stderr


@pytest.mark.slow
def test_held_out_donors_of_real_data_are_mapped_minified_and_annotated(shared: Path, tmp_path: Path):
    cells = anndata.read_h5ad(shared / "data" / "onek1k.h5ad")
    held_out = cells.obs["indiv"].isin(sorted(cells.obs["indiv"].unique())[::3])
    assert held_out.sum() > 2_000
    cells[~held_out].write_h5ad(tmp_path / "old.h5ad")
    cells[held_out, 100:].write_h5ad(tmp_path / "new.h5ad")
    run("train", tmp_path / "old.h5ad", "--out", tmp_path / "run", "--batch-key=indiv", "--epochs=30")
    run("minify", tmp_path / "run", tmp_path / "old.h5ad", "--out", tmp_path / "old.mini")
    said = run("map", tmp_path / "run", tmp_path / "new.h5ad", "--out", tmp_path / "mapped", "--epochs=20")
    assert "new to the model: indiv" in said
    assert "90.0% of the 1,000 genes" in said
    mini, new, out = tmp_path / "old.mini", tmp_path / "new.h5ad", tmp_path / "labels.parquet"
    run("query", mini, "--model", tmp_path / "mapped", "annotate", new, "--labels-key=cell_type", "--out", out)
    labels = pd.read_parquet(out).set_index("cell")
    truth = cells.obs.loc[held_out, "cell_type"].astype(str)
    assert labels.index.tolist() == truth.index.tolist()
    assert (labels["closest"].to_numpy() == truth.to_numpy()).mean() > 0.95
    run("minify", tmp_path / "mapped", new, "--out", tmp_path / "new.mini")
    groups = tmp_path / "groups.csv"
    run("query", tmp_path / "new.mini", "aggregate", "--by=cell_type", "--out", groups)
    assert set(pd.read_csv(groups)["cell_type"]) == set(truth)
