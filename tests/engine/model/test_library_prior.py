from pathlib import Path

import numpy as np
import torch

from atlasvi.engine.model.library_prior import fill_library_prior, measure_library
from atlasvi.engine.model.model_options import ModelSettings
from atlasvi.engine.model.vae import VAE
from atlasvi.loaders.cells.open_cells import open_cells
from tests.engine.training.small_runs import write_cells


def test_the_prior_of_batches_before_the_first_stays_and_the_others_are_measured(tmp_path: Path):
    data = open_cells(write_cells(tmp_path / "cells.h5ad"))
    batch = np.arange(data.n_cells) % 3
    settings = ModelSettings(n_genes=30, n_batches=3, use_observed_lib_size=False, n_hidden=4)
    model = VAE(settings, torch.Generator().manual_seed(0))
    fill_library_prior(model, data, {"batch": batch}, first=1)
    means, variances = measure_library(data, batch, 3)
    assert model.library_log_means.tolist() == [0.0, *means[1:]]
    assert model.library_log_vars.tolist() == [1.0, *variances[1:]]
