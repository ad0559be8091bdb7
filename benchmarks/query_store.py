"""A minified store of simulated cells without counts, of any size, for benchmarks/queries.py; written out of core.

Latents are a mixture: each cell type has a mean, and each batch a small shift of it. The store is written by the code
that minify uses. Its model has drawn weights: how fast a question is answered does not depend on how good they are.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from atlasvi.engine.minified.minified_store import LIBRARY, create_minified, finish_minified, write_cells
from atlasvi.engine.model.covariates import Setup
from atlasvi.engine.model.trained_run import TrainedRun
from atlasvi.engine.model.vae import VAE, ModelSettings
from atlasvi.loaders.manifest import hash_files
from atlasvi.loaders.sources.data_spec import DataSpec
from atlasvi.loaders.tables.records import obs_to_record

N_TYPES, N_BATCHES, N_DONORS, N_LATENT = 30, 20, 200, 20
PART_CELLS = 2**16
BASES = np.array(list("ACGT"))


def make_store(
    path: Path,
    n_cells: int,
    n_genes: int,
    seed: int = 0,
    latents: str = "float32",
    draw: Callable[[int, int], tuple[np.ndarray, np.ndarray]] | None = None,
) -> None:
    """Write the store to a new folder at `path`.

    draw  (part, seed) -> its qzm and qzv; None: `draw_latents`
    """
    draw = draw or draw_latents
    settings = ModelSettings(n_genes=n_genes, n_batches=N_BATCHES, n_latent=N_LATENT)
    genes = [f"gene_{k:05d}" for k in range(n_genes)]
    setup = Setup.from_saved({"batch_key": "batch", "batch_categories": [f"batch_{k:02d}" for k in range(N_BATCHES)]})
    run = TrainedRun(VAE(settings, torch.Generator().manual_seed(seed)).eval(), genes, setup)
    weights = {name: tensor.numpy() for name, tensor in run.model.state_dict().items()}
    first = make_obs(0, seed)
    dtypes = {name: dtype for name, dtype in first.dtypes.items() if name != LIBRARY}
    create_minified(
        path, n_cells, N_LATENT, pd.DataFrame(index=genes), dtypes, weights, PART_CELLS, None, latents  # type: ignore[arg-type]
    )  # fmt: skip
    written = hash_files(path)
    for start in range(0, n_cells, PART_CELLS):
        n = min(PART_CELLS, n_cells - start)
        qzm, qzv = draw(start // PART_CELLS, seed)
        record = {"qzm": qzm[:n], "qzv": qzv[:n], **obs_to_record(make_obs(start // PART_CELLS, seed)[:n])}
        written |= write_cells(path, start, record)
        print(f"{start + n:,} of {n_cells:,} cells written", file=sys.stderr, end="\r", flush=True)
    print(file=sys.stderr)
    model = {
        "model": run.model_settings,
        "setup": setup.to_saved(),
        "order": "as trained",
        "data": DataSpec("none, simulated").to_record(),
    }
    finish_minified(path, n_cells, n_genes, N_LATENT, model, written)


def draw_groups(part: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Cell type and donor of each cell of a part; types differ in size, and donor d is in batch d % N_BATCHES."""
    generator = np.random.default_rng([seed, part, 0])
    sizes = 1.0 / np.arange(1, N_TYPES + 1)
    types = generator.choice(N_TYPES, PART_CELLS, p=sizes / sizes.sum())
    return types, generator.integers(N_DONORS, size=PART_CELLS)


def draw_latents(part: int, seed: int, first: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """qzm and qzv float32 [PART_CELLS, N_LATENT] of the cells of a part.

    first  0 for the cells of the store; another number gives other cells of the same types and donors
    """
    shared = np.random.default_rng([seed, 2**32 - 1])
    of_types = shared.normal(size=(N_TYPES, N_LATENT)).astype(np.float32) * 1.5
    of_batches = shared.normal(size=(N_BATCHES, N_LATENT)).astype(np.float32) * 0.2
    types, donors = draw_groups(part, seed)
    generator = np.random.default_rng([seed, part, 1, first])
    spread = generator.standard_normal((PART_CELLS, N_LATENT), np.float32) * np.float32(0.6)
    qzv = np.exp(generator.standard_normal((PART_CELLS, N_LATENT), np.float32) * np.float32(0.3) - np.float32(3))
    return of_types[types] + of_batches[donors % N_BATCHES] + spread, qzv


def make_obs(part: int, seed: int) -> pd.DataFrame:
    """obs of the cells of a part, as large as that of an atlas: a barcode, type, donor, batch and two numbers."""
    types, donors = draw_groups(part, seed)
    generator = np.random.default_rng([seed, part, 2])
    barcodes = BASES[generator.integers(4, size=(PART_CELLS, 16))].view("U16")[:, 0].astype(object)
    library = np.exp(generator.normal(8.5, 0.5, PART_CELLS)).astype(np.float32).round()
    names = {
        "cell_type": (types, [f"type_{k:02d}" for k in range(N_TYPES)]),
        "donor": (donors, [f"donor_{k:03d}" for k in range(N_DONORS)]),
        "batch": (donors % N_BATCHES, [f"batch_{k:02d}" for k in range(N_BATCHES)]),
    }
    obs: dict = {name: pd.Categorical.from_codes(codes, categories) for name, (codes, categories) in names.items()}
    obs["n_genes"] = (library**0.9).astype(np.int32)
    obs[LIBRARY] = library
    return pd.DataFrame(
        obs, index=pd.Index(barcodes + "-" + (part * PART_CELLS + np.arange(PART_CELLS)).astype(str).astype(object))
    )
