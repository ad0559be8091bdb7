from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from atlasvi.engine import SCVI
from atlasvi.engine.cli.commands import app
from atlasvi.engine.queries.predictive_counts import predictive_counts
from atlasvi.engine.queries.question_cells import QueryError

N_CELLS, N_GENES = 60, 9


@pytest.fixture(scope="module")
def model() -> SCVI:
    """A model with random weights and a latent library size, of counts of two batches."""
    random = np.random.default_rng(0)
    obs = pd.DataFrame({"batch": random.choice(["a", "b"], N_CELLS)}, index=[f"cell{k}" for k in range(N_CELLS)])
    counts = random.poisson(random.gamma(2, 1, (N_CELLS, N_GENES))).astype(np.float32)
    adata = anndata.AnnData(counts, obs, pd.DataFrame(index=[f"g{k}" for k in range(N_GENES)]))
    SCVI.setup_anndata(adata, batch_key="batch")
    model = SCVI(adata, n_hidden=8, n_latent=3, use_observed_lib_size=False)
    model.is_trained = True
    return model


def draw(model: SCVI, seed: int = 3, **options: Any) -> np.ndarray:
    given = {"indices": np.arange(N_CELLS), **options}
    return predictive_counts(model.module, model.ask(), seed, **given).toarray()


def test_a_cell_has_the_same_draw_in_every_minibatch_and_order(model: SCVI):
    whole = draw(model)
    assert whole.any()
    assert (whole == np.round(whole)).all()
    assert not np.array_equal(whole, draw(model, seed=4))
    np.testing.assert_array_equal(draw(model, batch_size=7), whole)
    order = np.random.default_rng(1).permutation(N_CELLS)[:20]
    np.testing.assert_array_equal(draw(model, indices=order), whole[order])
    np.testing.assert_array_equal(draw(model, columns=np.array([4, 2])), whole[:, [4, 2]])


def test_draws_are_numbered_and_more_of_them_leave_the_first_as_they_are(model: SCVI):
    several = draw(model, n_draws=3).reshape(N_CELLS, N_GENES, 3)
    np.testing.assert_array_equal(several[:, :, 0], draw(model))
    assert not np.array_equal(several[:, :, 1], several[:, :, 2])


def test_counts_drawn_as_several_batches_are_averaged(model: SCVI):
    doubled = 2 * draw(model, transform_batch=[0, 1])
    assert (doubled == np.round(doubled)).all()
    assert (doubled % 2 == 1).any()


def test_scvi_gives_the_sparse_arrays_of_scvi_tools(model: SCVI):
    sparse = pytest.importorskip("sparse")
    model.generator.manual_seed(5)
    one = model.posterior_predictive_sample(gene_list=["g3", "g0"])
    assert isinstance(one, sparse.GCXS)
    assert (one.shape, one.dtype, one.fill_value) == ((N_CELLS, 2), np.float32, 0)
    model.generator.manual_seed(5)
    several = model.posterior_predictive_sample(n_samples=4, indices=range(10), gene_list=["g3", "g0"])
    assert (several.shape, several.dtype) == ((10, 2, 4), np.float32)
    np.testing.assert_array_equal(several.todense()[:, :, 0], one.todense()[:10])
    assert not np.array_equal(model.posterior_predictive_sample(gene_list=["g3", "g0"]).todense(), one.todense())


def test_the_command_line_draws_the_counts_of_scvi_from_the_same_seed(model: SCVI, tmp_path: Path):
    pytest.importorskip("sparse")
    model.save(tmp_path / "model")
    model.adata.write_h5ad(tmp_path / "cells.h5ad")
    places = ["query", str(tmp_path / "model"), str(tmp_path / "cells.h5ad"), "sample"]
    options = ["--genes", "g3,g0", "--n-samples", "2", "--seed", "3", "--out", str(tmp_path / "drawn.csv")]
    done = CliRunner().invoke(app, [*places, *options])
    assert done.exit_code == 0, done.output
    table = pd.read_csv(tmp_path / "drawn.csv", index_col="cell")
    assert list(table) == ["sample", "g3", "g0"]
    model.generator.manual_seed(3)
    expected = model.posterior_predictive_sample(gene_list=["g3", "g0"], n_samples=2).todense()
    np.testing.assert_array_equal(table[["g0", "g3"]].to_numpy().reshape(N_CELLS, 2, 2), expected.swapaxes(1, 2))


def test_a_cell_without_a_distribution_is_named(model: SCVI):
    bias = model.module.decoder.logits.bias
    before = bias.detach().clone()
    with torch.no_grad():
        bias[2] = torch.nan
    try:
        with pytest.raises(QueryError, match=r"no counts can be drawn for cell 'cell7': .* NaN"):
            draw(model, indices=np.array([7, 9]))
    finally:
        with torch.no_grad():
            bias.copy_(before)
