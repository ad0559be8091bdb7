"""Models saved, saved over and loaded: what is there afterwards, whatever happens meanwhile."""

import os
import shutil
import warnings
from pathlib import Path

import anndata
import h5py
import numpy as np
import pytest
import torch

from atlasvi.engine import SCVI
from atlasvi.loaders import outputs
from atlasvi.loaders.errors import AtlasviWarning, OutputError, SourceError
from tests.engine.api.small_models import make_adata, make_model


def test_a_model_is_not_overwritten_unless_asked(model: SCVI, tmp_path: Path):
    model.save(tmp_path / "model", prefix="a_")
    with pytest.raises(OutputError, match="exists already"):
        model.save(tmp_path / "model")
    model.save(tmp_path / "model", overwrite=True)
    assert {"a_model.pt", "model.pt"} <= {file.name for file in (tmp_path / "model").iterdir()}
    assert SCVI.load(tmp_path / "model", prefix="a_").run.genes == model.run.genes


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("obsp", lambda node: node.attrs.update({"encoding-type": ["batch"]}), r"adata.h5ad: it is damaged"),
        ("obs/batch", lambda node: node.__delitem__("codes"), r"adata.h5ad: it is damaged"),
        ("X", lambda node: node.__setitem__("data", h5py.ExternalLink("/etc/passwd", "x")), "lies in another file"),
    ],
)
def test_damage_of_the_data_that_was_saved_with_a_model_is_said_in_a_sentence(
    adata: anndata.AnnData, tmp_path: Path, name: str, change, said: str
):
    make_model(adata).save(tmp_path / "model", save_anndata=True)
    with h5py.File(tmp_path / "model/adata.h5ad", "r+") as file:
        if name == "X":
            del file["X/data"]
        change(file[name])
    (tmp_path / "model/atlasvi.json").unlink()  # its checksums, as a model saved by scvi-tools has none
    with pytest.raises(SourceError, match=said):
        SCVI.load(tmp_path / "model")


def read_weight(model: SCVI) -> torch.Tensor:
    return next(iter(model.run.model.state_dict().values()))


def test_a_process_killed_while_it_replaces_a_model_leaves_one_that_is_loaded_and_saved_again(
    adata: anndata.AnnData, model: SCVI, tmp_path: Path, monkeypatch
):
    make_model(adata, epochs=1).save(tmp_path / "old", save_anndata=True)
    rename, names = os.rename, ["model.pt", "atlasvi.pt", "adata.h5ad", "atlasvi.json"]

    for kill_at in range(len(names)):
        folder, renamed = tmp_path / str(kill_at), list[str]()
        shutil.copytree(tmp_path / "old", folder)

        def kill(made: Path, out: Path, folder=folder, renamed=renamed, kill_at=kill_at) -> None:
            if Path(out).parent == folder:
                renamed.append(Path(out).name)
            if len(renamed) > kill_at:
                raise SystemExit
            rename(made, out)

        with monkeypatch.context() as patch, pytest.raises(SystemExit):
            patch.setattr(os, "rename", kill)
            patch.setattr(outputs, "_remove", lambda path: None)  # a process that is killed tidies nothing up
            model.save(folder, overwrite=True, save_anndata=True)
        assert renamed == names[: kill_at + 1]
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            loaded = SCVI.load(folder)
        if kill_at == 0:
            assert torch.equal(read_weight(loaded), read_weight(SCVI.load(tmp_path / "old")))
            assert loaded.run.state["epoch"] == 1
        else:
            assert torch.equal(read_weight(loaded), read_weight(model))
            assert loaded.run.state is None
            assert any("was written after" in str(warning.message) for warning in said)
        model.save(folder, overwrite=True, save_anndata=True)
        assert SCVI.load(folder).run.state["epoch"] == 3


@pytest.mark.parametrize("left", [".new", "..new.unfinished"])
def test_nothing_that_lies_in_a_models_folder_keeps_it_from_being_saved_again(model: SCVI, tmp_path: Path, left: str):
    folder = tmp_path / "model"
    model.save(folder)
    (folder / left).symlink_to(tmp_path / "elsewhere")  # these names earlier versions took for what is not finished
    model.save(folder, overwrite=True)
    kept, saved = (each.run.model.state_dict() for each in (SCVI.load(folder), model))
    assert all(torch.equal(kept[name], weight) for name, weight in saved.items())


def test_a_model_is_not_saved_where_a_folder_has_the_name_of_a_file(model: SCVI, tmp_path: Path):
    (tmp_path / "model" / "model.pt").mkdir(parents=True)
    with pytest.raises(OutputError, match=r"model.pt is a folder, and a file must be written there"):
        model.save(tmp_path / "model", overwrite=True)
    assert os.listdir(tmp_path / "model") == ["model.pt"]


def test_the_data_of_another_model_is_not_left_beside_a_saved_one(adata: anndata.AnnData, tmp_path: Path):
    model, folder = make_model(adata, epochs=1), tmp_path / "model"
    make_model(make_adata(30), epochs=1).save(folder, save_anndata=True)
    with pytest.raises(OutputError, match=r"adata.h5ad is there, and load would take it for the data of this model"):
        model.save(folder, overwrite=True)
    model.save(folder, overwrite=True, save_anndata=True)
    model.save(folder, overwrite=True)  # what is there is its own data
    loaded = SCVI.load(folder)
    loaded.save(folder, overwrite=True)
    assert SCVI.load(folder).adata.n_obs == adata.n_obs
    loaded.adata._inplace_subset_obs(np.arange(20))
    with pytest.raises(OutputError, match="load would take it"):
        loaded.save(folder, overwrite=True)
    with pytest.raises(OutputError, match="load would take it"):
        SCVI.load(folder, adata).save(folder, overwrite=True)
    shutil.copy(folder / "adata.h5ad", tmp_path / "by-hand.h5ad")
    model.save(tmp_path / "hub")
    (tmp_path / "by-hand.h5ad").rename(tmp_path / "hub" / "adata.h5ad")
    SCVI.load(tmp_path / "hub").save(tmp_path / "hub", overwrite=True)
    assert SCVI.load(tmp_path / "hub").adata.n_obs == adata.n_obs


def test_data_that_was_saved_with_a_model_is_not_that_of_one_that_scvi_tools_saved_over_it(
    adata: anndata.AnnData, tmp_path: Path
):
    make_model(make_adata(30), epochs=1).save(tmp_path / "model", save_anndata=True)
    model = make_model(adata, epochs=1)
    model.save(tmp_path / "other", save_anndata=True)
    shutil.copy(tmp_path / "other" / "model.pt", tmp_path / "model")
    with pytest.warns(AtlasviWarning, match=r"not read: .*adata.h5ad"):
        assert SCVI.load(tmp_path / "model").adata is None
    shutil.copy(tmp_path / "other" / "adata.h5ad", tmp_path / "model")  # scvi-tools saved its data too
    with pytest.warns(AtlasviWarning, match=r"not read: atlasvi.pt"):
        assert SCVI.load(tmp_path / "model").adata.n_obs == adata.n_obs


def test_a_model_is_not_saved_over_a_run_or_under_a_name_elsewhere(model: SCVI, tmp_path: Path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    with pytest.raises(OutputError, match="is a run or a store, which a model can't be saved over"):
        model.save(tmp_path / "run", overwrite=True)
    with pytest.raises(OutputError, match=r"prefix '\.\./a' is a part of a path"):
        model.save(tmp_path / "model", prefix="../a")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
