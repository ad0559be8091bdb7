"""Dot plots and heat maps hold the numbers of `aggregate`, of marker genes or of genes that were named."""

from pathlib import Path

import numpy as np
import pytest

from atlasvi.engine import aggregate, markers, plot_groups
from atlasvi.engine.plots import group_plot
from atlasvi.engine.plots.group_plot import GroupValues, draw_groups
from atlasvi.engine.plots.picture_file import write_picture
from atlasvi.engine.plots.style import Style, drawing
from atlasvi.engine.queries.question_cells import QueryError
from atlasvi.loaders.errors import ColumnError, GeneError

pytest.importorskip("matplotlib")
GENES = ["g2", "g7", "g30"]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[GroupValues]:
    """What was drawn."""
    seen: list[GroupValues] = []
    whole = group_plot.draw_groups
    monkeypatch.setattr(group_plot, "draw_groups", lambda found, *rest: seen.append(found) or whole(found, *rest))
    return seen


def test_a_dot_plot_has_the_means_and_shares_of_aggregate(forms: Path, tmp_path: Path, drawn: list[GroupValues]):
    options = {"genes": GENES, "library_size": 10_000, "fraction_at": "observed"}
    expected = aggregate(forms / "x.mini", "batch", **options)  # type: ignore[arg-type]
    out = tmp_path / "a.svg"
    plot_groups(forms / "x.mini", "batch", out, genes=GENES, max_cells=None, style=Style(dpi=60))
    np.testing.assert_allclose(drawn[0].values, np.log1p(expected.mean), rtol=1e-6)
    np.testing.assert_allclose(drawn[0].shares, expected.fraction, rtol=1e-6)
    text = out.read_text()
    for word in (*GENES, "batch", "cells with a count", "100%", "log(1 + mean counts", *drawn[0].groups):
        assert f">{word}" in text


def test_without_names_the_genes_are_the_markers_of_each_group(forms: Path, drawn: list[GroupValues]):
    table = markers(forms / "x.mini", "batch", top=2)
    higher = table[table["lfc_mean"] > 0]
    plot_groups(forms / "x.mini", "batch", kind="heatmap", top=2, scale="gene")
    found = drawn[0]
    assert found.genes == list(dict.fromkeys(higher.index))
    assert found.owners is not None
    first = higher[~higher.index.duplicated()]
    assert [found.groups[owner] for owner in found.owners] == first["group1"].tolist()
    assert found.shares is None
    assert found.values.min() == 0
    assert found.values.max() == 1


@pytest.mark.parametrize(("n_groups", "n_genes"), [(1, 1), (2, 30), (45, 2)])
@pytest.mark.parametrize("with_shares", [True, False])
def test_nothing_is_cut_off_whatever_the_numbers(tmp_path: Path, n_groups: int, n_genes: int, with_shares: bool):
    shape, style = (n_groups, n_genes), Style(dpi=60, dark=with_shares)
    found = GroupValues(
        [f"a group with a long name, number {k}" for k in range(n_groups)],
        np.full(n_groups, 12_345_678),
        [f"ENSG0000000{k}" for k in range(n_genes)],
        sorted(k % n_groups for k in range(n_genes)) if with_shares else None,
        np.ones(shape),
        np.ones(shape) if with_shares else None,
        "log(1 + mean counts per 10,000)",
    )
    with drawing(style):
        figure = draw_groups(found, "a column with a name of many words " * 3, style)
        write_picture(figure, tmp_path / "a.png", style)
        left, bottom, width, height = figure.get_tightbbox().bounds
    assert left >= 0
    assert bottom >= 0
    assert left + width <= figure.get_size_inches()[0]
    assert bottom + height <= figure.get_size_inches()[1]


def test_what_can_not_be_drawn_is_said_in_a_sentence(forms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    mini = forms / "x.mini"
    with pytest.raises(ColumnError, match=r"no column 'bach' .* Did you mean 'batch'\?"):
        plot_groups(mini, "bach")
    with pytest.raises(GeneError, match="g999"):
        plot_groups(mini, "batch", genes=["g999"])
    with pytest.raises(QueryError, match="kind is 'violin': use one of dots, heatmap"):
        plot_groups(mini, "batch", kind="violin")  # type: ignore[arg-type]
    with pytest.raises(QueryError, match="width is 2 inches, too little for 40 genes"):
        plot_groups(mini, "batch", genes=[f"g{k}" for k in range(40)], style=Style(width=2))
    with pytest.raises(QueryError, match="a picture ends in"):
        plot_groups(mini, "batch", tmp_path / "a.csv", genes=GENES)
    monkeypatch.setattr(group_plot, "MOST_FIELDS", 3)
    with pytest.raises(QueryError, match="2 groups and 3 genes are too many for a picture: name fewer genes"):
        plot_groups(mini, "batch", genes=GENES)
    assert not list(tmp_path.iterdir())
