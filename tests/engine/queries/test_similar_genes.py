"""Similar genes, against numpy's correlations of all decoded expression."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from atlasvi.engine import OpenedQuestion, similar_genes
from atlasvi.engine.queries.cross_products import CrossProducts
from atlasvi.engine.queries.expression import slice_expression
from atlasvi.engine.queries.question_cells import QueryError
from atlasvi.loaders.errors import GeneError


@pytest.fixture(scope="module")
def opened(forms: Path) -> OpenedQuestion:
    return OpenedQuestion(forms / "x.mini")


@pytest.mark.parametrize(
    ("scale", "options"), [("log", {}), ("linear", {"transform_batch": ["a", "b"]}), ("log", {"transform_batch": "a"})]
)
def test_they_are_those_with_the_highest_correlations(opened: OpenedQuestion, scale: str, options: dict):
    chosen = np.arange(0, opened.cells.n_cells, 2)
    parts = [values for _, values in slice_expression(opened.run, opened.cells, chosen, **options)]
    values = np.concatenate(parts).astype(float)
    whole = np.corrcoef(np.log1p(1e4 * values) if scale == "log" else values, rowvar=False)
    found = similar_genes(opened, ["g5", "g20"], top=None, chosen=chosen, scale=scale, batch_size=7, **options)
    names = pd.Index(opened.run.genes)
    for gene in ("g5", "g20"):
        one = found.loc[gene]
        expected = pd.Series(whole[names.get_loc(gene)], names).drop(gene).sort_values(ascending=False)
        np.testing.assert_allclose(one["correlation"], expected, atol=1e-5)
        np.testing.assert_allclose(expected[one["similar_gene"]], one["correlation"], atol=1e-5)
    best = similar_genes(opened, ["g20", "g20"], top=2, chosen=chosen, scale=scale, batch_size=7, **options)
    pd.testing.assert_frame_equal(best, found.loc[["g20"]].iloc[:2])


def test_a_sample_of_cells_and_draws_of_z_give_nearly_the_same(opened: OpenedQuestion):
    whole = similar_genes(opened, ["g5"], top=None).set_index("similar_gene")["correlation"]
    some = similar_genes(opened, ["g5"], top=None, max_cells=50).set_index("similar_gene")["correlation"]
    assert abs(some - whole).max() < 0.5
    drawn = [
        similar_genes(opened, ["g5"], top=None, n_samples=1000, seed=seed).set_index("similar_gene")["correlation"]
        for seed in (0, 1)
    ]
    assert 0 < abs(drawn[0] - drawn[1]).mean() < 0.1
    assert not np.array_equal(some[whole.index], whole)


@pytest.mark.parametrize(
    ("question", "error", "message"),
    [
        (lambda asked: similar_genes(asked, []), QueryError, "name at least one"),
        (lambda asked: similar_genes(asked, ["CD3E"]), GeneError, "CD3E"),
        (lambda asked: similar_genes(asked, ["g1"], chosen=np.array([3])), QueryError, "at least two"),
        (lambda asked: similar_genes(asked, ["g1"], max_cells=1), QueryError, "max_cells is 1"),
        (lambda asked: similar_genes(asked, ["g1"], scale="ln"), QueryError, "scale 'ln'"),
        (lambda asked: similar_genes(asked, ["g1"], top=0), QueryError, "top is 0"),
    ],
)
def test_a_question_without_an_answer_is_refused(opened: OpenedQuestion, question, error: type, message: str):
    with pytest.raises(error, match=message):
        question(opened)


@pytest.mark.parametrize("offset", [0, 1e6])
def test_slices_of_cells_add_up_to_the_correlations_of_all(offset: float):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(200, 6)) @ rng.normal(size=(6, 6)) + offset
    values[:, 4] = 3.1
    products = CrossProducts(np.array([2, 4, 0]))
    for part in np.split(values, [1, 50, 120]):
        products.add(torch.from_numpy(part))
    with np.errstate(invalid="ignore"):
        expected = np.corrcoef(values, rowvar=False)[[2, 4, 0]]
    found = products.correlate()
    assert np.isnan(found[1]).all()
    assert np.isnan(found[:, 4]).all()
    varying = [0, 1, 2, 3, 5]
    np.testing.assert_allclose(found[[0, 2]][:, varying], expected[[0, 2]][:, varying], atol=1e-7)
