from dataclasses import replace

import numpy as np
import pytest
import torch

from atlasvi.engine.model.covariates import Setup
from atlasvi.engine.model.trained_run import TrainedRun
from atlasvi.engine.model.vae import VAE, ModelSettings
from atlasvi.engine.queries.model_names import find_batch, find_batches, find_genes
from atlasvi.engine.queries.question_cells import QueryError
from atlasvi.loaders.errors import GeneError


@pytest.fixture(scope="module")
def run() -> TrainedRun:
    settings = ModelSettings(n_genes=3, n_batches=2, n_hidden=4, n_latent=2, n_layers=1)
    setup = Setup.from_saved({"batch_key": "batch", "batch_categories": [1, 2]})
    return TrainedRun(VAE(settings, torch.Generator()), ["CD3E", "CD3D", "LYZ"], setup)


def test_genes_are_found_in_the_order_in_which_they_are_named(run: TrainedRun):
    assert find_genes(run, ["LYZ", "CD3E"], "x").tolist() == [2, 0]
    assert np.arange(3)[find_genes(run, None, "x")].tolist() == [0, 1, 2]
    with pytest.raises(GeneError, match=r"x: no gene 'CD3G' in the model \(similar: CD3E, CD3D\)"):
        find_genes(run, ["LYZ", "CD3G"], "x")
    with pytest.raises(GeneError, match=r"no gene 'Cd3e' in the model \(similar: CD3E, CD3D\)"):
        find_genes(run, ["Cd3e"], "x")
    with pytest.raises(GeneError, match="it has 3: CD3E, CD3D, LYZ"):
        find_genes(run, ["MALAT1"], "x")


def test_batches_are_found_by_value_and_by_their_text(run: TrainedRun):
    assert find_batches(run, None) == [None]
    assert find_batches(run, "2") == find_batches(run, 2) == find_batches(run, [2.0]) == [1]
    assert find_batches(run, [None, 1]) == [None, 0]
    with pytest.raises(QueryError, match="no batch 'a': the model's batches are 1, 2"):
        find_batch(run, "a")
    named = replace(run, setup=Setup.from_saved({"batch_key": "batch", "batch_categories": ["Lung", "Gut"]}))
    with pytest.raises(QueryError, match=r"no batch 'lung': .* Lung, Gut. Did you mean 'Lung'\?"):
        find_batch(named, "lung")
