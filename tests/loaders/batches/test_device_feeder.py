from pathlib import Path

import pytest
import torch

from atlasvi.loaders.batches.device_feeder import DeviceFeeder
from atlasvi.loaders.batches.loader import BatchLoader
from atlasvi.loaders.ingestion.ingest import ingest
from tests.loaders.conftest import make_counts

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture
def store(write_h5ad, tmp_path: Path) -> Path:
    ingest(write_h5ad("a", make_counts(300, 20)), tmp_path / "store")
    return tmp_path / "store"


@pytest.mark.parametrize("device", DEVICES)
def test_a_feeder_hands_out_the_batches_of_its_loader_on_the_device(store: Path, device: str):
    expected = list(BatchLoader(store, 32, seed=0, codes=["batch"]))
    fed = list(DeviceFeeder(BatchLoader(store, 32, seed=0, codes=["batch"]), device))
    assert len(fed) == len(expected)
    for a, b in zip(fed, expected):
        assert a.counts.device.type == device
        assert all(torch.equal(x.cpu(), y) for x, y in zip(a.tensors, b.tensors, strict=True))


@pytest.mark.parametrize("device", DEVICES)
def test_the_state_is_that_of_the_next_batch_to_be_handed_out(store: Path, device: str):
    whole = [batch.rows.tolist() for batch in BatchLoader(store, 32, seed=0)]
    feeder = DeviceFeeder(BatchLoader(store, 32, seed=0), device)
    for number, _ in enumerate(feeder, start=1):
        if number == 4:
            assert feeder.state_dict()["batch"] == 4
            break
    assert [batch.rows.tolist() for batch in feeder] == whole[4:]
    assert feeder.state_dict()["epoch"] == 1
