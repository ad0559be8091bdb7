"""Random draws for cells: in the right shares, and for a cell the same whichever rank has it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from atlasvi.engine.model.noise import SharedNoise, draw_dropout, draw_normal


@pytest.mark.parametrize("rate", [0.0, 0.05, 0.5, 0.9, 0.999999])
def test_dropout_leaves_the_share_that_is_asked_for_and_the_mean(rate: float):
    found = draw_dropout(torch.empty(2000, 501), rate, torch.Generator().manual_seed(0))
    assert found.dtype == torch.float32
    assert (found == 0).float().mean().item() == pytest.approx(
        rate, abs=5 * (rate * (1 - rate) / found.numel()) ** 0.5 + 2**-15
    )
    assert len(found.unique()) <= 2
    if rate < 0.99:
        assert found.mean().item() == pytest.approx(1, abs=0.02)


def test_dropout_of_neighbours_is_independent():
    """Four of them come from one draw."""
    dropped = draw_dropout(torch.empty(400_000, 4), 0.3, torch.Generator().manual_seed(1)) == 0
    correlations = torch.corrcoef(dropped.T.float()) - torch.eye(4)
    assert correlations.abs().max() < 0.01


@given(n=st.integers(1, 40), width=st.integers(1, 9), cut=st.integers(0, 40), seed=st.integers(0, 2**63 - 1))
def test_ranks_get_their_rows_of_what_one_process_draws(n: int, width: int, cut: int, seed: int):
    cut = min(cut, n)
    for draw in (draw_normal, lambda like, noise: draw_dropout(like, 0.4, noise)):
        whole = draw(torch.empty(n, width), torch.Generator().manual_seed(seed))
        parts = [
            draw(torch.empty(some, width), SharedNoise(torch.Generator().manual_seed(seed), n, first))
            for first, some in ((0, cut), (cut, n - cut))
        ]
        assert torch.equal(torch.cat(parts), whole)
