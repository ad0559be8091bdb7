"""No damaged input gives a crash, a traceback or a wrong number (judging.py says what is compared)."""

import os
from pathlib import Path

import pytest

from tests.engine.distributed.rank_processes import end_ranks, start_ranks

TRIALS = int(os.environ.get("ATLASVI_FUZZ_TRIALS", "2100"))


def run_and_print(n_trials: int, folder: Path, *kinds: str) -> None:
    """In a process that is forked from one without threads."""
    from tests.fuzz.campaign import describe_counts, run_trials

    outcomes = run_trials(range(n_trials), folder / "inputs", *([kinds] if kinds else []))
    print(describe_counts(outcomes))
    raise SystemExit(any(outcome.found == "other" for outcome in outcomes))


def test_a_handful_of_trials_end_with_the_right_answer_or_a_sentence(tmp_path: Path):
    (process,) = start_ranks(run_and_print, 1, tmp_path / "said", 4, tmp_path, "parse", "10x-h5")
    assert end_ranks([process]) == [0], process.said
    assert "| all | 4 |" in process.said


@pytest.mark.slow
def test_of_thousands_of_damaged_inputs_each_gives_the_right_answer_or_a_sentence(tmp_path: Path):
    (process,) = start_ranks(run_and_print, 1, tmp_path / "said", TRIALS, tmp_path)
    assert end_ranks([process], within_s=4 * 3600) == [0], process.said
