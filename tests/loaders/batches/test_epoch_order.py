import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from atlasvi.loaders.batches.epoch_order import EpochPlan, plan_epoch, plan_minibatches

blocks = st.lists(st.integers(0, 20), min_size=1, max_size=30).map(np.array)
plans = st.builds(
    plan_epoch,
    blocks,
    group_blocks=st.integers(1, 8),
    seed=st.none() | st.integers(0, 9),
    epoch=st.integers(0, 9),
)


def cells(plan: EpochPlan, *arguments: int) -> list[set[tuple[int, int]]]:
    """The (block, cell) pairs of each minibatch."""
    batches = plan_minibatches(plan, *arguments)
    return [{(part.block, cell) for part in parts for cell in part.cells.tolist()} for parts in batches]


@given(plan=plans, batch_size=st.integers(1, 70), world_size=st.integers(1, 9))
def test_all_ranks_together_visit_each_cell_once_in_the_same_batches_as_one_rank_does(plan, batch_size, world_size):
    whole = cells(plan, batch_size)
    assert len(set().union(*whole)) == plan.n_cells == sum(map(len, whole))
    assert all(len(batch) == batch_size for batch in whole[:-1])
    shares = [cells(plan, batch_size, 0, rank, world_size) for rank in range(world_size)]
    assert {len(share) for share in shares} == {len(whole)}
    for batch, *parts in zip(whole, *shares):
        assert set().union(*parts) == batch
        assert sum(map(len, parts)) == len(batch)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


@given(plan=plans, batch_size=st.integers(1, 70), data=st.data())
def test_minibatches_from_any_start_are_the_tail_of_the_epoch(plan, batch_size, data):
    whole = cells(plan, batch_size)
    start = data.draw(st.integers(0, len(whole)))
    assert cells(plan, batch_size, start) == whole[start:]


@given(block_cells=blocks, group_blocks=st.integers(1, 8), seed=st.none() | st.integers(0, 9), epoch=st.integers(0, 9))
def test_every_block_with_cells_is_read_and_cells_stay_within_their_block(block_cells, group_blocks, seed, epoch):
    plan = plan_epoch(block_cells, group_blocks, seed, epoch)
    assert sorted(plan.blocks) == np.flatnonzero(block_cells).tolist()
    for parts in plan_minibatches(plan, 16):
        for part in parts:
            assert part.cells.min() >= 0
            assert part.cells.max() < block_cells[part.block]
            assert (np.diff(part.cells) > 0).all()


def test_the_same_seed_and_epoch_give_the_same_order_and_others_do_not():
    def order(seed: int, epoch: int) -> list[set[tuple[int, int]]]:
        return cells(plan_epoch(np.full(40, 10), 4, seed, epoch), 16)

    assert order(1, 2) == order(1, 2)
    assert order(1, 2) != order(1, 3)
    assert order(1, 2) != order(2, 2)


def test_without_a_seed_the_order_is_that_of_the_data():
    plan = plan_epoch(np.array([2, 0, 3, 1]), 2, None, 0)
    got = [(part.block, cell) for parts in plan_minibatches(plan, 4) for part in parts for cell in part.cells.tolist()]
    assert got == [(0, 0), (0, 1), (2, 0), (2, 1), (2, 2), (3, 0)]


def test_cells_of_a_group_are_mixed_and_those_of_different_groups_are_not():
    plan = plan_epoch(np.full(40, 100), 4, 0, 0)
    for parts in plan_minibatches(plan, 100):
        assert len({part.group for part in parts}) == 1
        assert len({part.block for part in parts}) == 4


def test_a_rank_reads_few_of_the_blocks():
    plan = plan_epoch(np.full(64, 100), 16, 0, 0)
    read = [{part.block for parts in plan_minibatches(plan, 800, 0, rank, 4) for part in parts} for rank in range(4)]
    assert sum(map(len, read)) < 1.8 * 64  # a quarter each, and what quarters of different batches overlap
    assert set(itertools.chain(*read)) == set(range(64))
