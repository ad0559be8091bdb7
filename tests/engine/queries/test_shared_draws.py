"""Draws that many comparisons share: mixtures of labels, and that blocks and rounds do not change what is compared."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from atlasvi.engine.queries import shared_draws
from atlasvi.engine.queries.markers import markers
from atlasvi.engine.queries.shared_draws import mix_labels


@given(
    st.lists(st.integers(0, 10**9), min_size=1, max_size=30).filter(any),
    st.integers(1, 5000),
    st.floats(0, 1, exclude_max=True),
)
@example([1], 3, 1 - 2**-52)
def test_a_mixture_has_the_labels_in_proportion_to_their_sizes(sizes: list[int], n: int, start: float):
    counts = mix_labels(np.array(sizes), np.ones(len(sizes), bool), n, start)
    assert counts.sum() == n
    assert (abs(counts - n * np.array(sizes) / sum(sizes)) < 1 + 1e-6).all()


def test_a_mixture_has_only_the_chosen_labels_and_its_expected_numbers_are_exact():
    sizes, chosen = np.array([10, 5, 3, 2]), np.array([True, False, True, True])
    mean = np.mean([mix_labels(sizes, chosen, 7, start) for start in (np.arange(3000) + 0.5) / 3000], axis=0)
    np.testing.assert_allclose(mean, 7 * np.array([10, 0, 3, 2]) / 15, atol=1e-3)


def test_blocks_of_genes_do_not_change_the_numbers(forms: Path, monkeypatch: pytest.MonkeyPatch):
    whole = markers(forms / "x.mini", "cell_type", n_samples=300).sort_index()
    monkeypatch.setattr(shared_draws, "BLOCK_ELEMENTS", 1)
    one_by_one = markers(forms / "x.mini", "cell_type", n_samples=300).sort_index()
    for name in ("proba_de", "lfc_mean", "lfc_median", "scale1", "scale2", "pseudocounts"):
        np.testing.assert_allclose(
            *(t.sort_values(["group1", "gene"])[name] for t in (one_by_one, whole)), rtol=1e-3, atol=4e-3
        )


def test_rounds_of_comparisons_agree_with_one_round(forms: Path, monkeypatch: pytest.MonkeyPatch):
    reports: list[tuple[str, int, int]] = []
    whole = markers(forms / "x.mini", "cell_type", n_samples=20_000)
    monkeypatch.setattr(shared_draws, "ROUND_BYTES", 1)
    alone = markers(forms / "x.mini", "cell_type", n_samples=20_000, progress=lambda *each: reports.append(each))
    one, other = (table.set_index("group1", append=True).sort_index() for table in (whole, alone))
    np.testing.assert_allclose(one["lfc_mean"], other["lfc_mean"], atol=0.05)
    np.testing.assert_allclose(one["proba_de"], other["proba_de"], atol=0.03)
    n = 3 * one.index.get_level_values("gene").nunique()
    assert [done for stage, done, _ in reports if stage == "comparing"] == [n // 3, 2 * n // 3, n]
    assert pd.Series([total for stage, _, total in reports if stage == "comparing"]).unique().tolist() == [n]
