"""Matrix products before and after the sweep: exact float32, or bfloat16 factors with float32 sums."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

Precision = Literal["float32", "bf16"]


def multiply_into(to: Tensor, a: Tensor, b: Tensor, add: bool) -> None:
    """to = a @ b, or to += a @ b, in float32; a and b both float32 or both bfloat16."""
    if a.dtype == torch.bfloat16 and not a.is_cuda:
        a, b = a.float(), b.float()  # the same values; needed in tests on the CPU
    if a.dtype == torch.float32:
        torch.addmm(to, a, b, beta=int(add), out=to)
    elif add:
        to += torch.mm(a, b, out_dtype=torch.float32)
    else:
        torch.mm(a, b, out_dtype=torch.float32, out=to)


@contextmanager
def without_tf32() -> Iterator[None]:
    """Let float32 products on CUDA keep all their digits, whatever torch's TF32 setting is."""
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
