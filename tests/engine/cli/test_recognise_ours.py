from pathlib import Path

import pytest

from atlasvi.engine.cli.describe import describe
from tests.engine.cli.test_commands import atlasvi, made  # noqa: F401


def say(path: Path | str) -> str:
    return "\n".join(describe(path))


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("run/model.pt", "model.pt: the model of {}/run:"),
        ("run/config.json", "config.json: the configuration of {}/run:"),
        ("run/checkpoints", "checkpoints: the checkpoints of {}/run:"),
        ("theirs/model.pt", "model.pt: the model of {}/theirs:"),
        ("store/X/data", "data: a part of {}/store:"),
        ("mini/zarr.json", "zarr.json: a part of {}/mini:"),
        ("half", "not finished: go on with atlasvi train"),
    ],
)
def test_each_part_of_what_is_written_is_described_with_the_whole(made: Path, place: str, words: str):  # noqa: F811
    assert words.replace("{}", str(made)) in say(made / place)


def test_a_checkpoint_says_its_step(made: Path):  # noqa: F811
    (checkpoint, *_) = sorted((made / "run" / "checkpoints").iterdir(), reverse=True)
    assert f"{checkpoint}: a checkpoint of {made / 'run'}:\n  1 checkpoint, after step 1\n" in say(checkpoint)
    assert "2 checkpoints, after step 0, 1\n" in say(made / "run" / "checkpoints")


def test_a_folder_with_several_things_lists_them(made: Path, monkeypatch):  # noqa: F811
    monkeypatch.chdir(made)
    lines = say(".").splitlines()
    for line in (
        "  a.h5ad: counts",
        "  half: run",
        "  mini: minified store",
        "  mini.h5ad: minified data",
        "  run: run",
        "  store: cell store",
        "  theirs: model",
    ):
        assert line in lines
    assert lines[0] == f".: a folder with {len(lines) - 1} things that atlasvi knows"


def test_a_place_inside_is_known_from_there_too(made: Path, monkeypatch):  # noqa: F811
    monkeypatch.chdir(made / "run" / "checkpoints")
    assert say(".").startswith(f".: the checkpoints of {made / 'run'}:")


def test_counts_that_somebody_put_into_a_run_are_counts(made: Path, tmp_path: Path):  # noqa: F811
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "mine.h5ad").write_bytes((made / "a.h5ad").read_bytes())
    assert say(tmp_path / "mine.h5ad").splitlines()[0] == f"{tmp_path / 'mine.h5ad'}: AnnData or MuData in HDF5"


def test_info_names_no_classes_and_counts_one_thing_as_one(made: Path, tmp_path: Path):  # noqa: F811
    said = "".join(atlasvi("info", made / name).stdout for name in ("a.h5ad", "store", "mini", "run", "theirs"))
    assert "Source" not in said
    assert "None" not in said
    atlasvi("simulate", tmp_path / "one.h5ad", "--cells", 1, "--genes", 1, "--batches", 1, "--types", 1)
    assert "1 cell x 1 gene" in atlasvi("info", tmp_path / "one.h5ad").stdout
