import re
from pathlib import Path
from typing import Any

import pytest

from atlasvi.engine.model.covariates import SetupKeys
from atlasvi.engine.training.epoch_estimate import (
    Plan,
    describe_plan,
    estimate_training,
    plan_epoch_time,
    reckon_reduce,
)
from atlasvi.engine.training.settings import SettingError, resolve_settings
from atlasvi.engine.training.train import train
from atlasvi.loaders.errors import OutputError
from tests.engine.training.small_runs import SMALL, write_cells


def make_plan(**changed: Any) -> Plan:
    """Of two ranks: reading 1 ms, computing 4, at once 5, reducing 3 of which 2 are exposed."""
    values: dict[str, Any] = dict(
        n_ranks=2, n_cells=1000, n_steps=10, load_s=0.001, step_s=0.004, both_s=0.005, validate_s=0.002,
        n_validation_steps=3, reduce_bytes=10**6, reduce_s=0.003, exposed_s=0.002, measured=False,
    )  # fmt: skip
    return Plan(**{**values, **changed})


def test_an_epoch_is_its_steps_the_reduction_that_shows_and_the_validation():
    assert make_plan().epoch_s == pytest.approx(10 * 0.007 + 3 * 0.002)


def test_what_takes_longest_is_what_limits():
    assert make_plan().limit == "computing"
    assert make_plan(load_s=0.1).limit == "reading"
    assert make_plan(reduce_s=0.1).limit == "network"


def test_a_ring_sends_each_byte_nearly_twice():
    assert reckon_reduce(10**9, 1, 10) == 0
    assert reckon_reduce(10**9, 2, 8) == pytest.approx(1, rel=0.01)
    assert reckon_reduce(10**9, 100, 8) == pytest.approx(2 * 0.99, rel=0.01)


def test_a_plan_measures_this_machine_and_counts_the_steps_of_all_ranks(tmp_path: Path):
    plan = plan_epoch_time(write_cells(tmp_path / "cells.h5ad"), 2, 10, batch_key="batch", settings=SMALL, seconds=0.4)
    assert (plan.n_steps, plan.n_ranks, plan.measured) == (-(-plan.n_cells // 32), 2, False)
    assert min(plan.load_s, plan.step_s, plan.both_s, plan.validate_s, plan.reduce_s) > 0
    assert 0 <= plan.exposed_s <= plan.reduce_s
    said = list(describe_plan(plan))
    assert re.match(r"An epoch of 1\d\d training cells on 2 ranks: \d steps, [\d.]+ s", said[0])
    assert re.match(
        r"The whole run: 400 epochs, [\d. a-z]+ unless it stops early. It takes [\d,]+ MB of memory", said[1]
    )
    assert "gradients takes" in said[3]
    assert plan.memory_bytes > 50_000_000
    assert list(tmp_path.iterdir()) == [tmp_path / "cells.h5ad"]


def test_a_plan_warns_of_minibatches_that_leave_few_steps(tmp_path: Path):
    settings = {**SMALL, "epochs": 1, "batch_size": 150}
    few = plan_epoch_time(write_cells(tmp_path / "cells.h5ad"), 1, settings=settings, seconds=0.1)
    assert "make a step of 128 cells or fewer" in list(describe_plan(few))[-1]


def test_the_whole_run_is_its_epochs_and_the_evaluation_at_its_end():
    plan = make_plan(batch_size=100, epochs=5, evaluation_cells=400)
    assert plan.run_s == pytest.approx(5 * plan.epoch_s + 4 * 0.002)


def test_a_run_that_stops_after_some_steps_takes_their_share_of_the_epochs(tmp_path: Path):
    settings = {**SMALL, "epochs": 3, "batch_size": 25, "max_steps": 6}
    plan = plan_epoch_time(write_cells(tmp_path / "cells.h5ad"), 1, settings=settings, seconds=0.1)
    assert plan.share == 6 / (3 * plan.n_steps)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({}, None),
        ({"both_s": 0.003}, "less than the slower of them alone"),
        ({"both_s": 0.009}, "longer than one after the other"),
        ({"load_s": 0.0}, "no time at all"),
    ],
)
def test_a_measurement_that_can_not_be_is_doubted(changed: dict, words: str | None):
    plan = make_plan(**changed)
    assert (plan.doubt is None) if words is None else (words in (plan.doubt or ""))
    assert any("measure again" in line for line in describe_plan(plan)) == (words is not None)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"reduce_s": 0.1}, "compress_gradients=bf16"),
        ({"batch_size": 100}, "a rank's part of a minibatch has 50 cells"),
        ({"load_s": 0.1, "is_store": False}, "atlasvi ingest it first"),
        ({"n_cells": 900_000, "n_ranks": 1}, "--batch-size 1024 --set recipe=atlas"),
        ({}, "one rank a machine is as fast"),
        ({"on_cpu": False}, None),
    ],
)
def test_the_hint_is_about_what_limits(changed: dict, words: str | None):
    hint = make_plan(**{"batch_size": 512, **changed}).hint
    assert hint is None if words is None else words in (hint or "")


def test_a_dry_run_says_what_training_would_do_and_writes_nothing(tmp_path: Path):
    data = write_cells(tmp_path / "cells.h5ad")
    given = {"seed": 0, "split_column": "split"}
    arguments = SetupKeys(batch_key="batch"), resolve_settings(None, {**SMALL, "epochs": 2}), given
    plan = estimate_training(data, tmp_path / "run", *arguments, seconds=0.2)
    assert plan is not None
    assert (plan.n_cells, plan.epochs, plan.n_steps) == (100, 2, 4)
    assert list(tmp_path.iterdir()) == [data]
    train(data, tmp_path / "run", batch_key="batch", epochs=2, settings=SMALL, seed=0, split_column="split")
    places = [tmp_path / "run" / "model.pt", *(tmp_path / "run" / "checkpoints").iterdir()]
    written = sum(place.stat().st_size for place in places)
    assert 0.5 * written < plan.disk_bytes < 1.5 * written
    assert estimate_training(data, tmp_path / "run", *arguments, resume=True) is None
    with pytest.raises(OutputError, match="this is a finished run already"):
        estimate_training(data, tmp_path / "run", *arguments)


def test_the_network_must_be_said(tmp_path: Path):
    with pytest.raises(SettingError, match="--network GBPS"):
        plan_epoch_time(write_cells(tmp_path / "cells.h5ad"), 2)
