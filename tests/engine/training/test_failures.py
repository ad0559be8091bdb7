"""No rank fails in silence: rank 0 says which it was and what it did, all end in time, the last checkpoint is good."""

import errno
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from atlasvi.engine.distributed.signals import EXIT_RESUMABLE
from atlasvi.engine.training import checkpoint_files
from atlasvi.engine.training.checkpoint_files import list_checkpoints, read_newest_checkpoint
from atlasvi.engine.training.step import Step
from atlasvi.engine.training.train import train
from atlasvi.loaders.batches.batch import Batch
from atlasvi.loaders.ingestion.ingest import ingest
from tests.engine.distributed.rank_processes import Rank, end_ranks, start_ranks, wait_until
from tests.engine.training.small_runs import SMALL, assert_same_run, write_cells

OPTIONS: dict[str, Any] = {
    "batch_key": "batch",
    "epochs": 200,
    "settings": {**SMALL, "checkpoint_steps": 1, "early_stopping": False},
    "rank_timeout_s": 30.0,  # on a busy machine a rank may not run for seconds
}
SOON = {**OPTIONS, "rank_timeout_s": 6.0}  # where it is waited for
FAULTY_STEP = 5
MOST_S = 30.0  # stated time-out 6 s, and what processes take to start and end on a busy machine


@pytest.fixture
def cells(tmp_path: Path) -> Path:
    return write_cells(tmp_path / "cells.h5ad")


def train_with_fault(cells: Path, out: Path, options: dict[str, Any], faulty_rank: int, fault: str) -> None:
    """Train; in step FAULTY_STEP that rank throws, hangs, or kills or stops itself."""
    take = Step.take

    def fail(self: Step, batch: Batch, number: int, step: int, *rest: Any) -> Any:
        if step + 1 == FAULTY_STEP and self.ranks.rank == faulty_rank:
            self.ranks.note(f"step {step + 1}")
            if fault == "throws":
                raise ValueError("this rank has a bug")
            if fault == "hangs":
                time.sleep(600)
            if fault.startswith("SIG"):
                os.kill(os.getpid(), getattr(signal, fault))
        return take(self, batch, number, step, *rest)

    Step.take = fail  # type: ignore[method-assign]
    train(cells, out, **options)


def fail_on(cells: Path, out: Path, faulty_rank: int, fault: str, world_size: int = 2) -> tuple[list[Rank], list[int]]:
    options = OPTIONS if fault == "throws" else SOON
    ranks = start_ranks(train_with_fault, world_size, out.parent / "said", cells, out, options, faulty_rank, fault)
    if fault == "SIGSTOP":  # torchrun kills such a one, once the others have ended
        ranks[1 - faulty_rank].process.join(MOST_S)
        ranks[faulty_rank].process.kill()
    return ranks, end_ranks(ranks, MOST_S)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("throws", r"rank 1 \(process \d+ on .*\) ended in step 5: ValueError: this rank has a bug"),
        pytest.param(
            "hangs",
            r"rank 1 \(process \d+ on .*\) hangs: it has been in step 5 for [3-8] s",
            marks=pytest.mark.slow,  # .ci/run runs it when nothing else is running
        ),
        pytest.param(
            "SIGKILL",
            r"rank 1 \(process \d+ on .*\) has not been heard of for [3-8] s, last in .*: it was killed, or",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "SIGSTOP",
            r"rank 1 \(process \d+ on .*\) has not been heard of for [3-8] s, last in .*: it was killed, or",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_rank_that_fails_is_named_on_rank_0_and_all_end(cells: Path, tmp_path: Path, fault: str, said: str):
    ranks, statuses = fail_on(cells, tmp_path / "run", 1, fault)
    lines = [line for line in ranks[0].said.splitlines() if line.startswith("atlasvi:")]
    assert len(lines) == 1, ranks[0].said
    assert re.match(rf"atlasvi: {said}.*\. Resume from the last checkpoint\.$", lines[0]), lines[0]
    assert ranks[1].said == ""
    assert statuses == [1, {"SIGKILL": -9, "SIGSTOP": -9}.get(fault, 1)]
    assert read_newest_checkpoint(tmp_path / "run" / "checkpoints")[1]["step"] == FAULTY_STEP - 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "said"), [("throws", "ValueError: this rank has a bug"), ("hangs", "rank 0 .* hangs")]
)
def test_rank_0_says_so_where_it_fails_itself(cells: Path, tmp_path: Path, fault: str, said: str):
    ranks, statuses = fail_on(cells, tmp_path / "run", 0, fault)
    assert statuses == [1, 1]
    assert re.search(said, ranks[0].said)
    assert ranks[1].said == ""


@pytest.mark.slow
def test_where_rank_0_is_killed_another_says_so(cells: Path, tmp_path: Path):
    ranks, statuses = fail_on(cells, tmp_path / "run", 0, "SIGKILL")
    assert statuses == [-9, 1]
    assert "rank 0" in ranks[1].said


def test_a_signal_to_any_rank_stops_all_at_one_step_and_the_resumed_run_is_the_same(cells: Path, tmp_path: Path):
    options = {**OPTIONS, "epochs": 3}
    whole = start_ranks(train_with_fault, 2, tmp_path / "said", cells, tmp_path / "whole", options, 1, "")
    assert end_ranks(whole) == [0, 0]
    ranks = start_ranks(train_with_fault, 2, tmp_path / "said", cells, tmp_path / "run", options, 1, "SIGTERM")
    assert end_ranks(ranks, MOST_S) == [EXIT_RESUMABLE, EXIT_RESUMABLE]
    assert f"stopped by a signal to another rank after step {FAULTY_STEP}" in ranks[0].said
    assert ranks[1].said == ""
    assert read_newest_checkpoint(tmp_path / "run" / "checkpoints")[1]["step"] == FAULTY_STEP
    options = {**options, "resume": True}
    ranks = start_ranks(train_with_fault, 2, tmp_path / "said", cells, tmp_path / "run", options, 1, "")
    assert end_ranks(ranks) == [0, 0]
    assert_same_run(*(train(cells, tmp_path / name, resume=True) for name in ("whole", "run")))


def fill_the_disk(cells: Path, out: Path, options: dict[str, Any]) -> None:
    """Train on a disk that is full from step FAULTY_STEP on."""
    write = checkpoint_files.write_checkpoint

    def fail(folder: Path, step: int, *rest: Any) -> Path:
        if step < FAULTY_STEP:
            return write(folder, step, *rest)
        sync, os.fsync = os.fsync, refuse
        try:
            return write(folder, step, *rest)
        finally:
            os.fsync = sync

    def refuse(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    checkpoint_files.write_checkpoint = fail
    train(cells, out, **options)


def test_a_disk_that_fills_up_under_a_checkpoint_ends_all_ranks_with_the_last_one_good(cells: Path, tmp_path: Path):
    ranks = start_ranks(fill_the_disk, 2, tmp_path / "said", cells, tmp_path / "run", OPTIONS)
    assert end_ranks(ranks, MOST_S) == [1, 1]
    assert "the disk is full" in ranks[0].said
    assert ranks[1].said == ""
    assert read_newest_checkpoint(tmp_path / "run" / "checkpoints")[1]["step"] == FAULTY_STEP - 1
    assert [path.suffix for path in (tmp_path / "run" / "checkpoints").iterdir()] == [".pt", ".pt"]


def test_a_block_of_the_store_that_went_bad_ends_all_ranks_with_its_name(cells: Path, tmp_path: Path):
    ingest(cells, tmp_path / "store")
    chunks = [path for path in (tmp_path / "store" / "X").rglob("c/*") if path.is_file()]
    for path in chunks:
        content = bytearray(path.read_bytes())
        content[len(content) // 3] ^= 255
        path.write_bytes(content)
    options = {**OPTIONS, "epochs": 2}
    ranks = start_ranks(train_with_fault, 2, tmp_path / "said", tmp_path / "store", tmp_path / "run", options, 1, "")
    assert end_ranks(ranks, MOST_S) == [1, 1]
    assert "store" in ranks[0].said
    assert "damaged" in ranks[0].said or "checksum" in ranks[0].said
    assert "Traceback" not in ranks[0].said
    assert ranks[1].said == ""


def test_a_users_mistake_is_said_once_and_leaves_nothing(cells: Path, tmp_path: Path):
    options = {**OPTIONS, "batch_key": "donor"}
    ranks = start_ranks(train_with_fault, 3, tmp_path / "said", cells, tmp_path / "run", options, 1, "")
    assert end_ranks(ranks, MOST_S) == [1, 1, 1]
    assert [len(rank.said.splitlines()) for rank in ranks] == [1, 0, 0]
    assert "no column 'donor'" in ranks[0].said
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_ranks_killed_all_at_once_go_on_from_the_last_checkpoint(cells: Path, tmp_path: Path):
    ranks = start_ranks(train_with_fault, 2, tmp_path / "said", cells, tmp_path / "run", OPTIONS, 1, "")
    wait_until(lambda: len(list_checkpoints(tmp_path / "run" / "checkpoints")) == 2)
    for rank in ranks:
        rank.process.kill()
    assert end_ranks(ranks) == [-9, -9]
    newest = read_newest_checkpoint(tmp_path / "run" / "checkpoints")[1]["step"]
    options = {**OPTIONS, "resume": True}
    ranks = start_ranks(train_with_fault, 2, tmp_path / "said", cells, tmp_path / "run", options, 0, "")
    wait_until(lambda: int(list_checkpoints(tmp_path / "run" / "checkpoints")[0].name.split("-")[1]) > newest)
    for rank in ranks:
        rank.process.kill()
    end_ranks(ranks)
