from pathlib import Path

import pytest
import torch

from atlasvi.engine import simulate
from atlasvi.engine.model.model_options import ModelSettings
from atlasvi.engine.model.vae import VAE
from atlasvi.engine.training.cuda_graph import StaticBatch, can_be_captured
from atlasvi.loaders.batches.batch import Batch
from atlasvi.loaders.batches.loader import BatchLoader


@pytest.fixture
def batches(tmp_path: Path) -> list[Batch]:
    simulate(tmp_path / "atlas.h5ad", n_cells=600, n_genes=40, n_batches=2, n_types=2, seed=0)
    return list(BatchLoader(tmp_path / "atlas.h5ad", 64, seed=0, codes=["batch"]))


def test_a_minibatch_in_a_larger_buffer_trains_alike(batches: list[Batch]):
    model = VAE(ModelSettings(n_genes=40, n_batches=2, n_hidden=8), torch.Generator().manual_seed(0))
    static = StaticBatch(max(batches, key=lambda batch: len(batch.counts)))
    addresses = [tensor.data_ptr() for tensor in static.batch.tensors]
    for batch in batches[:-1]:
        assert static.fits(batch)
        results = []
        for cells in (batch, static.fill(batch)):
            model.zero_grad()
            losses = model(cells, torch.Generator().manual_seed(1), len(cells))
            (losses.reconstruction + losses.kl).mean().backward()
            results.append([losses.reconstruction, *(p.grad for p in model.parameters() if p.grad is not None)])
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert addresses == [tensor.data_ptr() for tensor in static.batch.tensors]


def test_a_minibatch_of_another_size_or_with_too_many_counts_does_not_fit(batches: list[Batch]):
    static = StaticBatch(batches[0])
    assert len(batches[-1]) != 64
    assert not static.fits(batches[-1])
    static.batch.counts = static.batch.counts[:3]
    assert not static.fits(batches[0])


def test_nothing_is_captured_on_a_cpu():
    assert not can_be_captured(VAE(ModelSettings(n_genes=3)), torch.device("cpu"))
