from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch

from atlasvi.engine.model import likelihoods
from atlasvi.engine.model.likelihoods import LIKELIHOODS, Expression, LikelihoodName, takes_fractions
from atlasvi.engine.model.model_options import ModelSettings
from atlasvi.engine.model.vae import VAE
from atlasvi.engine.training.settings import Settings
from atlasvi.loaders.batches.batch import Batch

COUNTING = [name for name, likelihood in LIKELIHOODS.items() if not likelihood.takes_fractions]


def make_expression(name: str, n_cells: int = 1) -> Expression:
    """Of three genes, with the parameters that the likelihood has."""
    likelihood = LIKELIHOODS[name]
    mean = torch.tensor([[0.3, 4.0, 9.0]], dtype=torch.float64).expand(n_cells, 3)
    theta = torch.tensor([2.0, 0.7, 5.0], dtype=torch.float64) if likelihood.has_dispersion else None
    dropout = torch.tensor([[-1.0, 0.5, -3.0]], dtype=torch.float64) if likelihood.has_dropout else None
    return Expression(mean / 20, mean, theta, dropout)


def test_the_table_has_the_names_that_options_take():
    assert set(LIKELIHOODS) == set(get_args(LikelihoodName))
    assert all(Settings(gene_likelihood=name).likelihood is LIKELIHOODS[name] for name in LIKELIHOODS)


@pytest.mark.parametrize("name", COUNTING)
def test_the_probabilities_of_all_counts_add_up_to_1(name: str):
    counts = torch.arange(3000, dtype=torch.float64)[:, None].expand(-1, 3)
    probabilities = LIKELIHOODS[name].log_prob(counts, make_expression(name)).exp()
    assert torch.allclose(probabilities.sum(0), torch.ones(3, dtype=torch.float64), atol=1e-6)


@pytest.mark.parametrize("name", [name for name in LIKELIHOODS if LIKELIHOODS[name].sample])
def test_values_drawn_are_those_of_the_likelihood_and_the_same_for_the_same_cells(name: str):
    expression, numbers = make_expression(name, 20_000), torch.arange(20_000)
    draws = LIKELIHOODS[name].sample(expression, 0, numbers, 3)
    assert torch.allclose(draws.mean(0), expression.mean[0], atol=0.15)
    assert torch.allclose(draws.std(0), expression.theta, rtol=0.05)
    few = LIKELIHOODS[name].sample(make_expression(name, 2), 0, numbers[[70, 5]], 3)
    assert torch.equal(few, draws[[70, 5]])


@pytest.mark.parametrize("name", COUNTING)
@pytest.mark.parametrize(("dispersion", "size_factor"), [("gene", False), ("gene-label", True), ("gene-cell", False)])
def test_counts_drawn_have_the_distribution_of_the_log_probability(name: str, dispersion: str, size_factor: bool):
    n_cells, n_genes = 6_000, 5
    settings = ModelSettings(
        n_genes=n_genes, n_hidden=8, n_latent=2, n_layers=1, n_labels=2, gene_likelihood=name, dispersion=dispersion,
        use_size_factor=size_factor,
    )  # fmt: skip
    model = VAE(settings, torch.Generator().manual_seed(0)).eval()
    z, library = torch.tensor([[0.3, -1.0]]).expand(n_cells, -1), torch.full((n_cells,), 9.0)
    codes = {"labels": torch.ones(n_cells, dtype=torch.int64), "size_factor": torch.full((n_cells,), 4.0)}
    drawn = model.sample_counts(z, codes, library, 1, torch.arange(n_cells), 0)
    one = {key: values[:1] for key, values in codes.items()}
    counts = torch.arange(60.0)[:, None].expand(-1, n_genes)
    expected = LIKELIHOODS[name].log_prob(counts, model.decode(z[:1], one, library[:1])).exp().detach().numpy()
    dense = np.zeros((n_cells, n_genes), int)
    dense[np.repeat(np.arange(n_cells), np.diff(drawn.indptr)), drawn.indices] = drawn.counts
    found = np.stack([np.bincount(gene, minlength=60)[:60] for gene in dense.T], axis=1) / n_cells
    assert np.abs(found - expected).max() < 0.03


@pytest.mark.parametrize("name", [name for name in LIKELIHOODS if LIKELIHOODS[name].fused])
@pytest.mark.parametrize("dispersion", ["gene", "gene-cell"])
def test_a_fused_likelihood_is_what_its_plain_log_probability_says(name: str, dispersion: str, monkeypatch):
    settings = ModelSettings(n_genes=6, n_hidden=8, n_latent=2, n_layers=1, gene_likelihood=name, dispersion=dispersion)
    model = VAE(settings, torch.Generator().manual_seed(0))
    indptr, indices, counts = map(torch.tensor, ([0, 3, 4], [1, 4, 5, 0], [3, 9, 1, 2]))
    batch = Batch(indptr.int(), indices.int(), counts.int(), torch.tensor([13.0, 2.0]), torch.arange(2), 6)
    z = torch.tensor([[0.3, -1.0], [2.0, 0.1]])
    fused = model.reconstruction(batch, z)
    monkeypatch.setitem(likelihoods.LIKELIHOODS, name, replace(LIKELIHOODS[name], fused=None))
    assert torch.allclose(model.reconstruction(batch, z), fused, rtol=1e-5)


def test_only_the_normal_takes_fractions_and_other_names_do_not():
    assert [name for name in LIKELIHOODS if takes_fractions(name)] == ["normal"]
    assert not any(map(takes_fractions, ("gamma", None, ["normal"])))
