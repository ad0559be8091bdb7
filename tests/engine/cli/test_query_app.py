"""Questions about cells and a model of scvi-tools: the command line and Python give scvi-tools' own numbers.

`expected.npz` beside the model is what scvi-tools 1.5.1 computed for 64 cells; files of tests/golden are its answers to
questions that draw.
"""

from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest

from atlasvi.engine import SCVI
from tests.engine.distributed.rank_processes import run_command

GOLDEN = Path(__file__).parents[2] / "golden"


@pytest.fixture(scope="module")
def folder(shared: Path) -> Path:
    return shared / "scvi_models" / "onek1k_seed"


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "expected.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def model(folder: Path) -> SCVI:
    return SCVI.load(folder, anndata.read_h5ad(folder / "minified.h5ad"))


def model_cells(place: Path) -> pd.Index:
    """Names of the cells of the minified data, which are those of the counts too, in the same order."""
    return anndata.read_h5ad(place / "minified.h5ad" if place.is_dir() else place, backed="r").obs_names


def ask(tmp_path: Path, *words: Any, rows: np.ndarray | None = None) -> pd.DataFrame:
    """The answer of a question, as Parquet, whose numbers are not rounded; with `rows` of these cells in order."""
    place, names = tmp_path / "answer.parquet", list[str]()
    place.unlink(missing_ok=True)
    if rows is not None:
        names = model_cells(words[0])[rows].tolist()
        (tmp_path / "cells.txt").write_text("\n".join(names))
        words = (*words, "--cells", f"@{tmp_path / 'cells.txt'}")
    done = run_command("query", *words, "--out", place)
    assert done.returncode == 0, done.stderr
    table = pd.read_parquet(place)
    table = table.set_index(table.columns[0])
    return table.loc[names] if rows is not None else table


def test_what_the_model_computes_is_what_scvi_tools_computes(folder: Path, expected, model: SCVI, tmp_path: Path):
    rows, mini = expected["rows"], folder / "minified.h5ad"
    latent = ask(tmp_path, mini, "latent", "--variance", rows=rows).to_numpy()
    np.testing.assert_array_equal(latent[:, :20], expected["qzm"])
    np.testing.assert_allclose(latent[:, 20:], expected["qzv"], rtol=1e-6)
    np.testing.assert_array_equal(model.get_latent_representation(indices=rows), expected["qzm"])
    library = ask(tmp_path, mini, "library", rows=rows)["library"]
    np.testing.assert_array_equal(library, expected["library"].ravel())
    np.testing.assert_array_equal(model.get_latent_library_size(indices=rows, give_mean=False).ravel(), library)
    for words in (["parameters", "--parameter", "mean"], ["expression", "--library-size", "observed"]):
        means = ask(tmp_path, mini, *words, rows=rows)
        assert means.columns.tolist() == model.run.genes
        np.testing.assert_allclose(means, expected["px_rate_at_qzm"], rtol=2e-4, atol=1e-6)


def test_the_losses_of_a_cell_are_those_of_scvi_tools(folder: Path, expected, shared: Path, tmp_path: Path):
    """The KL is exact; the reconstruction error is of one draw of z, about that at its mean."""
    rows, counts = expected["rows"], shared / "data" / "onek1k.h5ad"
    found = ask(tmp_path, folder, counts, "elbo", rows=rows)
    np.testing.assert_allclose(found["kl"], expected["kl"], rtol=2e-4)
    np.testing.assert_allclose(found["elbo"], -found["reconstruction_loss"] - found["kl"], rtol=1e-5)
    assert np.corrcoef(found["reconstruction_loss"], expected["nll_at_qzm"])[0, 1] > 0.99


@pytest.mark.slow
def test_markers_agree_with_scvi_tools_as_its_own_seeds_do(folder: Path, shared: Path, tmp_path: Path):
    """With counts, as scvi-tools was asked: they decide how small a proportion is no expression (pseudocounts)."""
    with np.load(GOLDEN / "markers.npz") as file:
        theirs = dict(file)
    table = ask(tmp_path, folder, shared / "data" / "onek1k.h5ad", "markers", "--labels-key=cell_type", "--top=0")
    for k, group in enumerate(theirs["groups"].tolist()):
        ours = table[table["group1"] == group].loc[theirs["genes"]]
        for name in ("lfc_mean", "proba_de"):
            one, other = theirs[name][:, k]
            spread = np.abs(one - other).mean()
            assert np.abs(ours[name] - one).mean() < 1.5 * spread + 1e-6, f"{group} {name}"


@pytest.mark.slow
def test_densities_under_samples_are_those_of_scvi_tools(folder: Path, tmp_path: Path):
    with np.load(GOLDEN / "abundance.npz") as file:
        theirs = dict(file)
    table = ask(tmp_path, folder / "minified.h5ad", "abundance", "--sample-key=indiv", rows=theirs["rows"])
    np.testing.assert_allclose(table[theirs["samples"].tolist()], theirs["log_probs"], atol=2e-4)
