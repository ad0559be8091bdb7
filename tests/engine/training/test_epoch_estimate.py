import re
from pathlib import Path

import pytest

from atlasvi.engine.training.epoch_estimate import Plan, describe_plan, plan_epoch_time, reckon_reduce
from atlasvi.engine.training.settings import SettingError
from tests.engine.training.small_runs import SMALL, write_cells


def make_plan(**changed: float) -> Plan:
    """Of two ranks: reading 1 ms, computing 4, at once 5, reducing 3 of which 2 are exposed."""
    values = dict(
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
    assert "gradients takes" in said[2]
    assert list(tmp_path.iterdir()) == [tmp_path / "cells.h5ad"]


def test_a_plan_warns_of_minibatches_that_leave_few_steps(tmp_path: Path):
    settings = {**SMALL, "epochs": 1, "batch_size": 150}
    few = plan_epoch_time(write_cells(tmp_path / "cells.h5ad"), 1, settings=settings, seconds=0.1)
    assert "make a step of 128 cells or fewer" in list(describe_plan(few))[-1]


def test_the_network_must_be_said(tmp_path: Path):
    with pytest.raises(SettingError, match="--network GBPS"):
        plan_epoch_time(write_cells(tmp_path / "cells.h5ad"), 2)
