import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from atlasvi.engine import SCVI
from atlasvi.engine.card.measured_parts import measure_parts
from atlasvi.engine.card.part_statistics import PartStatistics
from atlasvi.engine.queries.predictive_counts import predictive_counts
from tests.engine.card.counts import make_counts


@pytest.mark.parametrize("batch_size", [11, 1024])
def test_one_pass_gives_the_statistics_of_counts_and_draws_in_memory(batch_size: int):
    counts = make_counts(60, 12)
    obs = pd.DataFrame(index=[f"cell{k}" for k in range(60)])
    adata = anndata.AnnData(counts[1:], obs[1:], pd.DataFrame(index=[f"g{k}" for k in range(12)]))
    SCVI.setup_anndata(adata)
    model = SCVI(adata, n_hidden=8, n_latent=3)
    labels, split = np.arange(59) % 3 - 1, np.random.default_rng(0).integers(0, 3, 59)
    parts = {"training": split == 0, "validation": split == 1, "test": np.zeros(59, bool)}
    options = {"labels": labels, "n_labels": 2, "n_tested": 2, "batch_size": batch_size}
    found = measure_parts(model.module, model.ask(), parts, seed=4, n_draws=3, **options)
    drawn = predictive_counts(model.module, model.ask(), 4, indices=np.arange(59), n_draws=3).toarray()
    draws = [sparse.csr_matrix(drawn.reshape(59, 12, 3)[:, :, k]) for k in range(3)]
    assert found["test"].n_cells == 0
    for name in ("training", "validation"):
        rows = np.flatnonzero(parts[name])
        expected = PartStatistics(12, 3, 2, n_tested=2)
        expected.add(counts[1:][rows], [draw[rows] for draw in draws], labels[rows])
        assert found[name].n_cells == len(rows)
        for ask, what in (("cell_figures", "variation"), ("cell_figures", "library"), ("gene_figures", "variation")):
            for figure, estimate in getattr(expected, ask)(what).items():
                assert getattr(found[name], ask)(what)[figure] == pytest.approx(estimate, rel=1e-6, nan_ok=True)
        ours, theirs = found[name].marker_figures(), expected.marker_figures()
        assert ours[1] == theirs[1]
        for label, figures in theirs[0].items():
            assert ours[0][label]["lfc_mae"] == pytest.approx(figures["lfc_mae"], rel=1e-6)
