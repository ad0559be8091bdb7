import errno
import os
import subprocess
from pathlib import Path

import pytest

from atlasvi.loaders.errors import OutputError, WorkerError
from atlasvi.loaders.outputs import (
    remove_leftovers,
    remove_unfinished,
    write_file_aside,
    write_files_aside,
    write_folder_aside,
    write_whole,
)


def end_process() -> str:
    """The number of a process that has ended."""
    return subprocess.run(["sh", "-c", "echo $$"], capture_output=True, text=True, check=True).stdout.strip()


def test_a_folder_appears_whole(tmp_path: Path):
    with write_folder_aside(tmp_path / "deep" / "out") as scratch:
        (scratch / "result").mkdir()
        (scratch / "result" / "a").write_text("1")
        assert not (tmp_path / "deep" / "out").exists()
    assert os.listdir(tmp_path / "deep") == ["out"]
    assert (tmp_path / "deep" / "out" / "a").read_text() == "1"


@pytest.mark.parametrize("error", [ValueError("bad"), KeyboardInterrupt()])
def test_an_error_or_an_interrupt_leaves_nothing(tmp_path: Path, error: BaseException):
    with pytest.raises(type(error)), write_folder_aside(tmp_path / "out") as scratch:
        (scratch / "result").mkdir()
        raise error
    assert os.listdir(tmp_path) == []


def test_what_exists_is_refused_and_untouched(tmp_path: Path):
    (tmp_path / "out").write_text("precious")
    with pytest.raises(OutputError, match="out exists already"), write_folder_aside(tmp_path / "out"):
        pass
    with pytest.raises(OutputError, match="out exists already"), write_file_aside(tmp_path / "out"):
        pass
    assert (tmp_path / "out").read_text() == "precious"


def test_what_a_killed_process_left_is_removed(tmp_path: Path):
    (tmp_path / ".out.unfinished" / "buckets").mkdir(parents=True)
    with write_folder_aside(tmp_path / "out") as scratch:
        assert os.listdir(scratch) == []
        (scratch / "result").mkdir()
    assert os.listdir(tmp_path) == ["out"]


def test_two_writers_of_one_output_are_kept_apart(tmp_path: Path):
    with write_folder_aside(tmp_path / "out") as scratch:
        (scratch / "result").mkdir()
        with pytest.raises(OutputError, match="another process is writing it"), write_folder_aside(tmp_path / "out"):
            pass
        assert (scratch / "result").exists()


def test_a_full_disk_is_said_in_a_sentence(tmp_path: Path):
    with pytest.raises(OutputError, match=r"out: the disk is full"), write_folder_aside(tmp_path / "out"):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OutputError, match=r"f.csv: the disk is full"), write_file_aside(tmp_path / "f.csv") as path:
        path.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert os.listdir(tmp_path) == []


def test_what_a_killed_process_left_of_a_finished_output_is_removed_by_the_next_command(tmp_path: Path):
    scratch = tmp_path / ".out.unfinished"
    (scratch / "sorted").mkdir(parents=True)
    remove_leftovers(tmp_path / "out")
    assert scratch.exists()  # the output is not there: the same command goes on with this
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputError, match="exists already"), write_folder_aside(tmp_path / "out"):
        pass
    assert os.listdir(tmp_path) == ["out"]


def test_a_file_that_a_killed_process_left_beside_its_output_is_removed(tmp_path: Path):
    (tmp_path / f".a.csv.unfinished-{end_process()}").write_text("half")
    (tmp_path / ".a.csv.unfinished-1").write_text("of a process that runs")
    with write_file_aside(tmp_path / "a.csv") as temporary:
        temporary.write_text("whole")
    assert sorted(os.listdir(tmp_path)) == [".a.csv.unfinished-1", "a.csv"]


def test_a_file_is_replaced_whole_or_stays_as_it_was(tmp_path: Path, monkeypatch):
    path = tmp_path / "config.json"
    write_whole(path, b"before")

    def fail(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OutputError, match=r"config\.json: the disk is full"):
        write_whole(path, b"after")
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError("bad"), KeyboardInterrupt()])
def test_only_the_folders_made_for_an_output_that_failed_are_removed(tmp_path: Path, error: BaseException):
    (tmp_path / "there").mkdir()
    with pytest.raises(type(error)), write_folder_aside(tmp_path / "there" / "x" / "y" / "out"):
        raise error
    assert [path.name for path in tmp_path.rglob("*")] == ["there"]
    with pytest.raises(type(error)), write_folder_aside(tmp_path / "there" / "x" / "y" / "out"):
        (tmp_path / "there" / "x" / "of somebody else").mkdir()
        raise error
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["of somebody else", "there", "x"]


def test_folders_of_an_output_that_is_gone_on_with_stay(tmp_path: Path):
    with pytest.raises(KeyboardInterrupt), write_folder_aside(tmp_path / "x" / "out", lambda scratch: True):
        raise KeyboardInterrupt
    assert sorted(path.name for path in tmp_path.rglob("*")) == [".out.unfinished", "x"]


def test_where_folders_can_not_be_made_it_is_said_and_none_is_left(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(OutputError, match="can't be written there"),
        write_folder_aside(tmp_path / "file" / "x" / "out"),
    ):
        pass
    assert os.listdir(tmp_path) == ["file"]


def test_files_of_a_folder_are_replaced_in_order_and_others_stay(tmp_path: Path, monkeypatch):
    for name in ("a", "b", "other"):
        (tmp_path / name).write_text("old")
    rename = os.rename

    def rename_once(made: Path, out: Path) -> None:
        rename(made, out)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "rename", rename_once)
    with pytest.raises(OutputError, match="disk is full"), write_files_aside(tmp_path, ["b", "a"]) as aside:
        (aside / "a").write_text("new")
        (aside / "b").write_text("new")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "old", "b": "new", "other": "old"}
    monkeypatch.undo()
    with pytest.raises(ValueError, match="bad"), write_files_aside(tmp_path, ["b", "a"]) as aside:
        (aside / "a").write_text("new")
        raise ValueError("bad")
    assert (tmp_path / "a").read_text() == "old"
    assert len(os.listdir(tmp_path)) == 3


def test_a_folder_where_a_file_must_be_is_refused_before_the_work_and_stays(tmp_path: Path):
    (tmp_path / "b" / "precious").mkdir(parents=True)
    (tmp_path / "a").write_text("old")
    sentence = "b is a folder, and a file must be written there"
    with pytest.raises(OutputError, match=sentence), write_files_aside(tmp_path, ["a", "b"]):
        raise AssertionError("the work was begun")
    with pytest.raises(OutputError, match="b is a folder"):
        write_whole(tmp_path / "b", b"new")
    assert (tmp_path / "b" / "precious").is_dir()
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]
    assert (tmp_path / "a").read_text() == "old"


def test_unfinished_work_of_another_command_in_a_folder_is_left_alone(tmp_path: Path):
    (tmp_path / ".mini.unfinished" / "done").mkdir(parents=True)
    (tmp_path / ".latents.csv.unfinished-1").write_text("half, of a process that runs")
    (tmp_path / f".config.json.unfinished-{end_process()}").write_text("half")
    (tmp_path / ".config.json.1.unfinished").write_text("half, of an older version")
    remove_unfinished(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".latents.csv.unfinished-1", ".mini.unfinished"]


class Stopped(BaseException):
    """As a signal raises: none of our errors, and the work is to stay."""

    keeps_work = True


@pytest.mark.parametrize("error", [Stopped(), WorkerError("a worker died"), KeyboardInterrupt()])
def test_work_that_another_attempt_can_use_is_left(tmp_path: Path, error: BaseException):
    with pytest.raises(type(error)), write_folder_aside(tmp_path / "out", lambda scratch: True) as scratch:
        (scratch / "part").write_text("done")
        raise error
    assert (tmp_path / ".out.unfinished" / "part").read_text() == "done"
    with pytest.raises(ValueError, match="bad"), write_folder_aside(tmp_path / "out", lambda scratch: True):
        raise ValueError("bad")
    assert list(tmp_path.iterdir()) == []
