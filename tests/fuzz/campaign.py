"""Many trials, two at once, and the table of what came of them.

    python -m tests.fuzz.campaign --trials 2100 [--first 0] [--inputs FOLDER]

prints each trial that is in `other`, with the command that repeats it, then the counts by format; exits with 1 if there
was one.
"""

import argparse
import collections
import os
import pickle
import sys
import tempfile
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from tests.fuzz.trial import DEFAULT_INPUTS, Outcome, prepare, run_trial  # isort: skip  first: it watches for threads
from tests.fuzz.calls import FORMATS
from tests.fuzz.judging import CLASSES

AT_ONCE = 2


def run_trials(
    seeds: Sequence[int], inputs: Path, kinds: Collection[str] = tuple(FORMATS), at_once: int = AT_ONCE
) -> list[Outcome]:
    """The outcomes of all seeds, in their order. A process forked from this one does each `at_once`-th."""
    answers = prepare(inputs, kinds)
    with tempfile.TemporaryDirectory() as scratch:
        files = [Path(scratch, str(lane)) for lane in range(at_once)]
        lanes = []
        for lane, file in enumerate(files):
            if (child := os.fork()) == 0:
                with open(file, "wb") as written:
                    for number, seed in enumerate(seeds[lane::at_once]):
                        outcome = run_trial(seed, inputs, answers)
                        pickle.dump(outcome, written)
                        if number % 50 == 49:
                            print(f"{number + 1} trials done, one in {at_once} of all", flush=True)
                        if outcome.found == "other":
                            print(outcome, flush=True)
                os._exit(0)
            lanes.append(child)
        for child in lanes:
            os.waitpid(child, 0)
        outcomes = [outcome for file in files for outcome in _load_all(file)]
    assert len(outcomes) == len(seeds), "a lane of trials has died"
    return sorted(outcomes, key=lambda outcome: outcome.seed)


def _load_all(file: Path) -> Iterable[Outcome]:
    with open(file, "rb") as written:
        while written.peek(1):  # type: ignore[attr-defined]
            yield pickle.load(written)


def describe_counts(outcomes: Sequence[Outcome]) -> str:
    """A table of formats and classes, in Markdown."""
    counts = collections.Counter((outcome.kind, outcome.found) for outcome in outcomes)
    kinds = [*dict.fromkeys(outcome.kind for outcome in outcomes)]
    rows = [(kind, *(counts[kind, found] for found in CLASSES)) for kind in kinds]
    total = ("all", *(sum(row[column] for row in rows) for column in range(1, 1 + len(CLASSES))))  # type: ignore[misc]
    rule = f"| --- |{' ---: |' * (1 + len(CLASSES))}"
    lines = [f"| {row[0]} | {sum(row[1:])} | {' | '.join(map(str, row[1:]))} |" for row in (*rows, total)]
    return "\n".join([f"| format | trials | {' | '.join(CLASSES)} |", rule, *lines])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=2_100)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--inputs", type=Path, default=DEFAULT_INPUTS)
    given = parser.parse_args()
    outcomes = run_trials(range(given.first, given.first + given.trials), given.inputs)
    print(describe_counts(outcomes))
    sys.exit(any(outcome.found == "other" for outcome in outcomes))


if __name__ == "__main__":
    main()
