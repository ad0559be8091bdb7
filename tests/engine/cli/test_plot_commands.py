"""`atlasvi embed` and `atlasvi query MINI plot`, as they are typed."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from atlasvi.engine.cli.commands import app
from atlasvi.engine.minified.minified_store import MinifiedStore
from atlasvi.engine.plots import embedding_plot, group_plot, loss_plot
from atlasvi.engine.plots.style import Style
from atlasvi.engine.queries import embed as embed_module
from atlasvi.engine.queries.question_cells import QueryError
from atlasvi.loaders.errors import ColumnError

pytest.importorskip("matplotlib")
pytest.importorskip("umap")


@pytest.fixture
def mini(forms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(embed_module, "lay_out", lambda latent, *rest: latent[:, :2].astype(float))
    return Path(shutil.copytree(forms / "x.mini", tmp_path / "x.mini"))


def run(*arguments: object) -> None:
    app([str(argument) for argument in arguments], standalone_mode=False)


def test_embed_then_plot_makes_a_picture_of_the_chosen_cells(mini: Path, tmp_path: Path, capsys):
    run("embed", mini, "--sample", 40, "--neighbours", 5, "--seed", 3)
    said = capsys.readouterr().out
    assert f"{mini}: coordinates of 60 cells, UMAP of 4" in said
    assert MinifiedStore(mini).has_embedding
    out = tmp_path / "a.svg"
    run("query", mini, "plot", "embedding", "--by", "batch", "--genes", "g1,g2", "--out", out, "--where", "batch=a")
    n_cells = int((MinifiedStore(mini).read_column("batch") == "a").sum())
    text = out.read_text()
    for word in (f"{n_cells} cells", "batch (1)", "g1", "g2"):
        assert f">{word}<" in text
    assert capsys.readouterr().out == f"{out}: written.\n"


def test_options_reach_the_functions(mini: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen: list[dict] = []
    monkeypatch.setattr(embedding_plot, "plot_embedding", lambda asked, **options: seen.append(options))
    monkeypatch.setattr(group_plot, "plot_groups", lambda asked, key, **options: seen.append({"key": key, **options}))
    look = ["--out", tmp_path / "a.png", "--title", "T", "--font-size", 7, "--width", 6, "--dpi", 200, "--dark"]
    look += ["--colour-map", "cividis", "--replace", "--limit", 9]
    run(
        *("query", mini, "plot", "embedding", "--by", "batch,donor", "--by", "age", "--labels", "numbers"),
        *("--per-row", 3, "--point-size", 0.5, "--limits", 0, 2, "--library-size", "observed", "--scale", "linear"),
        *("--transform-batch", "a", *look),
    )
    embedding = seen.pop()
    assert embedding["by"] == ["batch", "donor", "age"]
    assert (embedding["labels"], embedding["per_row"], embedding["point_size"]) == ("numbers", 3, 0.5)
    assert (embedding["limits"], embedding["library_size"], embedding["scale"]) == ((0, 2), "observed", "linear")
    assert embedding["transform_batch"] == ["a"]
    for kind in ("dots", "heatmap"):
        run("query", mini, "plot", kind, "--labels-key", "batch", "--top", 4, "--max-cells", 0, "--seed", 5, *look)
        groups = seen.pop()
        assert (groups["kind"], groups["key"], groups["top"]) == (kind, "batch", 4)
        assert (groups["max_cells"], groups["seed"], groups["genes"]) == (None, 5, None)
        for each in (embedding, groups):
            style = each["style"]
            assert (style.title, style.font_size, style.width, style.dpi, style.dark) == ("T", 7, 6, 200, True)
            assert (each["map_name"], each["replace"]) == ("cividis", True)
            np.testing.assert_array_equal(each["chosen"], np.arange(9))


def test_plot_draws_the_losses_of_a_run(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    seen: list[tuple] = []
    monkeypatch.setattr(loss_plot, "plot_losses", lambda runs, **options: seen.append((runs, options)))
    out = tmp_path / "a.pdf"
    run("plot", "one", "two", "--over", "steps", "--out", out, "--title", "T", "--width", 5, "--dark", "--replace")
    style = Style(title="T", width=5, dark=True)
    assert seen == [
        ([Path("one"), Path("two")], {"over": "steps", "out": out, "replace": True, "style": style}),
    ]
    assert capsys.readouterr().out == f"{out}: written.\n"


def test_an_option_without_effect_and_an_empty_choice_are_refused(mini: Path, tmp_path: Path):
    out = tmp_path / "a.png"
    with pytest.raises(QueryError, match="--top would have no effect: --genes names the genes"):
        run("query", mini, "plot", "dots", "--labels-key", "batch", "--genes", "g1", "--top", 3, "--out", out)
    with pytest.raises(ColumnError, match="is true for no cell"):
        run("query", mini, "plot", "embedding", "--where", "n_counts > 1e9", "--out", out)
    assert not out.exists()
