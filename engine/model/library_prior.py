"""The prior of a latent library size: mean and variance of the log library in each batch, measured in one pass."""

from collections.abc import Mapping

import numpy as np
import torch

from atlasvi.engine.model.vae import VAE
from atlasvi.loaders.batches.loader import BatchLoader
from atlasvi.loaders.cells.open_cells import CellData

PASS_CELLS = 4096


def measure_library(data: CellData, batch: np.ndarray | None, n_batches: int) -> tuple[np.ndarray, np.ndarray]:
    """Means and variances, float32 [batches], of the log library size over all cells.

    As in scvi-tools, an empty cell counts as log 1, and a batch without cells gets mean 0 and variance 1. The variance
    is 1 too if all cells of a batch have the same size, because the KL to a distribution without variance is infinite.
    """
    codes = None if batch is None else {"batch": batch}
    sums = np.zeros((3, n_batches))  # cells, logs, squared deviations from a first guess (avoids cancellation)
    guess = np.nan
    for cells in BatchLoader(data, PASS_CELLS, seed=0, codes=codes, shuffle=False):
        library = cells.library.numpy().astype(np.float64)
        logs = np.log(np.where(library > 0, library, 1))
        guess = logs.mean() if np.isnan(guess) else guess
        where = cells.codes["batch"].numpy() if codes else np.zeros(len(logs), np.int64)
        for total, weights in zip(sums, (None, logs - guess, (logs - guess) ** 2)):
            total += np.bincount(where, weights, n_batches)
    n = np.maximum(sums[0], 1)
    means, variances = sums[1] / n, sums[2] / n - (sums[1] / n) ** 2
    there = sums[0] > 0
    means = np.where(there, means + guess, 0)
    variances = np.where(there & (variances > 1e-12), variances, 1)
    return means.astype(np.float32), variances.astype(np.float32)


def fill_library_prior(model: VAE, data: CellData, codes: Mapping[str, np.ndarray], first: int = 0) -> None:
    """Measure the prior and set it in a model with a latent library.

    codes  covariates of all cells, as `Setup.read_codes` returns them
    first  first batch whose prior is set; batches before it keep theirs
    """
    found = measure_library(data, codes.get("batch"), model.settings.n_batches)
    for buffer, values in zip((model.library_log_means, model.library_log_vars), found):
        buffer[first:] = torch.from_numpy(values)[first:]
