"""The grid of options that scvi-tools and we are compared on, and weights that both sides can make: numpy alone.

Likelihood x dispersion x library x covariates in full; the other options take turns, so that each meets each of those.
"""

import itertools
import zlib
from typing import Any

import numpy as np

N_CELLS, N_GENES = 20, 30
KEYS = {
    "none": {},
    "batch": {"batch_key": "batch", "labels_key": "labels"},
    "all": {
        "batch_key": "batch",
        "labels_key": "labels",
        "categorical_covariate_keys": ["donor", "same", "sex"],
        "continuous_covariate_keys": ["age", "score"],
    },
    "embedded": {
        "batch_key": "batch",
        "labels_key": "labels",
        "categorical_covariate_keys": ["sex"],
        "continuous_covariate_keys": ["age"],
    },
}
TURNS: dict[str, tuple] = {
    "n_layers": (1, 2, 3),
    "latent_distribution": ("normal", "normal", "ln"),
    "use_batch_norm": ("none", "encoder", "decoder", "both", "none"),
    "use_layer_norm": ("both", "none", "encoder", "decoder"),
    "encode_covariates": (True, False, True, True, False, True, True),
    "deeply_inject_covariates": (True, False, True, True, False),
    "log_variational": (True, True, False, True, True, True, False, True, True, True, True),
}


def make_cases() -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """name -> (what setup_anndata is told, what SCVI is told), all but the sizes of the layers."""
    cases = {}
    grid = itertools.product(
        ("nb", "zinb", "poisson", "normal"),
        ("gene", "gene-batch", "gene-label", "gene-cell"),
        ("observed", "latent", "factor"),
        KEYS,
    )
    for number, (likelihood, dispersion, library, covariates) in enumerate(grid):
        setup = dict(KEYS[covariates])
        if library == "factor":
            setup["size_factor_key"] = "factor"
        options: dict[str, Any] = {name: turns[number % len(turns)] for name, turns in TURNS.items()}
        options.update(gene_likelihood=likelihood, dispersion=dispersion, use_observed_lib_size=library != "latent")
        if covariates == "embedded":
            options["batch_representation"] = "embedding"
        cases[f"{likelihood} {dispersion} {library} {covariates}"] = setup, options
    return cases


def make_weights(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Values of a parameter of scvi-tools' state dictionary, a function of its name: nothing need be stored."""
    n = int(np.prod(shape))
    waves = np.sin(np.arange(1, n + 1) * 12.9898 + zlib.crc32(name.encode()) % 1000)
    if name.endswith(("running_var", "library_log_vars")):
        waves = 0.6 + 0.4 * waves
    elif name.endswith("library_log_means"):
        waves = 4 + 0.5 * waves
    elif "var_encoder" in name or name.startswith("l_encoder"):
        waves = 0.02 * waves  # they are exponentiated, and raw counts are large
    elif "px_" in name and name != "px_r" and "px_decoder" not in name:
        waves = 0.1 * waves  # no share so small that the 1e-8 in scvi-tools' logarithms is felt
    else:
        waves = 0.4 * waves
    return waves.reshape(shape).astype(np.float32)


def make_cells() -> dict[str, np.ndarray]:
    """Counts [cells, genes], covariates and noise that all cases share; one cell holds a large count."""
    cell, gene = np.indices((N_CELLS, N_GENES))
    level = np.sin(cell * 7.1 + gene * 3.7) + np.sin(cell * 0.7 * gene)
    counts = np.floor(np.clip(level, 0, None) * (2 + gene % 5)).astype(np.float32)
    counts[3, 4] = 300
    cells = np.arange(N_CELLS)
    return {
        "counts": counts,
        "batch": np.array(["b0", "b1", "b2"])[cells * 5 % 3],
        "labels": np.array(["T", "B"])[cells * 3 % 2],
        "donor": np.array(["d0", "d1", "d2", "d3"])[cells * 7 % 4],
        "same": np.array(["x"])[cells * 0],
        "sex": cells * 3 // 2 % 2,
        "age": (np.sin(cells) * 2).astype(np.float32),
        "score": np.cos(cells * 0.5).astype(np.float32),
        "factor": (0.5 + np.abs(np.sin(cells * 1.3))).astype(np.float32),
        "z_noise": np.sin(np.arange(N_CELLS * 4) * 1.7).reshape(N_CELLS, 4).astype(np.float32),
        "library_noise": np.cos(cells * 2.3).astype(np.float32) * 0.5,
    }
