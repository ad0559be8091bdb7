"""Compiles the Triton kernels as the likelihoods launch them, for an H100, on a machine without one.

    python tests/kernels/compile_for_h100.py CACHE [LIKELIHOOD DISPERSION softmax|softplus]

Prints a line per kernel: its name, registers per thread, bytes of stack (spilled registers). Not a test by itself: it
must run where triton is not interpreting.
"""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

os.environ["TRITON_CACHE_DIR"] = sys.argv[1]
sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

import atlasvi.kernels.triton_counts
import atlasvi.kernels.triton_tile  # noqa: F401  imports triton's kernels for the compiler ...

os.environ["TRITON_INTERPRET"] = "1"  # ... and only then lets the backend be chosen on a CPU

from atlasvi.kernels import log1p_linear
from tests.kernels.cases import OPTIONS, make_case, run, sample


class H100:
    """A driver that has nothing to run on."""

    def get_current_device(self) -> int:
        """The only one."""
        return 0

    def get_current_stream(self, device: int) -> int:
        """The default one."""
        return 0

    def get_current_target(self) -> GPUTarget:
        """Compute capability 9.0."""
        return GPUTarget("cuda", 90, 32)


compiled: dict[str, Any] = {}
run_kernel = JITFunction.run


def compile_kernel(self: Any, *arguments: Any, warmup: bool, **options: Any) -> Any:
    """In place of a launch."""
    kernel = run_kernel(self, *arguments, warmup=True, **options)
    compiled[kernel.hash] = self.fn.__name__, kernel.asm["cubin"]
    return kernel


if __name__ == "__main__":
    triton.runtime.driver.set_active(H100())
    JITFunction.run = compile_kernel
    asked = [(sys.argv[2], sys.argv[3], sys.argv[4] == "softmax")] if len(sys.argv) > 2 else OPTIONS
    for option in asked:
        case = make_case(*option, 13, 64 if len(sys.argv) > 2 else 211, 0)  # rows that are aligned, and that are not
        run(case, "triton")
        sample(case, "triton")
        if option == OPTIONS[0]:
            run(case, "triton", precision="bf16")
        weight = torch.ones(len(case.tensors["bias"]), 8, requires_grad=True)
        csr = case.cells.indptr, case.cells.indices, case.cells.counts
        log1p_linear(*csr, weight, backend="triton").sum().backward()
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    binary = Path(sys.argv[1]) / "kernel.cubin"
    for name, cubin in compiled.values():
        binary.write_bytes(cubin)
        usage = subprocess.run([tool, "-res-usage", binary], capture_output=True, text=True)
        print(name, *re.findall(r"REG:\d+|STACK:\d+", usage.stdout + usage.stderr))
