"""The compiled loops by themselves."""

import numpy as np
import pytest

from atlasvi.kernels import cpu_likelihood

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
