"""Columns of obs and genes become colours: categories with a name each, or numbers on a scale."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from atlasvi.engine import OpenedQuestion
from atlasvi.engine.plots.colouring import (
    MAX_CATEGORIES,
    Categories,
    Numbers,
    colour_column,
    colour_genes,
    colour_series,
    shorten,
    to_bytes,
)
from atlasvi.engine.plots.style import Style
from atlasvi.engine.queries.minified_queries import read_expression
from atlasvi.engine.queries.question_cells import QueryError
from atlasvi.loaders.cells.memory_cells import MemoryObs
from atlasvi.loaders.errors import ColumnError, GeneError

pytest.importorskip("matplotlib")


class Columns:
    """Columns in memory, with the interface of a question's cells."""

    path = "atlas"

    def __init__(self, table: pd.DataFrame) -> None:
        self._table, self.n_cells, self.obs_columns = table, len(table), list(table)

    def read_column(self, name: str, start: int = 0, stop: int | None = None) -> pd.Series:
        return self._table[name].iloc[start:stop].reset_index(drop=True)


def read(values: object, chosen: np.ndarray | None = None) -> Categories | Numbers:
    return colour_column(Columns(pd.DataFrame({"column": values})), "column", chosen)  # type: ignore[arg-type]


def test_names_are_sorted_by_their_numbers_and_the_rarest_beyond_forty_are_drawn_together() -> None:
    names = [f"donor {number}" for number in range(60) for _ in range(1 + number % 2)]
    for panel in (read(names), colour_series("donor", pd.Series(names))):
        assert isinstance(panel, Categories)
        assert len(panel.names) == len(panel.list_colours(Style())) == MAX_CATEGORIES
        assert panel.names[:5] == ["donor 0", "donor 1", "donor 2", "donor 3", "donor 4"]
        assert panel.names[-1] == "21 others"
        assert panel.n_total == 60
        assert panel.names[panel.codes[names.index("donor 59")]] == "donor 59"
        assert (panel.codes == MAX_CATEGORIES - 1).sum() == 21
        assert panel.list_colours(Style())[-1] == Style().faint


def test_missing_values_and_others_lie_below_the_categories() -> None:
    names = [None, *[f"donor {number}" for number in range(60) for _ in range(1 + number % 2)]]
    panel = read(names)
    assert isinstance(panel, Categories)
    layers = panel.find_layers()
    assert layers[0] == 0
    assert (layers == 1).sum() == 21
    assert (panel.paint(Style())[0] == to_bytes([Style().missing])[0]).all()
    numbers = read(np.append(np.arange(100.0), np.nan))
    assert isinstance(numbers, Numbers)
    assert numbers.find_layers().tolist() == [1] * 100 + [0]
    assert (numbers.paint(Style())[-1] == to_bytes([Style().missing])[0]).all()


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ([True, False, True], ["False", "True"]),
        ([3, 1, 20], ["1", "3", "20"]),
        ([0.5, np.nan, 0.25], ["0.25", "0.5"]),
        (pd.array([2, None, 1], "Int64"), ["1", "2"]),
        (pd.Categorical(["b", "a", "b"], categories=["c", "b", "a"], ordered=True), ["b", "a"]),
        ([None, None, None], []),
        (["x y\nz", "q" * 40, "a"], ["a", "q" * 21 + "…" + "q" * 8, "x y z"]),
    ],
)
def test_any_column_of_few_values_is_of_categories(values: object, names: list[str]) -> None:
    panel = read(values)
    assert isinstance(panel, Categories)
    assert panel.names == names
    assert len(panel.paint(Style())) == 3


def test_the_scale_leaves_out_the_outermost_values_and_holds_all_others() -> None:
    values = np.append(np.arange(1000.0), 1e6)
    panel = read(values)
    assert isinstance(panel, Numbers)
    low, high = panel.find_limits()
    assert 0 < low < 10
    assert 990 < high < 1000
    colours = panel.paint(Style())
    assert (colours[-1] == colours[999]).all()  # the last colour
    assert Numbers("same", np.ones(5, np.float32)).find_limits()[1] > 1
    assert Numbers("none", np.full(5, np.nan, np.float32)).find_limits() == (0, 1)
    with_limits = Numbers("n", np.array([0, 5, 10], np.float32), limits=(4, 6))
    assert with_limits.find_limits() == (4, 6)


def test_a_choice_of_cells_has_the_colours_of_its_own_values() -> None:
    chosen = np.array([1, 4])
    panel = read(list("abcda"), chosen)
    assert isinstance(panel, Categories)
    assert (panel.names, panel.codes.tolist()) == (["a", "b"], [1, 0])


def test_a_gene_is_coloured_by_its_decoded_expression(forms: Path) -> None:
    opened = OpenedQuestion(forms / "x.mini")
    chosen = np.array([3, 10, 11])
    found = colour_genes(opened, ["g2", "g5"], chosen)
    assert opened.kept is not None
    expected = np.concatenate([part for _, part in read_expression(opened.kept, ["g2", "g5"], chosen, 10_000)])
    for k, panel in enumerate(found):
        np.testing.assert_allclose(panel.values, np.log1p(expected[:, k]), rtol=1e-6)
        assert panel.unit == "log(1 + counts per 10,000)"
    (linear,) = colour_genes(opened, ["g5"], chosen, scale="linear", library_size=1)
    np.testing.assert_allclose(linear.values, expected[:, 1] / 10_000, rtol=1e-5)
    assert linear.unit == "proportion of counts"
    with pytest.raises(GeneError, match="nix"):
        colour_genes(opened, ["nix"], None)


def test_what_is_no_picture_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from atlasvi.engine.plots import colouring

    monkeypatch.setattr(colouring, "MOST_VALUES", 10)
    with pytest.raises(QueryError, match="obs column 'column' has more than 10 different values"):
        read([f"barcode {k}" for k in range(30)])
    with pytest.raises(ColumnError, match="no column"):
        colour_column(MemoryObs(_anndata()), "colum", None)  # type: ignore[arg-type]


def _anndata() -> object:
    import anndata

    return anndata.AnnData(obs=pd.DataFrame({"column": [1.0]}, index=["c"]))


def test_long_names_keep_their_ends() -> None:
    assert shorten("CD4-positive, alpha-beta memory T cell, CD45RO-positive") == "CD4-positive, alpha-b…positive"
    assert len(shorten("x" * 99)) == 30
