"""Gradients of a model that several ranks share: those of one process that has all cells."""

from pathlib import Path

import pytest
import torch

from atlasvi.engine.distributed.data_parallel import BUCKET_BYTES, DataParallel, plan_bucket_sizes
from atlasvi.engine.distributed.ranks import Ranks, join_ranks
from tests.engine.distributed.rank_processes import run_ranks


class Halves(torch.nn.Module):
    """Two large parameters and a small one between."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first, self.small, self.last = (
            torch.nn.Parameter(torch.randn(n, 8, generator=generator))
            for n in (BUCKET_BYTES // 32, 8, BUCKET_BYTES // 32)
        )

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return ((values @ self.first) @ self.small @ self.last.T).square().mean()


def sum_gradients(out: Path, compress: str) -> None:
    model = Halves()
    with join_ranks() as ranks:
        parallel = DataParallel(model, ranks, compress)
        for _ in range(2):  # torch forms the buckets anew after the first step
            model.zero_grad(set_to_none=True)
            values = torch.full((2, len(model.first)), 0.01) * (ranks.rank + 1)
            for is_last in (False, True):
                with parallel.accumulating(is_last):
                    parallel.backward(parallel(values))
        torch.save({name: parameter.grad for name, parameter in model.named_parameters()}, f"{out}.{ranks.rank}")


@pytest.mark.parametrize(("compress", "tolerance"), [("none", 1e-5), ("bf16", 1e-2)])
def test_each_gradient_is_the_sum_over_ranks_and_accumulated_minibatches(tmp_path: Path, compress, tolerance):
    run_ranks(sum_gradients, 3, tmp_path / "said", tmp_path / "gradients", compress)
    model = Halves()
    for rank in range(3):
        for _ in range(2):
            model(torch.full((2, len(model.first)), 0.01) * (rank + 1)).backward()
    for rank in range(3):
        for name, gradient in torch.load(f"{tmp_path / 'gradients'}.{rank}").items():
            expected = dict(model.named_parameters())[name].grad
            assert expected is not None
            torch.testing.assert_close(gradient, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


def test_large_gradients_go_by_themselves_in_the_order_of_the_backward_pass():
    model = Halves()
    parameters = [model.first, model.small, model.last]
    assert plan_bucket_sizes(parameters) == [BUCKET_BYTES, 256 + BUCKET_BYTES]
    assert plan_bucket_sizes([model.first, model.last, model.small]) == [256 + BUCKET_BYTES, BUCKET_BYTES]
    assert plan_bucket_sizes(parameters, "bf16") == [BUCKET_BYTES // 2, (256 + BUCKET_BYTES) // 2]


def test_without_a_group_the_model_is_called_as_it_is_and_nothing_is_sent():
    model, values = Halves(), torch.full((2, BUCKET_BYTES // 32), 0.01)
    parallel = DataParallel(model, Ranks())
    assert parallel.n_bytes == 0
    with parallel.accumulating(False):
        parallel.backward(parallel(values))
    found = model.small.grad
    model.zero_grad()
    model(values).backward()
    assert torch.equal(found, model.small.grad)
