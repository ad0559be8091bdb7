import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from atlasvi.loaders.plan import plan_epoch

blocks = st.lists(st.integers(0, 20), min_size=1, max_size=30).map(np.array)


@given(block_cells=blocks, group_blocks=st.integers(1, 8), seed=st.none() | st.integers(0, 9), epoch=st.integers(0, 9))
def test_every_block_with_cells_is_in_one_group_and_every_cell_has_one_place(block_cells, group_blocks, seed, epoch):
    plan = plan_epoch(block_cells, group_blocks, seed, epoch)
    read = np.concatenate([*plan.groups, np.empty(0, int)])
    assert sorted(read) == np.flatnonzero(block_cells).tolist()
    assert plan.n_cells == block_cells.sum()
    for number, group in enumerate(plan.groups):
        assert len(group) <= group_blocks
        assert sorted(plan.order_group(number)) == list(range(block_cells[group].sum()))


def test_the_same_seed_and_epoch_give_the_same_order_and_others_do_not():
    cells = np.full(40, 10)

    def order(seed: int, epoch: int) -> list[int]:
        plan = plan_epoch(cells, 4, seed, epoch)
        return [*np.concatenate(plan.groups), *plan.order_group(0)]

    assert order(1, 2) == order(1, 2)
    assert order(1, 2) != order(1, 3)
    assert order(1, 2) != order(2, 2)


def test_without_a_seed_the_order_is_that_of_the_data():
    plan = plan_epoch(np.array([2, 0, 3, 1]), 2, None, 0)
    assert [group.tolist() for group in plan.groups] == [[0, 2], [3]]
    assert plan.order_group(0).tolist() == [0, 1, 2, 3, 4]
