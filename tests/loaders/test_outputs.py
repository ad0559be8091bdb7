import errno
import os
from pathlib import Path

import pytest

from atlasvi.loaders.errors import OutputError
from atlasvi.loaders.outputs import write_file_aside, write_folder_aside


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
