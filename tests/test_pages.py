"""The pages that run do what they show, and the script that writes them finds what they do not."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytest.importorskip("umap")


@pytest.fixture(scope="module")
def run_pages() -> ModuleType:
    """The script .ci/run_pages.py."""
    spec = importlib.util.spec_from_file_location("run_pages", ROOT / ".ci" / "run_pages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["run_pages"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow  # `make pages`, which CI runs
def test_the_tutorial_and_the_pages_after_it_run_and_show_what_is_printed(
    run_pages: ModuleType,
):
    # In a process of its own: TileDB takes the relative paths of pages from the folder where it was first used.
    ran = subprocess.run([sys.executable, run_pages.__file__], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert int(ran.stdout.splitlines()[-1].split()[0]) > 15


def test_output_is_written_below_its_command_and_what_is_not_to_run_stays(run_pages: ModuleType):
    page = (
        "```console\n$ atlasvi info a\nold\n$ atlasvi train --epochs 9\n```\n"
        "<!-- not run: needs a bucket -->\n```console\n$ atlasvi info b\n```\n"
        "```python\nprint('a  ')\n```\n\n```text\nold\n```\n"
    )
    asked: list[list[str]] = []
    found = run_pages.rewrite(page, lambda words: asked.append(words) or f"{words[-1]}\n" * 30, quick=True)
    assert asked == [["atlasvi", "info", "a"], ["atlasvi", "train", "--epochs", "2"]]
    lines = found.splitlines()
    assert lines[:2] == ["```console", "$ atlasvi info a"]
    assert lines[2:16] == ["a"] * 4 + ["[...]"] + ["a"] * 9
    assert lines[16] == "$ atlasvi train --epochs 9"
    assert found.endswith("```console\n$ atlasvi info b\n```\n```python\nprint('a  ')\n```\n\n```text\na\n```\n")


def test_a_page_that_shows_other_output_is_found(
    run_pages: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text("```console\n$ atlasvi --version\natlasvi 9.9\n```\n")
    monkeypatch.setattr(run_pages, "ROOT", tmp_path)
    monkeypatch.setattr(run_pages, "PAGES", ("docs/a.md",))
    monkeypatch.setattr(run_pages, "prepare", lambda folder, quick: None)
    monkeypatch.setattr(run_pages, "run_here", lambda words: "atlasvi 1.0\n")
    assert run_pages.run_quickly(tmp_path) == 1
    monkeypatch.setattr(run_pages, "run_here", lambda words: "scvi 1.0\n")
    with pytest.raises(AssertionError, match="shows other output than there is:"):
        run_pages.run_quickly(tmp_path)
