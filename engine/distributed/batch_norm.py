"""Batch norm over the cells of all ranks: the same result as one process on the whole minibatch."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class SharedBatchNorm(nn.BatchNorm1d):
    """BatchNorm1d over a minibatch that is split over ranks; its parameters and buffers are equal on all of them.

    For CPUs, where torch's SyncBatchNorm does not work.
    """

    def forward(self, input: Tensor) -> Tensor:
        """[cells of this rank, features], normalised by mean and variance over the cells of all ranks."""
        if not self.training:
            return super().forward(input)
        wide = input.double()  # float64, because the variance comes from sums of squares
        count = torch.full_like(wide[:1, :1].sum(0), len(wide)).expand(1)
        sums = _SumOverRanks.apply(torch.cat([wide.sum(0), wide.square().sum(0), count]))
        n, width = sums[-1], wide.shape[1]
        mean = sums[:width] / n
        variance = sums[width:-1] / n - mean.square()
        with torch.no_grad():
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            assert self.momentum is not None
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
            self.running_var.lerp_((variance * n / (n - 1)).to(self.running_var), self.momentum)
        normal = ((wide - mean) * (variance + self.eps).rsqrt()).to(input.dtype)
        return normal * self.weight + self.bias


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        values = values.clone()
        dist.all_reduce(values)
        return values

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        grad = grads[0].clone()
        dist.all_reduce(grad)
        return grad


def share_batch_norm(model: nn.Module) -> None:
    """Replace each BatchNorm1d of a model by one over all ranks; call it before its parameters are used elsewhere."""
    for module in list(model.modules()):
        for name, norm in module.named_children():
            if type(norm) is nn.BatchNorm1d:
                kind = nn.SyncBatchNorm if norm.weight.is_cuda else SharedBatchNorm
                shared = kind(norm.num_features, eps=norm.eps, momentum=norm.momentum)
                shared.load_state_dict(norm.state_dict())
                setattr(module, name, shared.to(norm.weight))


@contextmanager
def evaluating_norms(model: nn.Module) -> Iterator[None]:
    """Norms use their running statistics in this block: for a minibatch of one cell, which has no variance."""
    norms = [norm for norm in model.modules() if isinstance(norm, SharedBatchNorm | nn.SyncBatchNorm) and norm.training]
    for norm in norms:
        norm.eval()
    try:
        yield
    finally:
        for norm in norms:
            norm.train()
