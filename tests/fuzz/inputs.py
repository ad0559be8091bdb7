"""One small input of every format that atlasvi reads or writes: what the trials damage, and the files beside it."""

import gzip
import shutil
from collections.abc import Callable, Collection
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import scipy.io
import zarr
from scipy import sparse

from atlasvi.engine import SCVI
from atlasvi.engine.minified.minified_h5ad import write_minified_h5ad
from atlasvi.engine.minified.minify import minify
from atlasvi.engine.training.train import train
from atlasvi.loaders.ingestion.ingest import ingest
from atlasvi.loaders.zarr_warnings import quiet_zarr

N_CELLS, N_GENES = 48, 16
SMALL = {"n_hidden": 8, "n_latent": 3, "n_layers": 1, "batch_size": 16}
GOLDEN = Path(__file__).parents[1] / "golden"


def make_cells() -> anndata.AnnData:
    """Counts in X and in a layer, other counts in raw, and columns of every type that anndata writes."""
    rng = np.random.default_rng(0)
    counts = rng.poisson(1.0, (N_CELLS, N_GENES)).astype(np.float32)
    counts[:, 0] += 1
    cells = np.arange(N_CELLS)
    obs = pd.DataFrame(
        {
            "batch": pd.Categorical(np.array(["b1", "b2"])[cells % 2]),
            "level": pd.Categorical(cells % 3, ordered=True),
            "id": 2**60 + cells,
            "unsigned": cells.astype(np.uint64) + np.uint64(2**63),
            "score": np.where(cells == 5, np.nan, cells / 7).astype(np.float32),
            "flag": cells % 5 == 0,
            "maybe": pd.array([None if k == 3 else k for k in cells.tolist()], dtype="Int64"),
            "perhaps": pd.array([None if k == 4 else k % 2 == 0 for k in cells.tolist()], dtype="boolean"),
            "note": [f"note {k % 4}" for k in cells],
        },
        index=[f"cell{k}" for k in cells],
    )
    var = pd.DataFrame({"symbol": [f"s{k}" for k in range(N_GENES)]}, index=[f"gene{k}" for k in range(N_GENES)])
    adata = anndata.AnnData(sparse.csr_matrix(counts), obs, var, layers={"counts": sparse.csr_matrix(counts)})
    adata.raw = anndata.AnnData(sparse.csr_matrix(counts + np.eye(N_CELLS, N_GENES, dtype=np.float32)), obs, var)
    return adata


def make_plain_cells() -> anndata.AnnData:
    """The same without layers and raw."""
    adata = make_cells()
    adata.raw, adata.layers = None, {}  # type: ignore[assignment]
    return adata


def make_inputs(folder: Path, kinds: Collection[str]) -> None:
    """Write the input of each format to `folder/FORMAT`; `ours` need the h5ad files beside them."""
    folder.mkdir(parents=True)
    for made, write in WRITERS:
        if set(made) & set(kinds):
            write(folder)


def _write_h5ad(folder: Path) -> None:
    for name, change in MATRICES.items():
        adata = make_cells() if name in ("h5ad-layer", "h5ad-raw") else make_plain_cells()
        adata.X = change(adata.X)
        adata.write_h5ad(folder / name, compression="gzip" if name == "h5ad-csr" else None)


def _write_zarr(folder: Path) -> None:
    for name, version in (("zarr-v2", 2), ("zarr-v3", 3)):
        with (
            quiet_zarr(),
            anndata.settings.override(zarr_write_format=version),
            zarr.config.set({"array.write_empty_chunks": True}),
        ):
            make_plain_cells().write_zarr(folder / name, chunks=(20, 7))


def _write_mudata(folder: Path) -> None:
    with h5py.File(folder / "h5mu", "w") as file:
        file.attrs.update({"encoding-type": "MuData", "encoding-version": "0.1.0", "axis": 0})
        anndata.io.write_elem(file, "mod/rna", make_plain_cells())


def _write_tables(folder: Path) -> None:
    """A table of sources with its two files; and one of settings."""
    (folder / "sources").mkdir()
    shutil.copy(folder / "h5ad-csr", folder / "sources/a.h5ad")
    shutil.copy(folder / "h5ad-layer", folder / "sources/b.h5ad")
    (folder / "sources/sources.toml").write_text(
        '[[source]]\npath = "a.h5ad"\n\n[[source]]\npath = "b.h5ad"\nlayer = "counts"\ngene_versions = "drop"\n'
    )
    settings = {**SMALL, "learning_rate": 0.01, "gene_likelihood": '"nb"', "early_stopping": "false"}
    (folder / "settings").write_text("".join(f"{name} = {value}\n" for name, value in settings.items()))


MATRICES: dict[str, Callable[[sparse.csr_matrix], object]] = {
    "h5ad-csr": lambda matrix: matrix,
    "h5ad-csc": lambda matrix: matrix.tocsc(),
    "h5ad-dense": lambda matrix: matrix.toarray(),
    "h5ad-layer": lambda matrix: matrix.log1p(),
    "h5ad-raw": lambda matrix: matrix.log1p(),
}


def _list_counts() -> tuple[sparse.csr_matrix, list[str], list[str]]:
    adata = make_plain_cells()
    return sparse.csr_matrix(adata.X, dtype=np.int32), list(adata.obs_names), list(adata.var_names)


def _write_tenx(folder: Path) -> None:
    counts, cells, genes = _list_counts()
    with h5py.File(folder / "10x-h5", "w") as file:
        matrix = file.create_group("matrix")
        for name, values in (("data", counts.data), ("indices", counts.indices), ("indptr", counts.indptr)):
            matrix[name] = values
        matrix["shape"], matrix["barcodes"] = np.array(counts.shape[::-1]), np.array(cells, "S")
        for name, texts in (("id", genes), ("name", genes), ("feature_type", ["Gene Expression"] * N_GENES)):
            matrix[f"features/{name}"] = np.array(texts, "S")
        matrix["features/genome"] = np.array(["GRCh38"] * N_GENES, "S")


def _write_folders(folder: Path) -> None:
    """Folders of text, as 10x and other tools name and turn them."""
    counts, cells, genes = _list_counts()
    features = [f"{gene}\t{gene}\tGene Expression" for gene in genes]
    for name, rows, files in (
        ("10x-mtx", counts.T, {"matrix.mtx.gz": [], "features.tsv.gz": features, "barcodes.tsv.gz": cells}),
        (
            "kb",
            counts,
            {"cells_x_genes.mtx": [], "cells_x_genes.genes.txt": genes, "cells_x_genes.barcodes.txt": cells},
        ),
        ("alevin", counts, {"quants_mat.mtx": [], "quants_mat_cols.txt": genes, "quants_mat_rows.txt": cells}),
        (
            "parse",
            counts,
            {
                "count_matrix.mtx": [],
                "all_genes.csv": ["gene_id,gene_name,genome", *(f"{gene},{gene},hg38" for gene in genes)],
                "cell_metadata.csv": ["bc_wells,sample", *(f"{cell},s1" for cell in cells)],
            },
        ),
    ):
        (folder / name).mkdir()
        for file_name, texts in files.items():
            path = folder / name / file_name
            with gzip.open(path, "wb") if path.suffix == ".gz" else open(path, "wb") as written:
                if texts:
                    written.write("".join(f"{text}\n" for text in texts).encode())
                else:
                    scipy.io.mmwrite(written, rows.tocoo(), field="integer")


def _write_soma(folder: Path) -> None:
    try:
        import tiledbsoma.io
    except ImportError:
        return
    adata = make_plain_cells()
    adata.obs = adata.obs[["batch", "id", "score", "flag", "note"]]
    tiledbsoma.io.from_anndata(str(folder / "soma"), adata, measurement_name="RNA")


def _write_ours(folder: Path) -> None:
    """Store, runs, minified stores and saved models; a run that stopped after its first epoch."""
    ingest(folder / "h5ad-csr", folder / "store", workers=1)
    train(folder / "store", folder / "run", batch_key="batch", epochs=2, device="cpu", settings=SMALL)
    shutil.copytree(folder / "run", folder / "run-unfinished")
    for name in ("model.pt", "result.json", "manifest.json"):
        (folder / "run-unfinished" / name).unlink()
    max((folder / "run-unfinished/checkpoints").iterdir()).unlink()
    minify(folder / "run", folder / "store", folder / "minified", device="cpu")
    write_minified_h5ad(folder / "minified", folder / "minified-h5ad")
    adata = make_cells()
    SCVI.setup_anndata(adata, batch_key="batch", categorical_covariate_keys=["level"])
    model = SCVI(adata, n_hidden=8, n_latent=3)
    model.train(max_epochs=1, accelerator="cpu")
    model.save(folder / "saved", save_anndata=True)
    shutil.copytree(GOLDEN / "models/latent", folder / "scvi-tools", ignore=shutil.ignore_patterns("expected.npz"))


OURS = ("store", "run", "run-unfinished", "minified", "minified-h5ad", "saved", "scvi-tools")
WRITERS: tuple[tuple[Collection[str], Callable[[Path], None]], ...] = (
    (MATRICES, _write_h5ad),
    (("zarr-v2", "zarr-v3"), _write_zarr),
    (("10x-h5",), _write_tenx),
    (("10x-mtx", "kb", "alevin", "parse"), _write_folders),
    (("h5mu",), _write_mudata),
    (("soma",), _write_soma),
    (("sources", "settings"), _write_tables),
    (OURS, _write_ours),
)
