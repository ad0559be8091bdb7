import numpy as np

from atlasvi.engine.card.gene_moments import GeneMoments
from tests.engine.card.counts import make_counts


def test_the_statistics_of_each_gene_are_those_of_the_dense_counts_however_they_are_added():
    counts = make_counts()
    dense = counts.toarray().astype(float)
    streamed, parts = GeneMoments.empty(30), [GeneMoments.empty(30), GeneMoments.empty(30)]
    for at in range(0, 60, 7):
        streamed.add(counts[at : at + 7])
        parts[at % 2].add(counts[at : at + 7])
    for found in (streamed, parts[0] + parts[1]):
        assert found.n_cells == 60
        with_counts = dense.any(0)
        expected = dense[:, with_counts].std(0) / dense[:, with_counts].mean(0)
        np.testing.assert_allclose(found.variation[with_counts], expected, rtol=1e-12)
        assert np.isnan(found.variation[~with_counts]).all()
        np.testing.assert_allclose(found.zero_fraction, (dense == 0).mean(0))
    assert np.isnan(GeneMoments.empty(30).zero_fraction).all()
