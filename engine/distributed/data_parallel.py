"""Gradients summed over all ranks by torch's DistributedDataParallel, overlapping with the backward pass.

DistributedDataParallel averages over ranks. Our loss is the mean over all cells of a step, so each rank's part must be
summed instead: the loss is multiplied by the number of ranks before the backward pass.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook, bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from atlasvi.engine.distributed.ranks import BrokenGroup, Ranks

BUCKET_BYTES = 2**20  # size of the buckets in which gradients are sent; the output layer has its own


class DataParallel:
    """A model whose gradients are summed over all ranks in each backward pass; on a single rank just the model.

    compress  'bf16' sends the gradients in bfloat16, half the bytes
    """

    def __init__(self, model: nn.Module, ranks: Ranks, compress: str = "none") -> None:
        self._model, self._ranks, self._parallel = model, ranks, None
        learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.bucket_sizes = plan_bucket_sizes(learned, compress)
        if not ranks.reduces:
            return
        with ranks.waiting("making the model"):
            self._parallel = DistributedDataParallel(
                model,
                broadcast_buffers=False,  # all ranks compute the same buffers
                init_sync=False,  # and start from the same weights
                bucket_cap_mb=BUCKET_BYTES / 2**20,
                gradient_as_bucket_view=True,
            )
        hook = bf16_compress_hook if compress == "bf16" else allreduce_hook

        def send(group: Any, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
            if bucket.is_last():  # this rank is done computing: it now waits for others
                ranks.note("adding up the gradients", waiting=True)
            return hook(group, bucket)

        self._parallel.register_comm_hook(None, send)

    @property
    def n_bytes(self) -> int:
        """Bytes of gradients that this rank sends into the all-reduce of each step; 0 on a single rank."""
        return sum(self.bucket_sizes) if self._ranks.reduces else 0

    def __call__(self, *arguments: Any) -> Any:
        """The forward pass."""
        return (self._parallel or self._model)(*arguments)

    def accumulating(self, is_last: bool) -> AbstractContextManager[None]:
        """For forward and backward of a minibatch of a step: only the last one's backward pass sends the gradients."""
        return nullcontext() if is_last or self._parallel is None else self._parallel.no_sync()

    def backward(self, loss: Tensor) -> None:
        """The backward pass; `loss` is this rank's part of the sum. Raises BrokenGroup if a rank is gone."""
        if self._parallel is None:
            loss.backward()
            return
        try:
            (loss * self._ranks.world_size).backward()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise BrokenGroup(f"adding up the gradients: {str(error).splitlines()[0]}") from error
        self._ranks.note("what follows the gradients")


def plan_bucket_sizes(parameters: Sequence[nn.Parameter], compress: str = "none") -> list[int]:
    """Bytes of each bucket of gradients, in the order in which the backward pass computes them.

    The backward pass goes from the last parameter to the first.
    """
    buckets: list[list[nn.Parameter]] = [[]]
    for parameter in reversed(parameters):
        buckets[-1].append(parameter)
        if sum(each.numel() * each.element_size() for each in buckets[-1]) >= BUCKET_BYTES:
            buckets.append([])
    return [
        sum(each.numel() * (2 if compress == "bf16" else each.element_size()) for each in bucket)
        for bucket in buckets
        if bucket
    ]
