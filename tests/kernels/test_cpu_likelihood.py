"""The compiled loops by themselves."""

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from numba.core.dispatcher import Dispatcher

from atlasvi.kernels import cpu_counts, cpu_likelihood, cpu_random, vector_math

SWEEPS = ["_sweep_nb", "_sweep_nb_per_cell", "_sweep_zinb", "_sweep_zinb_per_cell", "_sweep_poisson"]


@pytest.mark.parametrize("n_genes", [24, 30, 200])
@pytest.mark.parametrize("name", SWEEPS)
def test_not_a_bit_of_a_sweep_depends_on_where_in_memory_arrays_lie(name: str, n_genes: int):
    """Arrays are laid beside each other in every order and at odd distances, none over another."""
    rng, sweep = np.random.default_rng(0), getattr(cpu_likelihood, name)
    names = ["proportion", "theta", "by_theta", "dropout", "slope", "grad", "terms"]
    given = {name: rng.standard_normal(n_genes).astype(np.float32) for name in names}
    given["proportion"] = np.abs(given["proportion"]) / n_genes
    given["theta"] = np.exp(given["theta"])
    given["by_theta"] = 1 / given["theta"]
    given["grad"][:] = 0
    buffer, seen = np.empty(len(names) * (n_genes + 20), np.float32), set()
    for _ in range(3000):
        laid, at = {}, 0
        for name in rng.permutation(names):
            at += int(rng.integers(0, 20))
            laid[name] = buffer[at : at + n_genes]
            laid[name][:] = given[name]
            at += n_genes
        proportion, *others = (laid[name] for name in names)
        sums = sweep(proportion, np.float32(900), *others, np.float32(1))
        seen.add(np.array(sums).tobytes() + b"".join(laid[name].tobytes() for name in ("dropout", "slope", "grad")))
    assert len(seen) == 1


CALLED = [
    (module, name)
    for module in (cpu_counts, cpu_likelihood, cpu_random, vector_math)
    for name, function in vars(module).items()
    if isinstance(function, Dispatcher) and function.targetoptions.get("fastmath")
]


@pytest.mark.parametrize(("module", "name"), CALLED, ids=lambda given: getattr(given, "__name__", given))
def test_what_may_sum_in_another_order_is_inlined(module: ModuleType, name: str):
    """Or it would depend on what a process has compiled before which copy of it is run: other last digits."""
    options = getattr(module, name).targetoptions
    assert options.get("forceinline") or options.get("inline") == "always"


@pytest.mark.slow
def test_a_process_that_compiles_computes_the_same_bits_as_one_that_finds_compiled_code(tmp_path: Path):
    program = (
        "from tests.kernels.cases import OPTIONS, make_case, run\n"
        "for options in OPTIONS:\n"
        "    print([value.sum().item().hex() for value in run(make_case(*options, 64, 300, 0), 'cpu').values()])"
    )
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    first, second = (
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
        for _ in range(2)
    )
    assert first.stdout == second.stdout != ""
