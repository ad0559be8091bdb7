import numpy as np
import pytest
from scipy import sparse, stats

from atlasvi.engine.card.cell_agreement import agree_over_cells
from atlasvi.engine.card.cell_statistics import cell_statistics
from atlasvi.engine.card.model_card import Figures
from atlasvi.engine.card.part_statistics import PartStatistics
from tests.engine.card.counts import make_counts

REAL, DRAWS = make_counts(seed=0), [make_counts(seed=k) for k in (1, 2, 3)]
LABELS = np.random.default_rng(5).integers(0, 2, 60)


def stream(real=REAL, draws=DRAWS, labels=LABELS, n_labels: int = 2, step: int = 9) -> PartStatistics:
    part = PartStatistics(real.shape[1], len(draws), n_labels, n_tested=2)
    for at in range(0, real.shape[0], step):
        here = slice(at, at + step)
        part.add(real[here], [draw[here] for draw in draws], None if labels is None else labels[here])
    return part


def variation(dense: np.ndarray, axis: int) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        found = dense.std(axis) / dense.mean(axis)
    return found.astype(np.float32).astype(float) if axis else found  # as kept: cells that are equal stay so


def cell_figures(name: str, real=REAL, draws=DRAWS) -> Figures:
    values = np.stack([getattr(cell_statistics(each), name) for each in (real, *draws)])
    return agree_over_cells(lambda: iter([values[:, :25], values[:, 25:]]), values.shape[1])


@pytest.mark.parametrize("axis", [1, 0])
def test_variation_agrees_as_by_the_definitions_of_the_hub(axis: int):
    real = np.nan_to_num(variation(REAL.toarray().astype(float), axis))
    drawn = np.array([variation(draw.toarray().astype(float), axis) for draw in DRAWS])
    some = ~np.isnan(drawn).all(0)
    mean = np.zeros(drawn.shape[1])
    mean[some] = np.nanmean(drawn[:, some], axis=0)
    found = cell_figures("variation") if axis else stream().gene_figures("variation")
    assert found["mae"].value == pytest.approx(np.abs(mean - real).mean(), rel=1e-5)
    assert found["pearson"].value == pytest.approx(stats.pearsonr(mean, real)[0], rel=1e-5)
    assert found["spearman"].value == pytest.approx(stats.spearmanr(mean, real)[0], rel=1e-4)
    assert found["r2"].value == pytest.approx(
        1 - ((mean - real) ** 2).sum() / ((mean - mean.mean()) ** 2).sum(), rel=1e-4
    )
    assert all(0 < estimate.error < 3 for estimate in found.values())


def test_library_sizes_numbers_of_genes_and_zero_fractions_are_compared_too():
    part, dense = stream(), [matrix.toarray() for matrix in (REAL, *DRAWS)]
    for name, values in (
        ("library", [each.sum(1) for each in dense]),
        ("expressed", [(each > 0).sum(1) for each in dense]),
    ):
        expected = stats.pearsonr(np.mean(values[1:], axis=0), values[0])[0]
        assert cell_figures(name)["pearson"].value == pytest.approx(expected, rel=1e-6)
    zeros = [(each == 0).mean(0) for each in dense]
    found = part.gene_figures("zero_fraction")["mae"].value
    assert found == pytest.approx(np.abs(np.mean(zeros[1:], axis=0) - zeros[0]).mean(), rel=1e-9)
    assert part.n_genes_without_counts() == (
        int((dense[0] == 0).all(0).sum()),
        int((np.sum(dense[1:], 0) == 0).all(0).sum()),
    )


def test_passes_over_parts_of_the_cells_add_up_to_one_pass():
    whole, first = stream(), stream(REAL[:27], [draw[:27] for draw in DRAWS], LABELS[:27])
    first.extend(stream(REAL[27:], [draw[27:] for draw in DRAWS], LABELS[27:], step=4))
    assert first.n_cells == whole.n_cells == 60
    for name in ("variation", "zero_fraction"):
        for figure, estimate in whole.gene_figures(name).items():
            assert first.gene_figures(name)[figure] == pytest.approx(estimate, rel=1e-9)
    np.testing.assert_array_equal(first.ranks.table, whole.ranks.table)
    np.testing.assert_allclose(first.ranks.by_cell, whole.ranks.by_cell, rtol=1e-12)
    ours, theirs = first.marker_figures()[0], whole.marker_figures()[0]
    assert ours.keys() == theirs.keys() == {0, 1}
    assert ours[1]["lfc_pearson"] == pytest.approx(theirs[1]["lfc_pearson"], rel=1e-9)


def test_markers_have_an_error_over_draws_and_labels_without_a_test_their_reason():
    labels = LABELS.copy()
    labels[0] = 2
    figures, untested = stream(labels=labels, n_labels=3).marker_figures()
    assert set(figures) == {0, 1}
    assert untested == {2: "it has one cell, and a variance needs two"}
    assert figures[0]["lfc_mae"].error > 0
    same, _ = stream(draws=[REAL, REAL]).marker_figures()
    assert same[0]["gene_f1"] == (1, 0)
    assert stream(labels=None, n_labels=0).marker_figures() == ({}, {})


def test_sums_are_the_same_after_a_file():
    whole, again = stream(), PartStatistics(30, 3, 2, n_tested=2)
    whole.add_losses(np.ones(60), np.ones((3, 60)))
    again.add_arrays(whole.to_arrays())
    for name, values in whole.to_arrays().items():
        np.testing.assert_array_equal(again.to_arrays()[name], values)


def test_losses_are_means_over_cells_with_errors_over_draws():
    part = stream()
    part.add_losses(np.full(60, 2.0), np.array([[100.0], [101.0], [102.0]]).repeat(60, axis=1))
    figures = part.loss_figures()
    assert figures["kl"] == (2, 0)
    assert figures["reconstruction_loss"] == pytest.approx((101, 1 / np.sqrt(3)))
    assert figures["elbo"] == pytest.approx((-103, 1 / np.sqrt(3)))


def test_no_cells_one_cell_and_a_single_draw_leave_figures_undefined_not_wrong():
    empty = PartStatistics(30, 2)
    assert empty.n_cells == 0
    assert empty.loss_figures() == {}
    assert empty.ranks.calibrate() is None
    assert np.isnan(empty.gene_figures("zero_fraction")["pearson"].value)
    figures = cell_figures("variation", REAL[3:4], [DRAWS[0][3:4]])
    assert np.isfinite(figures["mae"].value)
    assert np.isnan(figures["mae"].error)
    assert np.isnan(figures["pearson"].value)
    nothing = PartStatistics(4, 1)
    nothing.add(sparse.csr_matrix((2, 4)), [sparse.csr_matrix((2, 4))])
    assert nothing.gene_figures("variation")["mae"] == pytest.approx((0, np.nan), nan_ok=True)
