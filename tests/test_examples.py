"""The examples of the README run as they are shown."""

import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from atlasvi.engine import simulate

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs an example in this process, which has imported what it imports; returns what it prints."""

    def run(script: str, *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        capsys.readouterr()
        runpy.run_path(str(ROOT / "examples" / script), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_the_quickstart_runs(run: Callable[..., str], tmp_path: Path):
    said = run("quickstart.py", tmp_path)
    assert "held-out ELBO, nats per cell: -" in said
    assert "mean expression of two genes" in said


def test_any_model_is_trained_from_a_file_of_counts(run: Callable[..., str], tmp_path: Path):
    simulate(tmp_path / "atlas.h5ad", n_cells=3_000, n_genes=100, n_batches=2, n_types=3, seed=0)
    said = run("any_model.py", tmp_path / "atlas.h5ad", "cell_type").splitlines()
    assert len(said) == 3
    assert int(re.search(r"(\d+)% of 3,000 cells right", said[-1])[1]) > 60


def test_the_readme_shows_the_quickstart_as_it_is():
    shown = re.search(
        r"```python\n(from atlasvi.engine import MinifiedStore.*?)```", (ROOT / "README.md").read_text(), re.S
    )
    plain = re.sub(r'folder / ("[^"]+")', r"\1", (ROOT / "examples" / "quickstart.py").read_text())
    lines = [line.strip() for line in shown[1].splitlines() if line.strip()]
    assert all(line in plain for line in lines)


@pytest.mark.slow  # `make pages`, which CI runs
def test_the_demo_ends_with_a_picture_and_says_what_was_made(run: Callable[..., str], tmp_path: Path):
    said = run("demo.py", "--out", tmp_path / "demo", "--cells", 600, "--genes", 80, "--epochs", 2)
    assert "$ atlasvi train" in said
    assert "The model of 600 cells x 80 genes" in said
    assert (tmp_path / "demo" / "latent.png").stat().st_size > 10_000
    assert (tmp_path / "demo" / "markers.png").stat().st_size > 10_000
    assert "<h1>Model of atlas.store</h1>" in (tmp_path / "demo" / "card" / "card.html").read_text()
    assert "Done in" in said
