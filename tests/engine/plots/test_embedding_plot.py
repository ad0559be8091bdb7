"""Cells are drawn at their coordinates, in the format that the name says, with text as text."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from atlasvi.engine import plot_embedding
from atlasvi.engine.minified.embedding import writing_embedding
from atlasvi.engine.minified.minified_store import MinifiedStore
from atlasvi.engine.plots import embedding_plot
from atlasvi.engine.plots.colouring import Categories, Colouring, colour_series
from atlasvi.engine.plots.embedding_plot import draw_figure
from atlasvi.engine.plots.picture_file import write_picture
from atlasvi.engine.plots.style import Style, drawing
from atlasvi.engine.queries.opened_question import OpenedQuestion
from atlasvi.engine.queries.question_cells import QueryError
from atlasvi.loaders.cells.added_columns import add_obs_columns
from atlasvi.loaders.errors import ColumnError, GeneError, MissingDependencyError, OutputError, SourceError

pytest.importorskip("matplotlib")
N = 60  # cells of `forms`
SMALL = Style(dpi=60)
KINDS = {"png": b"\x89PNG\r\n", "svg": b"<?xml", "pdf": b"%PDF"}


@pytest.fixture(scope="module")
def mini(forms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = Path(shutil.copytree(forms / "x.mini", tmp_path_factory.mktemp("mini") / "x.mini"))
    table = pd.DataFrame({"score": np.linspace(0, 1, N)}, index=MinifiedStore(path).read_names())
    table.loc[table.index[:4], "score"] = np.nan
    add_obs_columns(path, table)
    with writing_embedding(MinifiedStore(path), {}) as append:
        append(np.random.default_rng(0).normal(size=(N, 2)).astype(np.float32))
    return path


@pytest.mark.parametrize("form", KINDS)
def test_the_ending_of_the_name_is_the_format_and_text_stays_text(mini: Path, tmp_path: Path, form: str):
    out = tmp_path / f"a.{form}"
    plot_embedding(mini, out, by=["batch", "score"], genes=["g3"], style=Style(title="My atlas", dpi=60))
    content = out.read_bytes()
    assert content.startswith(KINDS[form])
    if form == "svg":
        text = content.decode()
        for word in ("My atlas", "60 cells", "batch (2)", "score", "g3", "log(1 + counts per 10,000)", "UMAP 1"):
            assert f">{word}<" in text
        assert text.count("<image") >= 3  # the points are pixels
        assert text.count("<path") < 200
    plot_embedding(mini, out, by=["batch", "score"], genes=["g3"], style=Style(title="My atlas", dpi=60), replace=True)
    assert out.read_bytes() == content  # the same picture is the same file


def test_the_unit_of_a_colour_bar_is_inside_the_picture(mini: Path):
    with drawing(SMALL):
        figure = plot_embedding(mini, genes=["g3"], style=SMALL)
        left, _, width, _ = figure.get_tightbbox().bounds
    assert left >= 0
    assert left + width <= figure.get_size_inches()[0]


def test_minified_data_of_scvi_tools_is_drawn_if_it_has_coordinates(forms: Path, tmp_path: Path):
    import anndata

    adata = anndata.read_h5ad(forms / "x.h5ad")
    adata.obsm["X_umap"] = np.random.default_rng(0).normal(size=(N, 2))
    adata.write_h5ad(tmp_path / "x.h5ad")
    figure = plot_embedding(tmp_path / "x.h5ad", by=["batch"], style=SMALL)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["batch (2)"]


def test_a_gene_is_decoded_for_one_cell_of_each_pixel_where_there_are_many(mini: Path, monkeypatch):
    seen = []
    monkeypatch.setattr(embedding_plot, "MANY_CELLS", 10)
    monkeypatch.setattr(embedding_plot, "thin_cells", lambda grid, places: np.array([1, 5]))
    monkeypatch.setattr(
        embedding_plot, "colour_genes", lambda opened, genes, cells, **options: seen.append(cells.tolist()) or []
    )
    plot_embedding(mini, genes=["g3"], by=["batch"], style=SMALL)
    plot_embedding(mini, genes=["g3"], by=["batch"], chosen=np.array([10, 20, 30, 40, 50, 51, 52, 53, 54, 55, 56]))
    assert seen == [[1, 5], [20, 51]]


def panels_of(n_cells: int, values: list[pd.Series]) -> list[tuple[None, Colouring]]:
    return [(None, colour_series(str(each.name or f"column {k}"), each)) for k, each in enumerate(values)]


@pytest.mark.parametrize("n_cells", [1, 2, 700])
@pytest.mark.parametrize("n_types", [1, 3, 40, 300])
def test_any_number_of_cells_and_categories_is_drawn(tmp_path: Path, n_cells: int, n_types: int):
    random = np.random.default_rng(0)
    types = random.integers(n_types, size=n_cells)
    places = (random.normal(0, 8, (n_types, 2))[types] + random.normal(0, 0.5, (n_cells, 2))).astype(np.float32)
    names = pd.Series(types, name="a column with a long name " * 4)
    names = names.map("a type with a $long$ name, number {}".format)
    panels = panels_of(
        n_cells,
        [
            names.rename("a column with a long name " * 4),
            pd.Series(random.normal(size=n_cells)),
            pd.Series([np.nan] * n_cells),
        ],
    )
    for style in (SMALL, Style(dpi=60, dark=True, width=12, font_size=6)):
        with drawing(style):
            figure = draw_figure(places, panels, style, "A long title of many words " * 5, "", "UMAP")
            write_picture(figure, tmp_path / "a.png", style)
        if style.width is not None:
            assert figure.get_size_inches()[0] == pytest.approx(12, abs=0.1)
        inside = figure.get_tightbbox().bounds  # no text is cut off
        assert inside[0] >= 0
        assert inside[0] + inside[2] <= figure.get_size_inches()[0] + 0.01


def test_more_than_eight_categories_are_named_on_the_map_or_numbered_as_in_the_legend():
    random = np.random.default_rng(0)
    types = np.arange(2400) % 12
    places = (10 * np.array([[k % 4, k // 4] for k in range(12)])[types] + random.normal(size=(2400, 2))).astype("f4")

    def list_texts(names: str, labels: str) -> tuple[set[str], set[str]]:
        with drawing(SMALL):
            column = pd.Series(types).map(names.format)
            figure = draw_figure(places, panels_of(2400, [column]), SMALL, "", "", "UMAP", labels)  # type: ignore[arg-type]
        (axes,) = figure.axes
        legends = [child for child in axes.get_children() if type(child).__name__ == "Legend"]
        return {text.get_text() for text in axes.texts}, {t.get_text() for each in legends for t in each.get_texts()}

    short, numbers = {f"t{k}" for k in range(12)}, {str(k + 1) for k in range(12)}
    assert list_texts("t{}", "auto") == (short, short)
    assert list_texts("t{}", "none") == (set(), short)
    on_map, legend = list_texts("a name that has thirty letters {}", "auto")
    assert on_map == numbers
    assert "1  a name that has thirt…etters 0" in legend
    assert list_texts("t{}", "numbers")[0] == numbers


def test_what_can_not_be_drawn_is_said_in_a_sentence(mini: Path, forms: Path, tmp_path: Path, monkeypatch):
    out = tmp_path / "a.png"
    with pytest.raises(SourceError, match=r"obsm has no X_umap .* atlasvi embed MINI"):
        plot_embedding(forms / "x.mini", out)
    with pytest.raises(QueryError, match="a picture of cells needs coordinates, which a minified store can hold"):
        plot_embedding(OpenedQuestion(forms / "model", str(forms / "cells.h5ad")), out)
    with pytest.raises(ColumnError, match=r"no column 'bach' .* Did you mean 'batch'\?"):
        plot_embedding(mini, out, by=["bach"])
    with pytest.raises(GeneError, match="g999"):
        plot_embedding(mini, out, genes=["g999"])
    with pytest.raises(QueryError, match=r"a\.jpg: the name of a picture ends in \.png, \.svg or \.pdf"):
        plot_embedding(mini, tmp_path / "a.jpg")
    with pytest.raises(QueryError, match="per_row is -1: it must be at least 1"):
        plot_embedding(mini, out, per_row=-1)
    with pytest.raises(QueryError, match="limits are 3 and 2: the first must be lower"):
        plot_embedding(mini, out, by=["score"], limits=(3, 2))
    with pytest.raises(QueryError, match=r"width is 1 inches, of which legends take .*: make the picture wider"):
        plot_embedding(mini, out, by=["batch"], style=Style(width=1))
    with pytest.raises(QueryError, match=r"panel would be .* up to 12,000 can be drawn"):
        plot_embedding(mini, out, by=["batch"], style=Style(width=100, dpi=1200))
    with pytest.raises(QueryError, match="dpi is 5: it must be from 30 to 1200"):
        Style(dpi=5)
    with pytest.raises(QueryError, match="labels is 'all': use one of auto, names, numbers, none"):
        plot_embedding(mini, out, labels="all")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
    out.write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        plot_embedding(mini, out)
    assert out.read_text() == "mine"
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependencyError, match=r"A picture needs matplotlib: pip install 'atlasvi\[plots\]'"):
        plot_embedding(mini, tmp_path / "b.png")


def test_coordinates_that_are_no_numbers_are_left_out(forms: Path, tmp_path: Path):
    path = Path(shutil.copytree(forms / "x.mini", tmp_path / "x.mini"))
    places = np.random.default_rng(0).normal(size=(N, 2)).astype(np.float32)
    places[:50] = np.nan
    with writing_embedding(MinifiedStore(path), {}) as append:
        append(places)
    plot_embedding(path, tmp_path / "a.png", by=["batch"], genes=["g1"], style=SMALL)
    with pytest.raises(QueryError, match="obsm X_umap has no numbers for these cells"):
        plot_embedding(path, tmp_path / "b.png", chosen=np.arange(50))


def test_in_a_smaller_panel_discs_are_smaller_in_proportion(monkeypatch: pytest.MonkeyPatch):
    seen: list[tuple[int, float]] = []
    whole = embedding_plot.draw_points
    monkeypatch.setattr(
        embedding_plot,
        "draw_points",
        lambda grid, places, diameter, layers: (
            seen.append((grid.width, diameter)) or whole(grid, places, diameter, layers)
        ),
    )
    places = np.random.default_rng(0).normal(size=(9_000, 2)).astype(np.float32)
    panels = [(None, Categories("", np.zeros(len(places), np.int16), [""], 1))]
    for style in (Style(dpi=72), Style(dpi=72, width=2.6), Style(dpi=72, font_size=16)):
        with drawing(style):
            draw_figure(places, panels, style, "", "", "UMAP")
    (usual, disc), *others = seen
    assert (usual, disc) == (352, pytest.approx(10**0.5, rel=1e-3))
    for width, diameter in others:
        assert width != usual
        assert diameter / disc == pytest.approx(width / usual, rel=1e-3)
