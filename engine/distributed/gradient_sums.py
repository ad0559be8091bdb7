"""Gradients added up over all ranks while the backward pass still runs."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from atlasvi.engine.distributed.ranks import Ranks

BUCKET_BYTES = 2**20  # a tensor as large goes by itself, uncopied; smaller ones together: each call costs a round trip


@dataclass
class Bucket:
    """Parameters whose gradients are sent in one call."""

    parameters: list[nn.Parameter]
    missing: int = 0  # gradients that the running backward pass has not given yet
    sent: Tensor | None = None
    work: Any = None
    dtype: torch.dtype = field(default=torch.float32)

    @property
    def n_bytes(self) -> int:
        """Sent a step."""
        return sum(parameter.numel() for parameter in self.parameters) * self.dtype.itemsize


class GradientSum:
    """Sums the gradients of `parameters` over all ranks, each bucket as soon as its last gradient is there.

    The output layer's gradient is ready first, as it is computed with the loss, and crosses while the rest is computed.
    A parameter that the backward pass does not reach counts as zero, and keeps no gradient: nobody waits for it.

    compress  'bf16' sends half the bytes, in bfloat16
    """

    def __init__(self, ranks: Ranks, parameters: Iterable[nn.Parameter], compress: str = "none") -> None:
        self._ranks, self._armed, self._next = ranks, False, 0
        self._buckets = plan_buckets(list(parameters), compress) if ranks.reduces else []
        for bucket in self._buckets:
            for parameter in bucket.parameters:
                parameter.register_post_accumulate_grad_hook(lambda _, bucket=bucket: self._receive(bucket))

    @property
    def n_bytes(self) -> int:
        """That this rank hands to each sum over ranks, once a step; 0 without a group."""
        return sum(bucket.n_bytes for bucket in self._buckets)

    def expect(self) -> None:
        """The next backward pass is the last of its step: send its gradients."""
        self._armed, self._next = True, 0
        for bucket in self._buckets:
            bucket.missing, bucket.sent, bucket.work = len(bucket.parameters), None, None

    def wait(self) -> None:
        """Until each gradient is the sum over all ranks. Raises BrokenGroup if a rank is gone."""
        if not self._buckets:
            return
        self._armed = False
        for bucket in self._buckets[self._next :]:
            self._send(bucket)
        with self._ranks.waiting("adding up the gradients"):
            for bucket in self._buckets:
                bucket.work.wait()
        for bucket in self._buckets:
            assert bucket.sent is not None
            parts = bucket.sent.split([parameter.numel() for parameter in bucket.parameters])
            for parameter, part in zip(bucket.parameters, parts):
                if parameter.grad is not None and parameter.grad.data_ptr() != part.data_ptr():
                    parameter.grad.copy_(part.view_as(parameter.grad))
            bucket.sent = None

    def _receive(self, bucket: Bucket) -> None:
        """A gradient is there. Buckets go in one order, the same on all ranks, whichever is ready first."""
        if not self._armed:
            return
        bucket.missing -= 1
        while self._next < len(self._buckets) and self._buckets[self._next].missing == 0:
            self._send(self._buckets[self._next])
            self._next += 1

    def _send(self, bucket: Bucket) -> None:
        gradients = [
            torch.zeros_like(parameter) if parameter.grad is None else parameter.grad for parameter in bucket.parameters
        ]
        flat = [gradient.reshape(-1) for gradient in gradients]
        bucket.sent = (flat[0] if len(flat) == 1 else torch.cat(flat)).to(bucket.dtype)
        bucket.work = self._ranks.start_sum(bucket.sent)


def plan_buckets(parameters: list[nn.Parameter], compress: str = "none") -> list[Bucket]:
    """Large parameters by themselves, the small ones together; in the order in which their last gradient is there.

    The backward pass goes from the last parameter to the first.
    """
    buckets: list[tuple[int, Bucket]] = []
    small: list[nn.Parameter] = []
    last = 0
    for place, parameter in enumerate(reversed([parameter for parameter in parameters if parameter.requires_grad])):
        if parameter.numel() * parameter.element_size() >= BUCKET_BYTES:
            buckets.append((place, Bucket([parameter])))
            continue
        small.append(parameter)
        last = place
        if sum(each.numel() * each.element_size() for each in small) >= BUCKET_BYTES:
            buckets.append((place, Bucket(small)))
            small = []
    if small:
        buckets.append((last, Bucket(small)))
    ordered = [bucket for _, bucket in sorted(buckets, key=lambda each: each[0])]
    for bucket in ordered:
        bucket.dtype = torch.bfloat16 if compress == "bf16" else bucket.parameters[0].dtype
    return ordered
