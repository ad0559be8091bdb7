"""What a trial asks of an input, as a user would, and the answer as plain values that can be compared."""

import functools
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd

from atlasvi.engine import SCVI
from atlasvi.engine.cli.commands import main
from atlasvi.engine.minified.minified_store import MinifiedStore, is_minified_store
from atlasvi.engine.model.run_files import CONFIG, RESULT
from atlasvi.engine.model.trained_run import TrainedRun
from atlasvi.engine.scvi_tools.model_directories import open_model
from atlasvi.loaders.cells.open_cells import open_cells
from tests.fuzz.inputs import SMALL

Answer = dict[str, Any]
Call = Callable[[Path, Path, Path], Answer]
"""Takes the input, the folder of all undamaged inputs, and a place to write to; ends as a command does."""


def run_command(*arguments: object) -> None:
    """`atlasvi ARGUMENTS...` in this process. Raises SystemExit if it did not end well."""
    sys.argv = ["atlasvi", *map(str, arguments)]
    try:
        main()
    except SystemExit as end:
        if end.code:
            raise


def describe_cells(adata: anndata.AnnData) -> Answer:
    """Names, genes, counts and obs of an AnnData, as lists and arrays."""
    counts = adata.X if isinstance(adata.X, np.ndarray) else adata.X.toarray()
    obs = {f"obs/{name}": list_values(adata.obs[name]) for name in adata.obs}
    return {"names": list(adata.obs_names), "genes": list(adata.var_names), "counts": np.asarray(counts, float), **obs}


def list_values(column: pd.Series) -> list[Any]:
    """A column as Python's own values, None where one is missing."""
    values = column.astype(object).tolist()
    plain = [value.item() if isinstance(value, np.generic) else value for value in values]
    texts = [value.decode(errors="replace") if isinstance(value, bytes) else value for value in plain]
    return [None if value is None or value is pd.NA or value != value else value for value in texts]


def describe_store(store: Path) -> Answer:
    """A cell store in the order of its sources, as anndata reads it."""
    adata = anndata.read_zarr(store)
    order = np.lexsort([adata.obs["source_row"], adata.obs["source"].astype(str)])
    adata = adata[order].copy()
    del adata.obs["source"]  # its path, another in each trial
    return describe_cells(adata)


def describe_model(run: TrainedRun) -> Answer:
    weights = {f"weights/{name}": value.numpy(force=True) for name, value in run.model.state_dict().items()}
    return {**weights, "genes": [str(gene) for gene in run.genes], "batches": list(run.setup.batch_categories)}


def ingest(*options: object) -> Call:
    def call(place: Path, inputs: Path, out: Path) -> Answer:
        run_command("ingest", place, "--out", out, "--workers", 1, *options)
        return describe_store(out)

    return call


def ingest_table(place: Path, inputs: Path, out: Path) -> Answer:
    return ingest("--genes", "union")(place / "sources.toml", inputs, out)


def check(**options: Any) -> Call:
    """`atlasvi check`, and then what Python reads of the cells."""

    def call(place: Path, inputs: Path, out: Path) -> Answer:
        if not options:
            run_command("check", place)
        cells = open_cells(place, **options)
        counts = np.zeros((cells.n_cells, len(cells.genes)))
        for block, begin in enumerate(cells.block_starts[:-1]):
            indptr, genes, values = cells.read_block(block).to_csr()
            counts[begin + np.repeat(np.arange(len(indptr) - 1), np.diff(indptr)), genes] = values
        obs = cells.read_obs(0, cells.n_cells)
        columns = {f"obs/{name}": list_values(obs[name]) for name in obs}
        cells.close()
        return {"names": list(obs.index), "genes": [str(gene) for gene in cells.genes], "counts": counts, **columns}

    return call


def info(place: Path, inputs: Path, out: Path) -> Answer:
    """Nothing but that it ends well: what it says is said of the same file by `check` and `ingest`."""
    run_command("info", place)
    return {}


def train(*options: object) -> Call:
    def call(place: Path, inputs: Path, out: Path) -> Answer:
        sizes = [word for name, value in SMALL.items() for word in ("--set", f"{name}={value}")]
        run_command(
            "train", place, "--out", out, "--batch-key", "batch", "--epochs", 1, "--device", "cpu", *sizes, *options
        )
        return describe_run(out)

    return call


def describe_run(out: Path) -> Answer:
    result = json.loads((out / RESULT).read_text())
    return {**describe_model(open_model(out)), "losses": [result[part]["elbo"] for part in ("train", "validation")]}


def resume(place: Path, inputs: Path, out: Path) -> Answer:
    run_command("train", inputs / "store", "--out", place, "--resume")
    return describe_run(place)


def start(place: Path, inputs: Path, out: Path) -> Answer:
    run_command("train", inputs / "store", "--out", out, "--start", place, "--epochs", 1, "--device", "cpu")
    return describe_run(out)


def train_with_settings(place: Path, inputs: Path, out: Path) -> Answer:
    run_command("train", inputs / "store", "--out", out, "--batch-key", "batch", "--epochs", 1, "--config", place)
    return {**describe_run(out), "settings": json.loads((out / CONFIG).read_text())["settings"]}


def minify_cells(place: Path, inputs: Path, out: Path, run: Path | None = None) -> Answer:
    run_command("minify", run or inputs / "run", place, "--out", out, "--device", "cpu")
    return describe_latents(anndata.read_zarr(out))


def describe_latents(adata: anndata.AnnData) -> Answer:
    order = np.argsort(adata.obs_names.to_numpy(str), kind="stable")
    return {"names": list(adata.obs_names[order]), "latents": np.asarray(adata.obsm["scvi_latent_qzm"])[order]}


def minify_by(place: Path, inputs: Path, out: Path) -> Answer:
    return minify_cells(inputs / "store", inputs, out, run=place)


def export(place: Path, inputs: Path, out: Path) -> Answer:
    if is_minified_store(place):
        run_command("export", place, out.with_suffix(".h5ad"))
        return describe_latents(anndata.read_h5ad(out.with_suffix(".h5ad")))
    run_command("export", place, out)
    return describe_model(open_model(out))


def query(*question: object, model: str | None = None) -> Call:
    def call(place: Path, inputs: Path, out: Path) -> Answer:
        table = out.with_suffix(".csv")
        run_command("query", place, *(["--model", inputs / model] if model else []), *question, "--out", table)
        frame = pd.read_csv(table, index_col=0, keep_default_na=False).sort_index()  # a damaged name may be empty
        return {"names": list(frame.index), "latents" if question == ("latent",) else "values": frame.to_numpy()}

    return call


def query_info(place: Path, inputs: Path, out: Path) -> Answer:
    run_command("query", place, "info")
    return {}


def load(place: Path, inputs: Path, out: Path) -> Answer:
    """`SCVI.load` of a model with its data, of a minified store, or of a model alone; its latents where it has data."""
    model = SCVI.load(place, accelerator="cpu")
    answer = describe_model(model.run)
    if model._cells is not None:
        answer["latents"] = model.get_latent_representation()
    return answer


def check_model(place: Path, inputs: Path, out: Path) -> Answer:
    run_command("check", place)
    return describe_model(open_model(place))


def check_minified(place: Path, inputs: Path, out: Path) -> Answer:
    run_command("check", place)
    store = MinifiedStore(place)
    latents = store.read_latent(0, store.n_cells)[0]
    return {"latents": latents[np.argsort(np.asarray(store.obs.read(0, store.n_cells).index, str), kind="stable")]}


@dataclass(frozen=True)
class Format:
    """What is asked of a kind of input, and whether it is ours, so that it has checksums."""

    calls: dict[str, Call]
    ours: bool = False
    options: tuple[str, ...] = ()


PLAIN = {"ingest": ingest(), "check": check(), "info": info}
WITH_MODEL = {"train": train(), "minify": functools.partial(minify_cells)}
FORMATS: dict[str, Format] = {
    **{name: Format({**PLAIN, **WITH_MODEL}) for name in ("h5ad-csr", "h5ad-csc", "h5ad-dense", "zarr-v2", "zarr-v3")},
    "h5ad-layer": Format(
        {"ingest": ingest("--layer", "counts"), "check": check(layer="counts"), "train": train("--layer", "counts")}
    ),
    "h5ad-raw": Format(
        {"ingest": ingest("--layer", "raw"), "check": check(layer="raw"), "train": train("--layer", "raw")}
    ),
    **{name: Format(PLAIN) for name in ("10x-h5", "10x-mtx", "kb", "alevin", "parse", "h5mu", "soma")},
    "sources": Format({"ingest": ingest_table}),
    "settings": Format({"train": train_with_settings}),
    "store": Format({**PLAIN, **WITH_MODEL}, ours=True),
    "run": Format(
        {"info": info, "check": check_model, "minify": minify_by, "export": export, "start": start, "load": load},
        ours=True,
    ),
    "run-unfinished": Format({"resume": resume, "info": info}, ours=True),
    "minified": Format(
        {
            "latent": query("latent"),
            "expression": query("expression", "--library-size", "observed"),
            "query info": query_info,
            "info": info,
            "check": check_minified,
            "export": export,
            "load": load,
        },
        ours=True,
    ),
    "minified-h5ad": Format({"latent": query("latent", model="run"), "info": info}),
    "saved": Format({"load": load, "check": check_model, "info": info, "minify": minify_by, "start": start}, ours=True),
    "scvi-tools": Format({"load": load, "check": check_model, "info": info, "export": export}),
}
