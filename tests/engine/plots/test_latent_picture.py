import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from atlasvi.engine.plots.latent_picture import draw_latent
from atlasvi.loaders.errors import ColumnError, MissingDependencyError, OutputError

pytest.importorskip("matplotlib")


@pytest.fixture
def without_umap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "umap", None)


def make_groups(n_cells: int = 300, n_groups: int = 12) -> tuple[np.ndarray, pd.Series]:
    rng = np.random.default_rng(0)
    groups = np.arange(n_cells) % n_groups
    latent = rng.normal(0, 6, (n_groups, 20))[groups] + rng.normal(0, 1, (n_cells, 20))
    return latent.astype(np.float32), pd.Series(groups).map("type_{:02d}".format).astype("category")


def is_png(path: Path) -> bool:
    return path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_without_umap_learn_the_map_is_the_first_two_principal_components(tmp_path: Path, without_umap: None) -> None:
    latent, types = make_groups()
    assert draw_latent(latent, {"cell_type": types, "batch": types}, tmp_path / "new" / "a.png", seed=0) == "PCA"
    assert is_png(tmp_path / "new" / "a.png")


def test_the_same_seed_draws_the_same_subset(tmp_path: Path, without_umap: None) -> None:
    latent, types = make_groups()
    for name, seed in [("a", 1), ("b", 1), ("c", 2)]:
        draw_latent(latent, {"cell_type": types}, tmp_path / name, seed, max_cells=100)
    pictures = [(tmp_path / name).read_bytes() for name in "abc"]
    assert pictures[0] == pictures[1] != pictures[2]


@pytest.mark.parametrize(
    "values",
    [
        np.arange(300) % 3 == 0,  # booleans
        np.arange(300) % 7,  # a few whole numbers are categories
        np.linspace(0, 1, 300),  # a scale
        [f"donor {number % 100}" for number in range(300)],  # more categories than the legend holds
        [None, "only"] * 150,
        [None] * 300,
        pd.Categorical(["a"] * 300, categories=["c", "b", "a"], ordered=True),
    ],
)
def test_any_column_can_be_drawn(tmp_path: Path, without_umap: None, values: object) -> None:
    latent, _ = make_groups()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_latent(latent, {"column": pd.Series(values, index=range(900, 1200))}, tmp_path / "a.png", seed=0)
    assert is_png(tmp_path / "a.png")


@pytest.mark.parametrize("shape", [(1, 20), (2, 1), (15, 2), (40, 1)])
def test_few_cells_and_few_dimensions_can_be_drawn(tmp_path: Path, without_umap: None, shape: tuple[int, int]) -> None:
    latent = np.random.default_rng(0).normal(size=shape)
    draw_latent(latent, {"batch": pd.Series(["a"] * len(latent))}, tmp_path / "a.png", seed=0)
    assert is_png(tmp_path / "a.png")


def test_what_can_not_be_drawn_is_said_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    latent, types = make_groups()
    with pytest.raises(ColumnError, match="'cell_type' has 7 values for 300 cells"):
        draw_latent(latent, {"cell_type": types[:7]}, tmp_path / "a.png", seed=0)
    with pytest.raises(ColumnError, match="no column"):
        draw_latent(latent, {}, tmp_path / "a.png", seed=0)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="can't be written"):
        monkeypatch.setitem(sys.modules, "umap", None)
        draw_latent(latent, {"cell_type": types}, tmp_path / "file" / "a.png", seed=0)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependencyError, match=r"atlasvi\[plots\]"):
        draw_latent(latent, {"cell_type": types}, tmp_path / "a.png", seed=0)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_dollar_sign_in_a_name_begins_no_formula(tmp_path: Path, without_umap: None) -> None:
    latent, types = make_groups(n_groups=2)
    columns = {"price in $ ($\\frac{)": types.cat.rename_categories(["$\\bad{$", "10$ to 20$"])}
    draw_latent(latent, columns, tmp_path / "a.png", seed=0, title="$\\frac{$")
    assert is_png(tmp_path / "a.png")
