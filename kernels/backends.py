"""Which implementation of the kernels runs: chosen by device, and overridable."""

import importlib
import os
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

BACKENDS = ("cpu", "torch")
VARIABLE = "ATLASVI_KERNELS"


def choose_backend(device: torch.device, asked: str | None = None) -> str:
    """'cpu' (compiled by numba) on the CPU, 'torch' (plain, dense, by autograd) elsewhere.

    asked  a name wins over the device; so does the environment variable ATLASVI_KERNELS
    Raises ValueError for a name that is none of them, or does not run on the device.
    """
    asked = asked or os.environ.get(VARIABLE)
    if asked is None:
        return "cpu" if device.type == "cpu" else "torch"
    if asked not in BACKENDS:
        raise ValueError(f"kernels {asked!r}: choose one of {', '.join(BACKENDS)}")
    if asked == "cpu" and device.type != "cpu":
        raise ValueError(f"kernels 'cpu' do not run on {device.type}: choose 'torch'")
    return asked


@cache
def load_sweep(backend: str) -> Callable[..., None]:
    """The function of a backend that turns a tile of logits into losses and slopes."""
    return importlib.import_module(f"atlasvi.kernels.{backend}_tile").sweep_tile


def load_sparse(backend: str) -> Any:
    """The module of a backend that multiplies sparse counts."""
    return importlib.import_module(f"atlasvi.kernels.{backend}_sparse")
