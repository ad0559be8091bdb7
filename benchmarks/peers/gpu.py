"""What does scvi-tools reach on the same card: cells/s in memory, compiled and not; held-out loss on real counts?

    python benchmarks/peers/gpu.py --out DIR [--genes 20000] [--counts onek1k.h5ad --batch-key indiv] [--quick]

scvi-tools trains with the model card's settings on counts in memory; ours is trained beside it on the real counts, on
the same cells (every fifth row held out), 40 epochs each. Where scvi-tools is not installed this says so and ends.
Writes peers.json, after each figure anew, into DIR.
"""

import argparse
import json
import logging
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import anndata
import numpy as np
import torch

from atlasvi.engine import train

sys.path.append(str(Path(__file__).resolve().parents[1]))  # both sides are measured on the same counts
from gpu_inputs import choose_device, describe_machine, draw_adata

CARD = {
    "n_hidden": 128, "n_latent": 20, "n_layers": 3, "dropout_rate": 0.05, "dispersion": "gene", "gene_likelihood": "nb",
    "use_batch_norm": "none", "use_layer_norm": "both", "encode_covariates": True,
}  # fmt: skip


def main() -> None:
    """Measure and write; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--genes", type=int, default=20_000)
    parser.add_argument("--cells", type=int, default=32_768)
    parser.add_argument("--counts", type=Path, help="real counts for the held-out loss")
    parser.add_argument("--batch-key", default="indiv")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--quick", action="store_true", help="everything small; without a GPU too")
    options = parser.parse_args()
    if options.quick:
        options.genes, options.cells, options.epochs = 200, 512, 1
    device = choose_device(options.quick)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    found: dict = {"machine": describe_machine(device), "figures": {}}
    for name, value in measure(options, device):
        found["figures"][name] = value
        (options.out / "peers.json").write_text(json.dumps(found, indent=1) + "\n")
        print(f"{name}: {value}", file=sys.stderr, flush=True)


def measure(options: argparse.Namespace, device: torch.device) -> Iterator[tuple[str, float | str]]:
    """Name and value of each figure."""
    try:
        import scvi
    except ImportError as error:
        scvi = None
        yield "scvi-tools", f"not installed here ({error})"
    if options.counts is not None:
        yield from compare_losses(options, device, scvi)
    if scvi is None:
        return
    yield "scvi-tools", scvi.__version__
    scvi.settings.verbosity = logging.ERROR
    adata = draw_adata(options.cells, options.genes, seed=4)
    scvi.model.SCVI.setup_anndata(adata, batch_key="batch")
    for compiled in (False, True) if device.type == "cuda" else (False,):
        for size in (128, 1_024, 4_096):
            model = scvi.model.SCVI(adata, **CARD)
            plan = {"plan_kwargs": {"compile": True}} if compiled else {}
            try:
                seconds = []
                for epochs in (1, 1, 4):  # the first warms up; each call compiles anew, which the difference leaves out
                    began = time.perf_counter()
                    fit(model, epochs, size, device, **plan)
                    seconds.append(time.perf_counter() - began)
                rate = 3 * adata.n_obs / (seconds[2] - seconds[1])
                yield f"scvi-tools{', compiled' if compiled else ''}, {size:,} cells: cells/s", rate
            except Exception as error:
                yield f"scvi-tools{', compiled' if compiled else ''}, {size:,} cells", f"failed: {str(error)[:200]}"


def fit(model, epochs: int, size: int, device: torch.device, **more) -> None:
    """Train a model of scvi-tools without anything beside."""
    model.train(
        max_epochs=epochs, batch_size=size, accelerator="gpu" if device.type == "cuda" else "cpu",
        enable_progress_bar=False, enable_model_summary=False, logger=False, **{"train_size": 1.0, **more},
    )  # fmt: skip


def compare_losses(options: argparse.Namespace, device: torch.device, scvi) -> Iterator[tuple[str, float]]:
    """Held-out reconstruction loss of both, on the same cells; and their cells/s."""
    adata = anndata.read_h5ad(options.counts)
    held_out = np.arange(adata.n_obs) % 5 == 0
    adata.obs["split"] = np.where(held_out, "validation", "train")
    copy = options.out / "held_out.h5ad"
    adata.write_h5ad(copy)
    run = train(
        copy, options.out / "held_out_run", batch_key=options.batch_key, split_column="split", epochs=options.epochs,
        batch_size=128, seed=0, device=device.type, settings={"kl_warmup_epochs": options.epochs, "keep": "last"},
    )  # fmt: skip
    name = options.counts.stem
    yield f"{name}: held-out reconstruction loss", run.result["validation"]["reconstruction_loss"]
    yield f"{name}: cells/s", run.result["cells_per_s"]
    copy.unlink()
    if scvi is None:
        return
    scvi.settings.seed = 0
    trained = adata[~held_out].copy()
    scvi.model.SCVI.setup_anndata(trained, batch_key=options.batch_key)
    model = scvi.model.SCVI(trained, **CARD)
    began = time.perf_counter()
    fit(model, options.epochs, 128, device, plan_kwargs={"n_epochs_kl_warmup": options.epochs})
    seconds = time.perf_counter() - began
    rest = adata[held_out].copy()
    loss = model.get_reconstruction_error(rest)
    loss = loss["reconstruction_loss"] if isinstance(loss, dict) else loss
    yield f"{name}, scvi-tools: held-out reconstruction loss", abs(float(loss))
    yield f"{name}, scvi-tools: cells/s", options.epochs * trained.n_obs / seconds


if __name__ == "__main__":
    main()
