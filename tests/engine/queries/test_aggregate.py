"""Mean decoded expression of groups, against all decoded expression in memory."""

import sys
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from atlasvi.engine import SCVI, OpenedQuestion, aggregate
from atlasvi.engine.queries.expression import slice_expression
from atlasvi.engine.queries.question_cells import QueryError
from atlasvi.loaders.errors import ColumnError, GeneError
from tests.engine.api.small_models import make_adata, make_model


@pytest.fixture(scope="module")
def opened(forms: Path) -> OpenedQuestion:
    return OpenedQuestion(forms / "x.mini")


def decode(opened: OpenedQuestion, **options: object) -> pd.DataFrame:
    """All decoded expression, with the columns of obs."""
    parts = [
        pd.DataFrame(values, index=names) for names, values in slice_expression(opened.run, opened.cells, **options)
    ]
    whole = pd.concat(parts).set_axis(options.get("genes") or opened.run.genes, axis=1)
    for name in ("cell_type", "donor", "batch"):
        whole[name] = opened.cells.read_column(name).to_numpy()
    return whole


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"genes": ["g7", "g2"], "library_size": 1e4},
        {"library_size": "observed", "transform_batch": "b"},
        {"transform_batch": ["a", "b"]},
    ],
)
def test_means_of_groups_are_those_of_all_decoded_cells(opened: OpenedQuestion, options: dict):
    whole = decode(opened, **options)
    expected = whole.drop(columns="batch").groupby(["cell_type", "donor"], observed=True).mean()
    found = aggregate(opened, ["cell_type", "donor"], batch_size=7, **options)
    assert found.groups[["cell_type", "donor"]].to_numpy().tolist() == [list(key) for key in expected.index]
    assert found.genes == expected.columns.tolist()
    np.testing.assert_allclose(found.mean, expected, rtol=1e-5)
    sizes = whole.groupby(["cell_type", "donor"], observed=True).size()
    assert found.groups["n_cells"].tolist() == sizes.tolist()
    assert found.groups["n_sampled"].tolist() == sizes.tolist()
    table = found.to_table()
    assert table.columns.tolist() == ["cell_type", "donor", "n_cells", *found.genes]
    assert table.index[0] == f"{found.groups['cell_type'].iloc[0]} | {found.groups['donor'].iloc[0]}"


def test_only_chosen_cells_count(opened: OpenedQuestion):
    chosen = np.arange(0, opened.cells.n_cells, 3)
    expected = decode(opened).iloc[chosen].drop(columns=["batch", "donor"]).groupby("cell_type", observed=True).mean()
    np.testing.assert_allclose(aggregate(opened, "cell_type", chosen=chosen).mean, expected, rtol=1e-5)


@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson"])
def test_the_fraction_is_the_probability_of_a_count(likelihood: str):
    model = make_model(make_adata(40), epochs=1, gene_likelihood=likelihood)
    asked = OpenedQuestion.of_parts(model.run, model.ask(None))
    found = aggregate(asked, "cell_type", genes=["g3", "g30"], fraction_at=50.0)
    assert found.fraction is not None
    whole = decode(asked, genes=["g3", "g30"], library_size=50.0)
    rate = whole[["g3", "g30"]].to_numpy(float)
    if likelihood == "poisson":
        none = np.exp(-rate)
    else:
        theta = np.exp(model.run.model.log_theta.detach().numpy()[[3, 30]]).astype(float)
        none = stats.nbinom.pmf(0, theta, theta / (theta + rate))
    if likelihood == "zinb":
        pi = logits_of_dropout(asked)[:, [3, 30]]
        none = pi + (1 - pi) * none
    expected = pd.DataFrame(1 - none).groupby(whole["cell_type"].to_numpy()).mean()
    np.testing.assert_allclose(found.fraction, expected, rtol=1e-4)
    table = found.to_table()
    assert table.columns.tolist() == ["cell_type", "n_cells", "n_sampled", "gene", "mean", "fraction"]
    assert table["gene"].tolist() == ["g3", "g30"] * 3
    assert table["fraction"].tolist() == found.fraction.ravel().tolist()


def logits_of_dropout(asked: OpenedQuestion) -> np.ndarray:
    model = asked.run.model
    with torch.inference_mode():
        parts = [
            torch.sigmoid(model.decode(each.mean(model)[0], each.codes, each.library).dropout).numpy()
            for each in asked.cells.read_posteriors(model, None, 16)
        ]
    return np.concatenate(parts).astype(float)


def test_a_sample_says_how_far_its_mean_may_be_from_that_of_all_cells(opened: OpenedQuestion):
    whole = aggregate(opened, "cell_type")
    found = [aggregate(opened, "cell_type", max_cells=6, seed=seed) for seed in range(60)]
    assert found[0].groups["n_sampled"].tolist() == [6, 6, 6]
    squares = np.mean([(each.mean - whole.mean) ** 2 for each in found], axis=0)
    variances = np.mean([each.standard_error**2 for each in found if each.standard_error is not None], axis=0)
    assert 0.8 < np.sqrt(np.median(squares / variances)) < 1.2
    everything = aggregate(opened, "cell_type", max_cells=1000)
    np.testing.assert_allclose(everything.mean, whole.mean, rtol=1e-6)
    assert everything.standard_error is not None
    assert not everything.standard_error.any()
    one = aggregate(opened, "cell_type", max_cells=1)
    assert one.standard_error is not None
    assert np.isnan(one.standard_error).all()


def test_cells_without_a_value_are_in_no_group(opened: OpenedQuestion, forms: Path):
    adata = anndata.read_h5ad(forms / "x.h5ad")
    adata.obs["kind"] = adata.obs["cell_type"].astype(object).where(np.arange(adata.n_obs) >= 5, None)
    asked = OpenedQuestion.of_parts(opened.run, SCVI.load(forms / "model", adata).ask(None))
    found = aggregate(asked, "kind")
    assert found.groups["n_cells"].sum() == adata.n_obs - 5
    expected = decode(asked).iloc[5:].drop(columns=["batch", "donor"]).groupby("cell_type", observed=True).mean()
    np.testing.assert_allclose(found.mean, expected, rtol=1e-5)


def test_more_combinations_than_can_be_numbered_are_refused(opened: OpenedQuestion, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys.modules[aggregate.__module__], "MOST_COMBINATIONS", 5)
    with pytest.raises(QueryError, match="cell_type and donor have 6 combinations"):
        aggregate(opened, ["cell_type", "donor"])


@pytest.mark.parametrize(
    ("question", "error", "message"),
    [
        (lambda asked: aggregate(asked, "kind"), ColumnError, "kind"),
        (lambda asked: aggregate(asked, []), QueryError, "name one or more"),
        (lambda asked: aggregate(asked, "donor", genes=["CD3E"]), GeneError, "CD3E"),
        (lambda asked: aggregate(asked, "donor", library_size="all"), QueryError, "library size 'all'"),
        (lambda asked: aggregate(asked, "donor", fraction_at=0), QueryError, "library size 0"),
        (lambda asked: aggregate(asked, "donor", max_cells=0), QueryError, "max_cells is 0"),
        (lambda asked: aggregate(asked, "donor", chosen=np.empty(0, np.int64)), QueryError, "no cell was chosen"),
        (lambda asked: aggregate(asked, "donor", transform_batch="z"), QueryError, "no batch 'z'"),
    ],
)
def test_a_question_without_an_answer_is_refused(opened: OpenedQuestion, question, error: type, message: str):
    with pytest.raises(error, match=message):
        question(opened)
