"""Expression slice by slice, and whose library size it is scaled to."""

import numpy as np
import pytest
import torch

from atlasvi.engine import SCVI
from atlasvi.engine.queries.expression import draw_at_once, draw_posterior, read_library_size, slice_expression
from atlasvi.engine.queries.question_cells import QueryError
from tests.engine.api.small_models import make_adata


@pytest.mark.parametrize("kind", ["observed", "latent", "size factor"])
def test_the_own_library_of_a_cell_is_what_the_model_scales_by(kind: str):
    adata = make_adata(30)
    adata.obs["factor"] = np.linspace(0.5, 2, 30).astype(np.float32)
    SCVI.setup_anndata(adata, batch_key="batch", size_factor_key="factor" if kind == "size factor" else None)
    model = SCVI(adata, n_hidden=8, use_observed_lib_size=kind != "latent")
    model.is_trained = True
    run, cells = model.run, model.ask()
    (posterior,) = cells.read_posteriors(model.module, None, 100)
    with torch.inference_mode():
        shares = model.module.proportions(posterior.qzm, posterior.codes).numpy()
    counts = np.asarray(adata.X.sum(1)).ravel()
    factor = {"observed": counts, "latent": counts, "size factor": adata.obs["factor"].to_numpy()}[kind]
    inferred = (posterior.qlm + posterior.qlv / 2).exp().numpy() if kind == "latent" else factor
    for size, scale in (("observed", factor), ("latent", inferred), (7.0, np.full(30, 7.0))):
        for batch_size in (100, 7):
            parts = list(slice_expression(run, cells, library_size=size, batch_size=batch_size))
            assert [len(names) for names, _ in parts] == ([30] if batch_size == 100 else [7, 7, 7, 7, 2])
            found = np.concatenate([values for _, values in parts])
            np.testing.assert_allclose(found, shares * scale[:, None], rtol=1e-4)
    names = [name for part, _ in slice_expression(run, cells, np.array([3, 29])) for name in part]
    assert names == ["c0_3", "c0_29"]


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "1e40", "many", 0])
def test_a_library_size_is_a_number_above_0_or_one_of_two_words(text: str | float):
    with pytest.raises(QueryError, match=r"use a number from 1e-12 to 1e.30 .*, 'observed' or 'latent'"):
        read_library_size(text)
    assert read_library_size("1e4") == 1e4
    assert read_library_size("observed") == "observed"


@pytest.mark.parametrize("latent_library", [False, True])
def test_draws_made_at_once_are_those_of_the_cells_asked_for(latent_library: bool):
    adata = make_adata(30)
    SCVI.setup_anndata(adata, batch_key="batch")
    model = SCVI(adata, n_hidden=8, n_latent=3, use_observed_lib_size=not latent_library)
    model.is_trained = True
    cells = model.ask()
    indices = np.repeat(np.array([7, 2, 29]), 4000)
    found = draw_at_once(model.module, cells, torch.Generator().manual_seed(0), indices, batch_size=8)
    other = draw_posterior(model.module, cells, torch.Generator().manual_seed(1), indices)
    for k in range(3):
        one, two = (drawn.take(slice(4000 * k, 4000 * (k + 1))) for drawn in (found, other))
        torch.testing.assert_close(one.z.mean(0), two.z.mean(0), atol=0.1, rtol=0)
        torch.testing.assert_close(one.z.std(0), two.z.std(0), atol=0.1, rtol=0)
        torch.testing.assert_close(one.library.log().mean(), two.library.log().mean(), atol=0.1, rtol=0)
        assert torch.equal(one.codes["batch"], two.codes["batch"])
