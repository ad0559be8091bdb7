import json
import os
import shutil
from pathlib import Path

import anndata
import numpy as np
import pytest

from atlasvi.engine.api.scvi import SCVI
from atlasvi.engine.card.model_card import ModelCard
from atlasvi.engine.cli.checking import check
from atlasvi.engine.hub.hub_folder import HubData, spread_rows, write_hub_folder
from atlasvi.engine.minified.minified_store import MinifiedStore
from atlasvi.engine.scvi_tools.model_directories import load_scvi_tools
from atlasvi.engine.torch_files import read_torch_file
from atlasvi.loaders.errors import OutputError, SourceError
from atlasvi.loaders.manifest import hash_file, read_manifest
from tests.engine.card.cards import make_card
from tests.engine.hub.hub_folders import FILES, make_minified, write_pages
from tests.engine.scvi_tools.test_model_directories import MODELS


def test_a_hub_folder_holds_the_files_that_scvi_tools_reads_in_its_own_form(made: Path):
    hub = made
    assert sorted(os.listdir(hub)) == sorted([*FILES, "atlasvi.json"])
    metadata = json.loads((hub / "_scvi_required_metadata.json").read_text())
    assert list(metadata) == [
        "scvi_version",
        "anndata_version",
        "model_cls_name",
        "training_data_url",
        "model_parent_module",
    ]
    assert (metadata["model_cls_name"], metadata["model_parent_module"]) == ("SCVI", "scvi.model")
    attributes = read_torch_file(hub / "model.pt")["attr_dict"]
    assert attributes["registry_"]["scvi_version"] == metadata["scvi_version"]
    # scvi-tools opens minified data by these fields of the registry
    assert {"latent_qzm", "latent_qzv", "observed_lib_size", "minify_type"} <= set(
        attributes["registry_"]["field_registries"]
    )
    store = MinifiedStore(made.parent / "cells.mini")
    adata = anndata.read_h5ad(hub / "adata.h5ad")
    assert adata.uns["_scvi_adata_minify_type"] == "latent_posterior_parameters"
    assert adata.X.nnz == 0
    assert adata.shape == (store.n_cells, len(store.genes))
    text = (hub / "README.md").read_text()
    assert f"holds all {store.n_cells} cells, minified" in text
    card = ModelCard.from_json((hub / "metrics.json").read_text())
    assert card.to_json() == make_card().to_json()
    for name, latent in zip(("scvi_latent_qzm", "scvi_latent_qzv"), store.read_latent(0, store.n_cells)):
        assert np.array_equal(adata.obsm[name], latent)


def test_every_file_is_listed_with_its_checksum_and_is_checked(made: Path):
    listed = read_manifest(made, "atlasvi.json")
    assert listed == {name: hash_file(made / name) for name in sorted(FILES)}
    assert any("nothing is damaged" in line for line in check(made))


def test_the_folder_opens_as_a_model_with_its_cells(made: Path):
    model = SCVI.load(made, accelerator="cpu")
    store = MinifiedStore(made.parent / "cells.mini")
    assert np.array_equal(model.get_latent_representation(), store.read_latent(0, store.n_cells)[0])


def test_texts_that_are_edited_by_hand_do_not_stop_the_model(made: Path, tmp_path: Path):
    hub = shutil.copytree(made, tmp_path / "hub")
    text = (hub / "README.md").read_text()
    (hub / "README.md").write_text(text.replace("# A model", "# B model"))
    (hub / "card.html").unlink()
    assert SCVI.load(hub, accelerator="cpu").adata is not None
    content = bytearray((hub / "adata.h5ad").read_bytes())
    content[len(content) // 2] ^= 1
    (hub / "adata.h5ad").write_bytes(content)
    with pytest.raises(SourceError, match=r"adata\.h5ad is damaged"):
        SCVI.load(hub, accelerator="cpu")


def test_cells_that_would_not_fit_are_sampled_and_that_is_said(made: Path, tmp_path: Path):
    store, said = MinifiedStore(made.parent / "cells.mini"), list[HubData]()
    url = "https://example.org/atlas.h5ad"
    whole = (made / "adata.h5ad").stat().st_size
    held = write_hub_folder(
        tmp_path / "hub",
        store,
        lambda folder, data: said.append(data) or write_pages(folder, data),
        data_url=url,
        largest_bytes=whole - 2000,
    )
    assert said == [held]
    assert held.is_sample
    assert 0 < held.n_cells < held.n_cells_total == store.n_cells
    sample = anndata.read_h5ad(tmp_path / "hub" / "adata.h5ad")
    assert sample.n_obs == held.n_cells
    assert sample.uns["atlasvi_sample"]["n_cells_total"] == store.n_cells
    assert json.loads((tmp_path / "hub" / "_scvi_required_metadata.json").read_text())["training_data_url"] == url
    text = (tmp_path / "hub" / "README.md").read_text()
    assert f"{held.n_cells:,} of {store.n_cells:,} cells" in text
    assert url in text
    rows = store.read_names().get_indexer(sample.obs_names)
    assert np.array_equal(sample.obsm["scvi_latent_qzm"], store.read_latent(0, store.n_cells)[0][rows])
    assert sample.obs["donor"].tolist() == store.read_column("donor").iloc[rows].tolist()


def test_a_sample_is_evenly_spread_and_each_cell_is_in_it_once():
    rows = spread_rows(1000, 300)
    assert len(np.unique(rows)) == 300
    assert np.array_equal(rows, np.sort(rows))
    assert np.array_equal(np.bincount(rows // 100), np.full(10, 30))
    assert spread_rows(5, 9).tolist() == [0, 1, 2, 3, 4]


def test_a_model_of_scvi_tools_cannot_open_minified_data_of_a_latent_library_so_there_is_none(tmp_path: Path):
    held = write_hub_folder(tmp_path / "hub", make_minified(tmp_path, "latent"), write_pages)
    assert held.n_cells == 0
    assert not (tmp_path / "hub" / "adata.h5ad").exists()
    assert "infers library sizes" in (tmp_path / "hub" / "README.md").read_text()


def test_nothing_is_left_of_a_folder_that_could_not_be_written(made: Path, tmp_path: Path):
    def fail(folder: Path, held: HubData) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match=r"hub: the disk is full"):
        write_hub_folder(tmp_path / "hub", made.parent / "cells.mini", fail)
    with pytest.raises(OutputError, match="is not an address"):
        write_hub_folder(tmp_path / "hub", made.parent / "cells.mini", write_pages, data_url="my data")
    other = load_scvi_tools(MODELS / "plain")
    other.genes[0] = "another"
    with pytest.raises(SourceError, match="whose gene 'another' is missing: name the model"):
        write_hub_folder(tmp_path / "hub", made.parent / "cells.mini", write_pages, run=other)
    assert os.listdir(tmp_path) == []
    with pytest.raises(OutputError, match="exists already"):
        write_hub_folder(made, made.parent / "cells.mini", write_pages)
