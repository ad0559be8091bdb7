import errno
import gc
import os
from pathlib import Path

import pytest
import torch

from atlasvi.engine.training import checkpoint_files
from atlasvi.engine.training.checkpoint_files import (
    CheckpointError,
    list_checkpoints,
    read_newest_checkpoint,
    write_checkpoint,
)
from atlasvi.loaders.errors import OutputError


def make_state(value: float) -> dict:
    return {"weights": {"a": torch.full((1000,), value)}, "epoch": int(value), "history": [{"elbo": -value}]}


def test_what_was_written_is_read_back(tmp_path: Path):
    path = write_checkpoint(tmp_path / "new", 7, make_state(7.0), kept=2)
    found, state = read_newest_checkpoint(tmp_path / "new")
    assert found == path
    assert (state["epoch"], state["history"]) == (7, [{"elbo": -7.0}])
    assert torch.equal(state["weights"]["a"], torch.full((1000,), 7.0))


def test_only_the_newest_are_kept_and_nothing_unfinished(tmp_path: Path):
    for step in (1, 5, 30, 200):
        write_checkpoint(tmp_path, step, make_state(step), kept=2)
    assert [checkpoint_files.step_of(path) for path in list_checkpoints(tmp_path)] == [200, 30]
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("damage", ["a flipped byte", "cut short", "empty"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before_and_a_warning_says_so(tmp_path, damage: str, caplog):
    write_checkpoint(tmp_path, 1, make_state(1.0), kept=2)
    newest = write_checkpoint(tmp_path, 2, make_state(2.0), kept=2)
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes({"a flipped byte": content, "cut short": content[:-9], "empty": b""}[damage])
    assert read_newest_checkpoint(tmp_path)[1]["epoch"] == 1
    assert f"{newest.name} is damaged: continuing from the older step-000000001-" in caplog.text
    with pytest.raises(CheckpointError, match=rf"{newest.name} is damaged, and it is the newest checkpoint"):
        read_newest_checkpoint(tmp_path, older=False)


def test_what_a_killed_process_left_is_removed_with_the_next_checkpoint(tmp_path: Path):
    for name in (".unfinished", ".step-000000003-0123456789abcdef.pt.unfinished"):
        (tmp_path / name).write_bytes(b"half")
    written = write_checkpoint(tmp_path, 4, make_state(1.0), kept=2)
    assert list(tmp_path.iterdir()) == [written]


def test_a_file_of_another_name_is_no_checkpoint(tmp_path: Path):
    (tmp_path / "step-last.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        read_newest_checkpoint(tmp_path)


def test_where_all_are_damaged_or_none_is_there_it_is_said(tmp_path: Path):
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        read_newest_checkpoint(tmp_path)
    write_checkpoint(tmp_path, 1, make_state(1.0), kept=2).write_bytes(b"")
    with pytest.raises(CheckpointError, match="all checkpoints are damaged"):
        read_newest_checkpoint(tmp_path)


def test_going_on_from_an_older_one_never_loses_it_to_the_damaged_newer_one(tmp_path: Path):
    write_checkpoint(tmp_path, 10, make_state(1.0), kept=1)
    damaged = tmp_path / "step-000000500-0123456789abcdef.pt"
    damaged.write_bytes(b"")
    write_checkpoint(tmp_path, 20, make_state(2.0), kept=1)
    assert read_newest_checkpoint(tmp_path)[1]["epoch"] == 2
    assert not damaged.exists()


def test_a_second_checkpoint_of_a_step_replaces_the_first(tmp_path: Path):
    for value in range(8):  # by the names alone, which end in a checksum, any of them could come first
        write_checkpoint(tmp_path, 3, make_state(value), kept=2)
        assert read_newest_checkpoint(tmp_path)[1]["epoch"] == value
    assert len(list_checkpoints(tmp_path)) == 1


def test_a_full_disk_leaves_the_checkpoints_that_were_there(tmp_path: Path, monkeypatch):
    write_checkpoint(tmp_path, 1, make_state(1.0), kept=1)

    def fail(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OutputError, match="the disk is full"):
        write_checkpoint(tmp_path, 2, make_state(2.0), kept=1)
    assert read_newest_checkpoint(tmp_path)[1]["epoch"] == 1
    assert len(list(tmp_path.iterdir())) == 1
    gc.collect()  # of the error and the frame that it came from; this has crashed Python 3.12.1


def test_a_checkpoint_runs_no_code_when_it_is_read(tmp_path: Path):
    class RunsCommand:
        def __reduce__(self) -> tuple:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    write_checkpoint(tmp_path / "checkpoints", 1, {"weights": RunsCommand()}, kept=1)
    with pytest.raises(CheckpointError, match="damaged"):
        read_newest_checkpoint(tmp_path / "checkpoints")
    assert not (tmp_path / "ran").exists()
