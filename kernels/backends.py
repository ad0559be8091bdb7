"""Which implementation of the kernels runs: chosen by device, unless the caller or the environment chooses."""

import importlib
import importlib.util
import os
from functools import cache
from typing import Any

import torch

BACKENDS = ("cpu", "triton", "torch")
VARIABLE = "ATLASVI_KERNELS"
INTERPRETER = "TRITON_INTERPRET"


def choose_backend(device: torch.device, asked: str | None = None, dtype: torch.dtype = torch.float32) -> str:
    """'cpu' (compiled by numba) on the CPU; 'triton' on CUDA, if it is installed; 'torch' (plain, dense) elsewhere.

    asked  the caller's choice, if any; else the environment variable ATLASVI_KERNELS overrides the device. For tests,
           'triton' runs on the CPU too, slowly, in its interpreter (TRITON_INTERPRET=1 before triton is imported)
    dtype  float64 runs only on 'torch', whatever the variable says
    Raises ValueError for an unknown name, or a backend that does not run on the device or in the dtype.
    """
    if dtype == torch.float64 and asked in (None, "torch"):
        return "torch"
    asked = asked or os.environ.get(VARIABLE)
    if asked is None:
        return "cpu" if device.type == "cpu" else "triton" if device.type == "cuda" and _has_triton() else "torch"
    if asked not in BACKENDS:
        raise ValueError(f"kernels {asked!r}: choose one of {', '.join(BACKENDS)}")
    if dtype == torch.float64:
        raise ValueError(f"kernels {asked!r} compute in float32: choose 'torch' for float64")
    if asked == "cpu" and device.type != "cpu":
        raise ValueError(f"kernels 'cpu' do not run on {device.type}: choose 'triton' or 'torch'")
    if asked == "triton":
        if not _has_triton():
            raise ValueError("kernels 'triton' need the package triton, which is not installed: choose 'torch'")
        if device.type != "cuda" and os.environ.get(INTERPRETER) != "1":
            raise ValueError(
                f"kernels 'triton' run on CUDA, not on {device.type}: choose another, or set {INTERPRETER}=1 for tests"
            )
    return asked


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


@cache
def load_sweep(backend: str) -> Any:
    """The `Sweep` class of a backend, which turns tiles of logits into losses and slopes."""
    return importlib.import_module(f"atlasvi.kernels.{backend}_tile").Sweep


@cache
def load_sparse(backend: str) -> Any:
    """The module of a backend for products with sparse counts."""
    return importlib.import_module(f"atlasvi.kernels.{backend}_sparse")


@cache
def load_hidden(backend: str) -> Any:
    """The module of a backend for the part of a hidden layer after its matrix product."""
    return importlib.import_module(f"atlasvi.kernels.{backend}_hidden")


@cache
def load_sampler(backend: str) -> Any:
    """The `Sampler` class of a backend, which turns tiles of logits into counts."""
    return importlib.import_module(f"atlasvi.kernels.{backend}_counts").Sampler
