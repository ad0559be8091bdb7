"""Columns of obs beside the values of each question that answers with a row for each cell."""

from pathlib import Path

import anndata
import numpy as np
import pytest

from atlasvi.engine import open_minified
from tests.engine.cli.test_query_commands import ask, refuse

QUESTIONS = [
    ["latent"],
    ["expression", "--genes", "g1"],
    ["parameters", "--genes", "g1"],
    ["library"],
    ["sample", "--genes", "g1"],
    ["sample", "--genes", "g1", "--n-samples", 3],
    ["abundance", "--sample-key", "donor"],
]


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda words: " ".join(map(str, words)))
def test_columns_of_obs_stand_beside_the_values(forms: Path, question: list[object]):
    mini = open_minified(forms / "x.mini")
    kinds = dict(zip(mini.read_names(), mini.read_column("cell_type")))
    donors = dict(zip(mini.read_names(), mini.read_column("donor")))
    found = ask(forms, "x.mini", *question, "--where", "batch=b", "--columns", "cell_type,donor")
    alone = ask(forms, "x.mini", *question, "--where", "batch=b")
    assert found.columns.tolist() == ["cell_type", "donor", *alone.columns]
    assert found["cell_type"].tolist() == [kinds[name] for name in found.index]
    assert found["donor"].tolist() == [donors[name] for name in found.index]
    np.testing.assert_array_equal(found[alone.columns], alone)


def test_an_anndata_has_them_in_obs(forms: Path, tmp_path: Path):
    from tests.engine.distributed.rank_processes import run_command

    out = tmp_path / "a.h5ad"
    words = ["expression", "--columns", "cell_type,donor", "--limit", 7, "--out", out]
    assert run_command("query", forms / "x.mini", *words).stdout == f"{out}: 7 cells.\n"
    adata = anndata.read_h5ad(out)
    mini = open_minified(forms / "x.mini")
    assert adata.obs_names.tolist() == mini.read_names(0, 7).tolist()
    assert adata.var_names.tolist() == mini.run.genes
    assert adata.obs["cell_type"].tolist() == mini.read_column("cell_type", 0, 7).tolist()
    assert adata.obs["donor"].tolist() == mini.read_column("donor", 0, 7).tolist()
    np.testing.assert_allclose(adata.X.sum(1), 1, rtol=1e-5)


def test_a_column_that_is_not_there_is_named_before_anything_is_computed(forms: Path):
    assert "'kind'" in refuse(forms, "x.mini", "latent", "--columns", "donor,kind")
    refused = refuse(forms, "x.mini", "expression", "--n-samples-overall", 3, "--columns", "donor")
    assert "--columns would have no effect" in refused
