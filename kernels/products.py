"""Matrix products around the sweep: exact float32, or of bfloat16 factors with float32 sums."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

Precision = Literal["float32", "bf16"]


def add_product(to: Tensor, a: Tensor, b: Tensor) -> None:
    """to += a @ b, in float32; a and b both float32 or both bfloat16."""
    if a.dtype == torch.float32:
        torch.addmm(to, a, b, out=to)
    else:
        # on the CPU the same numbers, for tests
        to += torch.mm(a, b, out_dtype=torch.float32) if a.is_cuda else torch.mm(a.float(), b.float())


@contextmanager
def without_tf32() -> Iterator[None]:
    """float32 products on CUDA keep all their digits, whatever torch was told about the products of others."""
    settings = torch.backends.cuda.matmul
    before = settings.fp32_precision
    if before != "tf32":
        yield
        return
    settings.fp32_precision = "ieee"
    try:
        yield
    finally:
        settings.fp32_precision = before
