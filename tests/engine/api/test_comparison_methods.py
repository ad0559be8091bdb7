"""Groups of cells and genes compared: against known draws, known markers, and scvi-tools."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from atlasvi.engine import SCVI
from atlasvi.engine.queries.correlation import correlate_genes
from atlasvi.engine.queries.draw_comparison import Test as Comparison
from atlasvi.engine.queries.draw_comparison import compare_draws, control_fdr, describe_draws, estimate_pseudocounts
from atlasvi.engine.queries.latents import log_density, mix_posteriors
from atlasvi.engine.queries.question_cells import QueryError
from atlasvi.loaders.errors import AtlasviWarning
from tests.engine.api.small_models import N_GENES, make_adata, make_model


@pytest.fixture(scope="module")
def model() -> SCVI:
    return make_model(make_adata(), epochs=60, use_batch_norm="none")


def test_marker_genes_are_found_and_statistics_are_those_of_the_counts(model: SCVI):
    adata, markers = model.adata, {"B": range(8), "NK": range(8, 16), "T": range(16, 24)}
    for mode, by in (("vanilla", "bayes_factor"), ("change", "lfc_mean")):
        table = model.differential_expression(groupby="cell_type", mode=mode)
        for kind, genes in markers.items():
            one = table[table.group1 == kind]
            assert set(one.nlargest(8, by).index) == {f"g{k}" for k in genes}
            inside = (adata.obs.cell_type == kind).to_numpy()
            one = one.loc[adata.var_names]
            np.testing.assert_allclose(one.raw_mean1, adata.X[inside].mean(0).A1, rtol=1e-5)
            np.testing.assert_allclose(one.raw_mean2, adata.X[~inside].mean(0).A1, rtol=1e-5)
            np.testing.assert_allclose(one.non_zeros_proportion1, (adata.X[inside] != 0).mean(0).A1)
            scaled = adata.X.multiply(1e4 / adata.X.sum(1)).tocsr()
            np.testing.assert_allclose(one.raw_normalized_mean2, scaled[~inside].mean(0).A1, rtol=1e-5)


def test_groups_are_said_in_every_way(model: SCVI):
    adata = model.adata
    inside = (adata.obs.cell_type == "B").to_numpy()
    ways = [
        {"groupby": "cell_type", "group1": "B", "group2": "T"},
        {"idx1": inside, "idx2": (adata.obs.cell_type == "T").to_numpy()},
        {"idx1": np.flatnonzero(inside), "idx2": "cell_type == 'T'"},
        {"idx1": "cell_type == 'B'", "idx2": "cell_type == 'T'", "batch_correction": True},
        {"groupby": "cell_type", "group1": ["B"], "group2": "T", "subset_idx": "batch == 'a'"},
        {"groupby": "cell_type", "group1": ["B"], "group2": "T", "use_permutation": True, "m_permutation": 500},
    ]
    tables = [model.differential_expression(mode="change", n_samples_overall=1000, **way).sort_index() for way in ways]
    for table in tables[1:]:
        assert np.corrcoef(table.lfc_mean, tables[0].lfc_mean)[0, 1] > 0.99
    assert "comparison" not in tables[1]
    with pytest.raises(QueryError, match="there are: B, NK, T"):
        model.differential_expression(groupby="cell_type", group1="C")
    with pytest.raises(QueryError, match="nothing to compare"):
        model.differential_expression(idx1=np.zeros(adata.n_obs, bool))
    with pytest.raises(ValueError, match="batch_correction=True"):
        model.differential_expression(groupby="cell_type", batchid1=["a"], batchid2=["a"])


@pytest.mark.filterwarnings("ignore:Determinant has increased")  # few cells
def test_options_of_differential_expression(model: SCVI):
    pytest.importorskip("sklearn")
    table = model.differential_expression(
        groupby="cell_type",
        group1="B",
        mode="change",
        delta=None,
        fdr_target=0.1,
        filter_outlier_cells=True,
        weights="importance",
        importance_weighting_kwargs={"max_cells": 10, "n_mc_samples": 5, "truncation": True},
        n_samples_overall=200,
        cred_interval_lvls=[0.9],
        test_mode="two",
        all_stats=False,
    )
    assert table["is_de_fdr_0.1"].dtype == bool
    assert (table["lfc_confidence_interval_0.9_min"]).le(table["lfc_confidence_interval_0.9_max"]).all()
    assert "raw_mean1" not in table


def test_effect_sizes_of_known_draws():
    rng = np.random.default_rng(0)
    first = rng.gamma(2, 1e-3, (4000, 3))
    second = first[rng.permutation(4000)] * np.array([1.0, 0.5, 4.0])
    batches = np.full(4000, np.nan)
    test = Comparison(mode="change", pseudocounts=1e-9)
    said = compare_draws(first, batches, second, batches, test, None, torch.Generator())
    np.testing.assert_allclose(said["lfc_mean"], [0, 1, -2], atol=0.1)
    assert said["pseudocounts"] == 1e-9
    unseen = np.array([True, True, False])
    assert estimate_pseudocounts(first, second, unseen, ~unseen) == pytest.approx(second[:, 2].max() / 3)
    assert estimate_pseudocounts(first, second, unseen & False, unseen & False) == 1e-10


@settings(max_examples=30)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.floats(0.01, 0.5))
def test_no_larger_set_of_genes_keeps_the_false_discovery_rate(probabilities: list[float], target: float):
    ordered = np.sort(probabilities)[::-1]
    n = int(control_fdr(ordered, target).sum())
    assert n == 0 or (1 - ordered[:n]).mean() <= target + 1e-12
    assert all((1 - ordered[:k]).mean() > target for k in range(n + 1, len(ordered) + 1))


def test_intervals_are_the_narrowest():
    draws = np.concatenate([np.linspace(0, 1, 90), np.linspace(5, 50, 10)])[:, None]
    said = describe_draws(draws, [0.8])
    assert said["confidence_interval_0.8_max"] - said["confidence_interval_0.8_min"] < 1


def test_correlations_are_of_genes_that_go_together(model: SCVI):
    for kind in ("spearman", "pearson"):
        matrix = model.get_feature_correlation_matrix(correlation_type=kind, transform_batch=["a", "b"])
        assert matrix.index.tolist() == model.run.genes
        assert np.allclose(np.diag(matrix), 1)
        assert matrix.loc["g0", "g1"] > matrix.loc["g0", "g9"]
    with pytest.raises(ValueError, match="'spearman' or 'pearson'"):
        model.get_feature_correlation_matrix(correlation_type="kendall")


def test_a_gene_that_is_named_twice_has_the_same_correlations_in_both_places(model: SCVI):
    for method in ("spearman", "pearson"):
        run, cells = model.run, model.ask()
        options = {"indices": np.arange(50), "correlation_type": method}
        twice = correlate_genes(
            run.model, cells, torch.Generator().manual_seed(1), columns=np.array([7, 2, 7]), **options
        )
        once = correlate_genes(run.model, cells, torch.Generator().manual_seed(1), columns=np.array([2, 7]), **options)
        np.testing.assert_array_equal(twice, once[np.ix_([1, 0, 1], [1, 0, 1])])


def test_a_gene_that_does_not_vary_has_no_correlations_and_a_warning_says_so():
    model = make_model(make_adata(30), epochs=1)
    with torch.no_grad():
        model.module.decoder.logits.bias[3] = -200  # its proportion, and so each draw, is 0 in float32
    with pytest.warns(AtlasviWarning, match="1 of 40 genes have the same value in all draws"):
        matrix = model.get_feature_correlation_matrix()
    assert matrix.isna().sum().sum() == 2 * N_GENES - 1
    assert matrix["g3"].isna().all()


def test_a_sample_without_cells_has_no_density(model: SCVI):
    some = model.adata[:20].copy()
    some.obs["donor"] = 7
    with pytest.raises(QueryError, match="no cell has donor = 7"):
        model.differential_abundance(adata_sub=some, sample_key="donor")
    some.obs["donor"] = np.nan
    with pytest.raises(QueryError, match="missing in every cell"):
        model.differential_abundance(adata_sub=some, sample_key="donor")


def test_cells_are_likely_where_their_sample_is(model: SCVI):
    table = model.differential_abundance(sample_key="cell_type")
    assert model.adata.obsm["da_log_probs"] is not None
    own = [table.loc[cell, kind] for cell, kind in model.adata.obs.cell_type.items()]
    assert np.mean(own) > np.mean(table.to_numpy())
    some = model.differential_abundance(adata_sub=model.adata[:5].copy(), sample_key="cell_type", num_cells_posterior=9)
    assert some.shape[0] == 5


@pytest.mark.parametrize("dof", [None, 3.0])
def test_the_density_of_a_mixture_is_the_same_in_slices(dof: float | None, monkeypatch):
    from atlasvi.engine.queries import latents

    generator = torch.Generator().manual_seed(0)
    z, qzm = (torch.randn(n, 3, generator=generator) for n in (7, 50))
    qzv = torch.rand(50, 3, generator=generator) + 0.1
    monkeypatch.setattr(latents, "ELEMENTS", 7 * 3 * 8)
    torch.testing.assert_close(log_density(z, qzm, qzv, dof), mix_posteriors(qzm, qzv, dof).log_prob(z))


@pytest.mark.slow
def test_fold_changes_are_those_of_scvi_tools_from_the_same_weights(shared: Path):
    """`tests/golden/differential.npz` is what scvi-tools 1.5.1 said (benchmarks/peers/differential.py, seed 0)."""
    import anndata

    with np.load(Path(__file__).parents[2] / "golden" / "differential.npz") as file:
        expected = dict(zip(file["groups"].tolist(), file["lfc_mean"]))
    cells = anndata.read_h5ad(shared / "data" / "onek1k.h5ad")
    model = SCVI.load(shared / "scvi_models" / "onek1k_seed", cells)
    table = model.differential_expression(groupby="cell_type", mode="change", all_stats=False)
    for group, theirs in expected.items():
        ours = table.loc[table["group1"] == group, "lfc_mean"].loc[model.run.genes].to_numpy()
        assert np.corrcoef(ours, theirs)[0, 1] > 0.99, group
        largest = [set(np.argsort(-np.abs(changes))[:100].tolist()) for changes in (ours, theirs)]
        assert len(largest[0] & largest[1]) >= 95, group
