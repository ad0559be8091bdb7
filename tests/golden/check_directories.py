"""Whether scvi-tools opens what we write. Two steps, each in its environment, with one folder as the argument:

write FOLDER   ours: every model of models/ again as a directory and, where it can be, its cells as minified data
open FOLDER    scvi-tools': loads each with its data, compares numbers, trains on, minifies; opens the minified data
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

MODELS = Path(__file__).with_name("models")


def write(folder: Path) -> None:
    import anndata
    import pandas as pd
    from cases import make_cells

    from atlasvi.engine.minified.minified_h5ad import write_minified_h5ad
    from atlasvi.engine.minified.minify import minify
    from atlasvi.engine.scvi_tools.model_directories import load_scvi_tools, save_scvi_tools

    cells = make_cells()
    columns = ("batch", "labels", "donor", "same", "sex", "age", "score", "factor")
    obs = pd.DataFrame({name: cells[name] for name in columns}, index=[f"c{k}" for k in range(len(cells["counts"]))])
    data = anndata.AnnData(cells["counts"], obs, pd.DataFrame(index=[f"g{k}" for k in range(30)]))
    folder.mkdir()
    data.write_h5ad(folder / "counts.h5ad")
    for model in sorted(MODELS.iterdir()):
        run = load_scvi_tools(model)
        save_scvi_tools(run, folder / model.name)
        if not run.model.settings.has_latent_library:
            minify(run, folder / "counts.h5ad", folder / f"{model.name}.mini")
            write_minified_h5ad(folder / f"{model.name}.mini", folder / f"{model.name}.h5ad")


def open_all(folder: Path) -> None:
    import anndata
    import scvi
    from make_models import compute, make_data

    for model in sorted(MODELS.iterdir()):
        with np.load(model / "expected.npz") as file:
            expected = dict(file)
        place, data = str(folder / model.name), make_data()
        loaded = scvi.model.SCVI.load(place, data, accelerator="cpu")
        for name, values in compute(loaded, data).items():
            np.testing.assert_allclose(values, expected[name], rtol=1e-4, atol=1e-5, err_msg=f"{model.name} {name}")
        mean = loaded.get_normalized_expression(library_size=1)
        loaded.train(max_epochs=2, accelerator="cpu", batch_size=10, enable_progress_bar=False)
        loaded = scvi.model.SCVI.load(place, data, accelerator="cpu")
        if not loaded.module.use_observed_lib_size:
            print(model.name, "agrees, trains on")
            continue  # scvi-tools loads and minifies no such model without its counts
        scvi.model.SCVI.load(place, False, accelerator="cpu")
        data.obsm["X_latent_qzm"], data.obsm["X_latent_qzv"] = loaded.get_latent_representation(return_dist=True)
        loaded.minify_adata()
        with tempfile.TemporaryDirectory() as saved:
            loaded.save(saved, overwrite=True, save_anndata=True)
            loaded = scvi.model.SCVI.load(saved, accelerator="cpu")
            assert loaded.minified_data_type
        for mini in (
            anndata.read_zarr(folder / f"{model.name}.mini"),
            anndata.read_h5ad(folder / f"{model.name}.h5ad"),
        ):
            loaded = scvi.model.SCVI.load(place, mini, accelerator="cpu")
            assert loaded.minified_data_type == "latent_posterior_parameters"
            qzm, qzv = loaded.get_latent_representation(return_dist=True)
            np.testing.assert_allclose(qzm, expected["qzm"], rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(qzv, expected["qzv"], rtol=1e-4, atol=1e-5)
            assert loaded.get_normalized_expression(library_size=1).shape == mean.shape
        print(model.name, "agrees, trains on, minifies, opens our minified data")


if __name__ == "__main__":
    {"write": write, "open": open_all}[sys.argv[1]](Path(sys.argv[2]))
