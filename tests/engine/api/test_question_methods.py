"""What a model is asked: each answer against the plain formula, or in distribution where it is drawn."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from atlasvi.engine import SCVI
from atlasvi.engine.queries.cell_choice import in_order
from atlasvi.engine.queries.question_cells import QueryError
from atlasvi.kernels.reference import nb_log_prob
from atlasvi.loaders.errors import AtlasviWarning
from tests.engine.api.small_models import N_GENES, make_adata, make_model


@pytest.fixture(scope="module")
def model() -> SCVI:
    return make_model(make_adata(), epochs=60, use_batch_norm="none")


def decode_at_mean(model: SCVI, batch: int | None = None) -> np.ndarray:
    """Shares at the posterior mean of all cells."""
    (posterior,) = model.ask().read_posteriors(model.module, None, 1000)
    with torch.no_grad():
        return model.module.decode(posterior.qzm, posterior.codes, transform_batch=batch).proportions.numpy()


@given(st.lists(st.integers(0, 9), max_size=20))
def test_cells_in_any_order_are_read_ascending_and_put_back(numbers: list[int]):
    numbers = np.array(numbers, np.int64)
    wanted, places = in_order(numbers, 10)
    read = np.arange(10) if wanted is None else wanted
    assert np.array_equal(read if places is None else read[places], numbers)


def test_expression_is_decoded_at_draws_of_the_posterior_as_batches_and_genes_are_asked(model: SCVI):
    def distance(got: pd.DataFrame, expected: np.ndarray) -> float:
        return float(np.abs(got.to_numpy() / expected - 1).mean())

    many = model.get_normalized_expression(n_samples=200)
    as_b = model.get_normalized_expression(n_samples=200, transform_batch="b")
    assert distance(many, decode_at_mean(model)) < 0.1
    assert distance(as_b, decode_at_mean(model, 1)) < 0.1
    both = model.get_normalized_expression(n_samples=100, transform_batch=["a", "b"], gene_list=["g3", "g1"])
    assert both.columns.tolist() == ["g1", "g3"]
    expected = (decode_at_mean(model, 0) + decode_at_mean(model, 1)) / 2
    assert distance(both, expected[:, [1, 3]]) < 0.15
    counts = model.get_normalized_expression(library_size="latent")
    np.testing.assert_allclose(counts.sum(1), model.adata.X.sum(1).A1, rtol=1e-4)
    some = model.get_normalized_expression(indices=[7, 3, 7], n_samples=2, return_mean=False)
    assert some.shape == (2, 3, N_GENES)
    assert model.get_normalized_expression(indices=[7, 3]).index.tolist() == ["c0_7", "c0_3"]
    mask = np.arange(model.adata.n_obs) < 5
    assert model.get_normalized_expression(indices=mask, return_numpy=True).shape == (5, N_GENES)


@pytest.mark.parametrize("weights", ["uniform", "importance"])
def test_draws_of_a_population_are_draws_of_its_cells(model: SCVI, weights: str):
    cells = np.flatnonzero(model.adata.obs.cell_type == "B")
    options = {"max_cells": 20, "n_mc_samples": 10} if weights == "importance" else {}
    drawn = model.get_normalized_expression(indices=cells, n_samples_overall=200, weights=weights, **options)
    assert drawn.shape == (200, N_GENES)
    np.testing.assert_allclose(drawn.mean(0), decode_at_mean(model)[cells].mean(0), rtol=0.4, atol=0.003)


@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson"])
@pytest.mark.parametrize("dispersion", ["gene", "gene-batch", "gene-cell"])
def test_counts_drawn_have_the_mean_and_variance_of_the_likelihood(likelihood: str, dispersion: str):
    adata = make_adata(30)
    SCVI.setup_anndata(adata, batch_key="batch")
    model = SCVI(adata, n_hidden=8, gene_likelihood=likelihood, dispersion=dispersion)
    model.is_trained = True
    many = model.get_likelihood_parameters(n_samples=300)
    assert many["mean"].shape == (300, 30, N_GENES)
    assert ("dropout" in many) == (likelihood == "zinb")
    assert ("dispersions" in many) == (likelihood != "poisson")
    if likelihood != "poisson":
        assert many["dispersions"].shape[-2:] == (30, N_GENES)
    mean = model.get_likelihood_parameters(n_samples=300, give_mean=True)
    assert all(values.shape == (30, N_GENES) for values in mean.values())
    expected = (many["mean"] * (1 - many.get("dropout", 0))).mean(0)
    pytest.importorskip("sparse")
    counts = model.posterior_predictive_sample(n_samples=300)
    assert counts.shape == (30, N_GENES, 300)
    dense = counts.todense()
    assert (dense == np.round(dense)).all()
    assert dense.mean() == pytest.approx(expected.mean(), rel=0.1)
    assert model.posterior_predictive_sample(gene_list=["g2"]).shape == (30, 1)


def test_bounds_are_in_order_and_the_marginal_likelihood_is_what_sampling_says(model: SCVI):
    elbo = model.get_elbo(return_mean=False)
    assert elbo.shape == (model.adata.n_obs,)
    some = np.arange(20)
    marginal = model.get_marginal_ll(indices=some, n_mc_samples=200, return_mean=False)
    assert marginal.mean() > torch.stack([model.get_elbo(indices=some) for _ in range(20)]).mean()
    (posterior,) = model.ask().read_posteriors(model.module, some[:1], 10)
    normal, n, generator = torch.distributions.Normal(posterior.qzm, posterior.qzv.sqrt()), 2000, torch.Generator()
    counts = posterior.counts.to_dense().expand(n, -1)
    plain = []
    for seed in range(9):  # now and then one draw weighs more than all others: medians
        noise = torch.randn(n, len(posterior.qzm[0]), generator=generator.manual_seed(seed))
        z = normal.mean + normal.stddev * noise
        with torch.no_grad():
            expression = model.module.decode(
                z, {"batch": posterior.codes["batch"].expand(n)}, posterior.library.expand(n)
            )
            log_weight = nb_log_prob(counts, expression.mean, expression.theta).sum(1)
            log_weight += torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1) - normal.log_prob(z).sum(1)
        plain.append(log_weight.logsumexp(0).item() - math.log(n))
    ours = [model.get_marginal_ll(indices=some[:1], n_mc_samples=n, return_mean=False).item() for _ in range(9)]
    assert np.median(ours) == pytest.approx(np.median(plain), abs=0.3)


def test_unknown_genes_are_left_out_with_a_warning(model: SCVI):
    with pytest.warns(AtlasviWarning, match="1 of the 2 genes of gene_list are not in the model.*'G1'"):
        assert model.get_normalized_expression(gene_list=["g1", "G1"]).columns.tolist() == ["g1"]


@pytest.mark.parametrize(
    ("ask", "unused"),
    [
        (lambda model: model.get_normalized_expression(max_cells=9), "max_cells: only weights='importance' uses this"),
        (lambda model: model.get_normalized_expression(n_samples=2, weights="importance"), "weights='importance'"),
        (lambda model: model.differential_expression(groupby="cell_type", delta=1, pseudocounts=1), "delta, pseudocou"),
        (lambda model: model.differential_expression(groupby="cell_type", idx1=[0]), "groupby has no effect: idx1"),
        (lambda model: model.differential_expression(idx1=[0], subset_idx=[0]), "subset_idx has no effect"),
        (lambda model: model.differential_expression(groupby="cell_type", idx2=[0]), "idx2 has no effect: without"),
    ],
)
def test_arguments_that_have_no_effect_are_named_in_a_warning(model: SCVI, ask, unused: str):
    with pytest.warns(AtlasviWarning, match=unused):
        ask(model)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda model: model.get_normalized_expression(library_size=1e40), "library size 1e.40"),
        (lambda model: model.get_normalized_expression(library_size=float("nan")), "library size nan"),
        (lambda model: model.get_normalized_expression(librarysize=1e4), "no argument 'librarysize'"),
        (lambda model: model.get_normalized_expression(n_samples_overall=9, weights="some"), "weights 'some'"),
        (lambda model: model.get_normalized_expression(n_samples_overall=0), "n_samples_overall is 0"),
        (lambda model: model.get_normalized_expression(n_samples=-1), "n_samples is -1"),
        (lambda model: model.get_normalized_expression(transform_batch=[]), "list of batches to decode as is empty"),
        (lambda model: model.get_marginal_ll(n_mc_samples=0), "n_mc_samples is 0"),
        (lambda model: model.get_latent_representation(mc_samples=0), "mc_samples is 0"),
        (lambda model: model.get_aggregated_posterior(dof=-1), "dof is -1"),
        (lambda model: model.differential_abundance(sample_key="donor", dof=0), "dof is 0"),
        (lambda model: model.differential_abundance(sample_key="donor", num_cells_posterior=0), "must be at least 1"),
        (lambda model: model.get_feature_correlation_matrix(n_samples=0), "n_samples is 0"),
        (lambda model: model.get_feature_correlation_matrix(rna_size_factor=0), "library size 0"),
        (lambda model: model.get_feature_correlation_matrix(indices=[0], n_samples=1), "has no correlations"),
        (lambda model: model.differential_expression(groupby="cell_type", mode="change", delta=-1), "delta is -1"),
        (lambda model: model.differential_expression(groupby="cell_type", test_mode="both"), "test_mode 'both'"),
        (lambda model: model.differential_expression(groupby="cell_type", fdr_target=7), "fdr_target is 7"),
        (lambda model: model.differential_expression(groupby="cell_type", n_samples_overall=0), "must be at least 1"),
        (lambda model: model.differential_expression(groupby="cell_type", group1=[]), "group1 is an empty list"),
        (lambda model: model.differential_expression(groupby="cell_type", weights="some"), "weights 'some'"),
    ],
)
def test_arguments_without_an_answer_are_refused(model: SCVI, ask, message: str):
    with pytest.raises(QueryError, match=message):
        ask(model)


def test_a_latent_library_an_ln_latent_and_embedded_batches_are_asked_too():
    adata = make_adata(60)
    model = make_model(
        adata, use_observed_lib_size=False, latent_distribution="ln", batch_representation="embedding", embedding_dim=3
    )
    mean = model.get_latent_representation(mc_samples=200)
    assert np.allclose(mean.sum(1), 1, atol=1e-4)
    assert not np.allclose(model.get_latent_representation(return_dist=True)[0].sum(1), 1)
    library = model.get_latent_library_size()
    assert library.shape == (60, 1)
    assert (library > 0).all()
    vectors = model.get_batch_representation()
    assert vectors.shape == (60, 3)
    assert len(np.unique(vectors, axis=0)) == 2
    assert model.get_marginal_ll(indices=[0, 1], n_mc_samples=5) < 0
    assert isinstance(model.get_normalized_expression(library_size="latent", n_samples=2), pd.DataFrame)
    with pytest.raises(ValueError, match="can't be minified"):
        model.minify_adata()
    observed = make_model(adata)
    with pytest.raises(RuntimeError, match="give_mean=False"):
        observed.get_latent_library_size()
    assert np.array_equal(observed.get_latent_library_size(give_mean=False)[:, 0], adata.X.sum(1).A1)
    with pytest.raises(QueryError, match="no vectors of batches"):
        observed.get_batch_representation()
