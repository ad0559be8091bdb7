"""The folder in which processes share work, and which the same call goes on with."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from atlasvi.loaders.errors import SourceError
from atlasvi.loaders.jobs import Job, KeptOpen, Parts, open_job_folder


@dataclass(frozen=True)
class Copying(Job):
    data: str
    options: list[int]


@dataclass(frozen=True)
class OtherWork(Job):
    data: str


JOB = Copying("a.h5ad", [1, 2])


def interrupt(out: Path, job: Job) -> Path:
    """A job that was stopped when its first part was done; the folder that is left."""
    with pytest.raises(KeyboardInterrupt), open_job_folder(out, job) as scratch:
        job.save(scratch)
        Parts(scratch, "{:03d}.json").finish(0, {"cells": 5})
        raise KeyboardInterrupt
    return out.parent / f".{out.name}.unfinished"


def test_an_equal_job_goes_on_with_the_parts_that_are_done(tmp_path: Path):
    left = interrupt(tmp_path / "out", JOB)
    with open_job_folder(tmp_path / "out", Copying("a.h5ad", [1, 2])) as scratch:
        assert scratch == left
        parts = Parts(scratch, "{:03d}.json")
        assert parts.is_done(0)
        assert parts.list_undone(3) == [1, 2]
        assert parts.read(0) == {"cells": 5}
        (scratch / "result").mkdir()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("other", [Copying("a.h5ad", [1, 3]), OtherWork("a.h5ad")])
def test_another_job_begins_anew(tmp_path: Path, other: Job):
    interrupt(tmp_path / "out", JOB)
    with open_job_folder(tmp_path / "out", other) as scratch:
        assert list(scratch.iterdir()) == []
        (scratch / "result").mkdir()


def test_a_job_that_is_damaged_or_was_not_saved_is_none(tmp_path: Path):
    assert Copying.load(tmp_path) is None
    JOB.save(tmp_path)
    assert Copying.load(tmp_path) == JOB
    assert OtherWork.load(tmp_path) is None
    content = (tmp_path / "job.json").read_text()
    (tmp_path / "job.json").write_text(content.replace("a.h5ad", "b.h5ad"))
    assert Copying.load(tmp_path) is None


@pytest.mark.parametrize("damage", ["changed", "gone"])
def test_a_part_that_is_damaged_or_gone_ends_the_job_in_a_sentence(tmp_path: Path, damage: str):
    parts = Parts(tmp_path, "{}.json")
    parts.finish(7, {"cells": 5})
    if damage == "changed":
        (tmp_path / "7.json").write_text((tmp_path / "7.json").read_text().replace("5", "6", 1))
    else:
        (tmp_path / "7.json").unlink()
    with pytest.raises(SourceError, match=r"7\.json: this part of the unfinished work is damaged or gone"):
        parts.read(7)


def test_what_a_job_needs_is_opened_once_and_only_for_one_job(tmp_path: Path, monkeypatch):
    opened: list[Path] = []
    kept = KeptOpen(lambda scratch: opened.append(scratch) or len(opened))
    monkeypatch.chdir(tmp_path)
    assert kept.get("a") == kept.get(tmp_path / "a") == 1
    kept.keep(tmp_path / "b", 9)
    assert kept.get("b") == 9
    assert kept.get("a") == 2
    kept.forget(Path("a"))
    assert kept.get("a") == 3
    assert opened == [tmp_path / "a"] * 3


def test_another_job_in_the_same_folder_is_opened_again(tmp_path: Path):
    kept = KeptOpen(lambda scratch: Copying.load(scratch))
    JOB.save(tmp_path)
    assert kept.get(tmp_path) is kept.get(tmp_path)
    assert kept.get(tmp_path) == JOB
    Copying("b.h5ad", [1, 2]).save(tmp_path)
    assert kept.get(tmp_path) == Copying("b.h5ad", [1, 2])
