import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from atlasvi.engine.model.covariates import Setup
from atlasvi.engine.model.trained_run import TrainedRun, load_run
from atlasvi.engine.model.vae import VAE, ModelSettings
from atlasvi.loaders.errors import SourceError
from atlasvi.loaders.manifest import write_json, write_manifest
from atlasvi.loaders.sources.data_spec import parse_source

SETUP = Setup.from_saved(
    {"batch_key": "donor", "batch_categories": ["d1", "d2"], "labels_key": "type", "labels_categories": ["B", "T"]}
)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """The directory of a finished run."""
    model = VAE(ModelSettings(n_genes=5, n_batches=2, n_hidden=8, n_latent=3), torch.Generator().manual_seed(0)).eval()
    run = TrainedRun(model, list("vwxyz"), SETUP, {"epochs": 3})
    folder = tmp_path / "run"
    folder.mkdir()
    write_json(folder / "config.json", {"data": "cells.h5ad"})
    write_json(folder / "result.json", run.result)
    run.save(folder)
    return folder


def test_a_model_does_not_name_the_server_to_which_credentials_are_sent(saved: Path):
    spec = parse_source("s3://atlases/a.h5ad::endpoint=https://elsewhere,layer=raw")
    assert replace(load_run(saved), data=spec).like == parse_source("s3://atlases/a.h5ad::layer=raw")


def test_a_run_is_read_back_ready_for_inference(saved: Path):
    run = load_run(saved)
    assert (run.genes, run.result) == (list("vwxyz"), {"epochs": 3})
    assert run.setup == SETUP
    assert run.path == saved
    assert not run.model.training
    z, codes = torch.ones(2, 3), {"batch": torch.tensor([0, 1])}
    drawn = VAE(run.model.settings, torch.Generator().manual_seed(0)).eval()
    assert torch.equal(run.model.proportions(z, codes), drawn.proportions(z, codes))


def test_a_run_that_is_not_finished_says_how_to_go_on(saved: Path):
    (saved / "model.pt").unlink()
    with pytest.raises(SourceError, match=r"not finished: resume it with .*--resume"):
        load_run(saved)


def test_what_is_no_run_is_said(tmp_path: Path):
    for place in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(SourceError, match="is not a run directory"):
            load_run(place)


@pytest.mark.parametrize("file", ["model.pt", "result.json"])
def test_a_damaged_run_is_said(saved: Path, file: str):
    (saved / file).write_bytes((saved / file).read_bytes()[:-20])
    with pytest.raises(SourceError, match="damaged"):
        load_run(saved)


def test_a_model_file_runs_no_code_when_it_is_read(saved: Path):
    class RunsCommand:
        def __reduce__(self) -> tuple:
            return os.system, (f"touch {saved / 'ran'}",)

    torch.save({"settings": RunsCommand()}, saved / "model.pt")
    with pytest.raises(SourceError, match="damaged"):
        load_run(saved)
    assert not (saved / "ran").exists()


def test_a_bit_flipped_anywhere_in_the_weights_is_noticed_also_in_runs_of_older_versions(saved: Path):
    """torch itself compares no checksum: tensors of `model.pt` would have other values."""
    whole = (saved / "model.pt").read_bytes()
    weights = load_run(saved).model.state_dict()["encoder.first.weight"]
    at = whole.index(weights.numpy().tobytes())
    (saved / "model.pt").write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    with pytest.raises(SourceError, match=r"model\.pt: it is damaged .*CRC-32.*copy it again"):
        load_run(saved)


def test_what_torch_says_of_a_pickle_is_not_shown(saved: Path):
    torch.save({"settings": Path("x")}, saved / "model.pt")
    with pytest.raises(SourceError, match="besides tensors and plain values") as raised:
        load_run(saved)
    assert "weights_only" not in str(raised.value)


@pytest.mark.parametrize("file", ["config.json", "result.json", "metrics.jsonl", "model.pt"])
def test_a_finished_run_notices_what_is_missing_or_changed(saved: Path, file: str):
    (saved / "metrics.jsonl").write_text('{"kind": "epoch", "epoch": 0}\n')
    write_manifest(saved, ("config.json", "metrics.jsonl", "result.json", "model.pt"))
    load_run(saved)
    content = bytearray((saved / file).read_bytes())
    content[len(content) // 2] ^= 1
    (saved / file).write_bytes(content)
    with pytest.raises(SourceError, match=rf"{file}.*damaged"):
        load_run(saved)
    if file != "model.pt":  # without it a run is one that is not finished
        (saved / file).unlink()
        with pytest.raises(SourceError, match=rf"{file} is missing"):
            load_run(saved)


@pytest.mark.parametrize("change", [{"batch_key": None}, {"batch_categories": ["d1"]}, {"batch_categories": []}])
def test_a_model_that_names_another_number_of_batches_than_it_has_is_refused(saved: Path, change: dict):
    content = torch.load(saved / "model.pt", weights_only=True)
    torch.save({**content, **change}, saved / "model.pt")
    with pytest.raises(
        SourceError, match=r"model\.pt:? .*damaged.*(2 batches, but it names 1|does not name their column)"
    ):
        load_run(saved)
