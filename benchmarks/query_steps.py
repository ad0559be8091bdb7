"""What benchmarks/queries.py measures, each in a process of its own: one function a question.

A step gets the store and the sizes of the questions, and returns its figures: `seconds` of the question alone (the best
of a few where it is short), and what shows that the answer is right. To add a question, write a function and list it in
STEPS; if a user of AnnData in memory can ask it too, time that under the same name in `measure_anndata`.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

TYPE, LEAST_GENES = "type_03", 2_000
WHERE = f"cell_type == '{TYPE}' and n_genes > {LEAST_GENES}"


@dataclass(frozen=True)
class Sizes:
    """How much is asked.

    names  cells found by name; rows  scattered cells; genes  genes decoded for them
    """

    names: int = 1_000
    rows: int = 100_000
    genes: int = 50


def best_of(function: Callable[[], object], n: int = 3) -> float:
    """The least seconds of n calls."""
    times = []
    for _ in range(n):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return min(times)


def draw_rows(n_cells: int, n: int) -> np.ndarray:
    """Ascending indices of n cells at random."""
    return np.sort(np.random.default_rng(1).choice(n_cells, min(n, n_cells), replace=False))


def measure_open(path: Path, sizes: Sizes) -> dict:
    """Open the store."""
    from atlasvi.engine.minified.minified_store import MinifiedStore

    started = time.perf_counter()
    store = MinifiedStore(path)
    return {"seconds": time.perf_counter() - started, "cells": store.n_cells}


def measure_count(path: Path, sizes: Sizes) -> dict:
    """Count the cells that meet an expression over two columns."""
    from atlasvi.engine.minified.minified_store import MinifiedStore
    from atlasvi.engine.queries.cell_choice import count_cells

    store = MinifiedStore(path)
    return {"seconds": best_of(lambda: count_cells(store, where=WHERE)), "cells": count_cells(store, where=WHERE)}


def measure_names(path: Path, sizes: Sizes) -> dict:
    """Find cells by name."""
    from atlasvi.engine.minified.minified_store import MinifiedStore
    from atlasvi.engine.queries.cell_choice import choose_cells

    store = MinifiedStore(path)
    rows = draw_rows(store.n_cells, sizes.names)
    names = list(store.take_names(rows))
    found = choose_cells(store, names)
    one = best_of(lambda: choose_cells(store, names[:1]))
    seconds = best_of(lambda: choose_cells(store, names))
    return {"seconds": seconds, "one_name_s": one, "right": bool(np.array_equal(found, rows))}


def measure_sample(path: Path, sizes: Sizes) -> dict:
    """Choose cells at random, of all and of those of a type."""
    from atlasvi.engine.minified.minified_store import MinifiedStore
    from atlasvi.engine.queries.cell_choice import choose_cells

    store = MinifiedStore(path)
    of_type = best_of(lambda: choose_cells(store, where=f"cell_type={TYPE}", sample=sizes.rows))
    return {"seconds": best_of(lambda: choose_cells(store, sample=sizes.rows)), "of_a_type_s": of_type}


def measure_rows(path: Path, sizes: Sizes) -> dict:
    """Read the latents of scattered cells, and their type."""
    from atlasvi.engine.minified.minified_store import MinifiedStore

    store = MinifiedStore(path)
    rows = draw_rows(store.n_cells, sizes.rows)
    few = rows[:: max(len(rows) // 1_000, 1)]
    seconds = best_of(lambda: (store.take_latent(rows), store.take_column("cell_type", rows)))
    return {"seconds": seconds, "a_thousand_s": best_of(lambda: store.take_latent(few))}


def measure_pass(path: Path, sizes: Sizes) -> dict:
    """Read the latents of all cells, slice by slice."""
    from atlasvi.engine.minified.minified_store import MinifiedStore

    store, step = MinifiedStore(path), 2**16

    def read() -> None:
        for start in range(0, store.n_cells, step):
            store.read_latent(start, min(start + step, store.n_cells))

    seconds = best_of(read, 2)
    return {"seconds": seconds, "cells_per_s": store.n_cells / seconds}


def measure_expression(path: Path, sizes: Sizes) -> dict:
    """Decode some genes of scattered cells; the decoder's own speed is measured in turn with it."""
    return _measure_decoding(path, sizes, scattered=True)


def measure_type(path: Path, sizes: Sizes) -> dict:
    """Decode some genes of the first cells of a common type, a quarter of the cells."""
    return _measure_decoding(path, sizes, scattered=False)


def _measure_decoding(path: Path, sizes: Sizes, scattered: bool) -> dict:
    """The question, and the decoder alone: the proportions of all genes (its softmax needs them) of latents in memory,
    minibatch by minibatch, and of these the same genes. `share` is how much of the decoder's speed the question has;
    `reading_s` what it reads takes by itself.
    """
    import torch

    from atlasvi.engine.minified.kept_posterior import LIBRARY
    from atlasvi.engine.minified.minified_store import MinifiedStore
    from atlasvi.engine.queries.cell_choice import choose_cells
    from atlasvi.engine.queries.minified_queries import read_expression

    store = MinifiedStore(path)
    if scattered:
        rows = draw_rows(store.n_cells, sizes.rows)
    else:
        rows = choose_cells(store, where="cell_type=type_00", limit=sizes.rows)
    run = store.run
    columns = np.linspace(0, len(run.genes) - 1, sizes.genes).astype(int)
    genes, places = [run.genes[k] for k in columns], torch.from_numpy(columns)
    latents = torch.from_numpy(store.take_latent(rows)[0])
    batches = torch.from_numpy(store.take_column("batch", rows).cat.codes.to_numpy(np.int64))

    asked, decoded = (np.empty((len(rows), len(genes)), np.float32) for _ in range(2))

    def ask() -> None:
        at = 0
        for names, values in read_expression(store, genes, rows):
            asked[at : at + len(names)] = values
            at += len(names)

    def decode() -> None:
        with torch.inference_mode():
            for at in range(0, len(rows), 1024):
                part = slice(at, at + 1024)
                found = run.model.proportions(latents[part], {"batch": batches[part]})
                decoded[part] = found.index_select(-1, places).numpy()

    def read() -> None:
        store.take_mean(rows)
        store.take_names(rows)
        for column in ("batch", LIBRARY):
            store.take_column(column, rows)

    times = np.array([[best_of(each, 1) for each in (ask, decode, read)] for _ in range(4)])
    asked_s, decoder_s, reading_s = times.min(0).tolist()
    right = bool(np.allclose(asked, decoded, rtol=1e-5))
    figures = {"decoder_s": decoder_s, "reading_s": reading_s, "share": decoder_s / asked_s, "right": right}
    return {"seconds": asked_s, **figures}


def measure_markers(path: Path, sizes: Sizes) -> dict:
    """The marker genes of each type, compared with all other cells."""
    from atlasvi.engine import OpenedQuestion, markers

    opened = OpenedQuestion(path)
    started = time.perf_counter()
    found = markers(opened, "cell_type")
    seconds, n_types = time.perf_counter() - started, found["group1"].nunique()
    return {"seconds": seconds, "types": n_types, "right": len(found) == n_types * len(opened.run.genes)}


def measure_anndata(path: Path, sizes: Sizes) -> dict:
    """The same questions to the same store, as AnnData in memory."""
    import anndata

    started = time.perf_counter()
    adata = anndata.read_zarr(path)
    seconds = {"open": time.perf_counter() - started}
    rows = draw_rows(adata.n_obs, sizes.rows)
    chosen = draw_rows(adata.n_obs, sizes.names)
    names = adata.obs_names[chosen]
    generator = np.random.default_rng(0)
    # the first look-up builds an index of all names
    seconds["names"] = best_of(lambda: adata.obs_names.get_indexer(names), 1)
    seconds["count"] = best_of(lambda: len(adata.obs.query(WHERE)))
    seconds["sample"] = best_of(lambda: np.sort(generator.choice(adata.n_obs, len(rows), replace=False)))
    seconds["rows"] = best_of(
        lambda: (
            adata.obsm["scvi_latent_qzm"][rows],
            adata.obsm["scvi_latent_qzv"][rows],
            adata.obs["cell_type"].iloc[rows],
        )
    )
    return {"seconds": seconds["open"], "each_s": seconds, "count": len(adata.obs.query(WHERE))}


STEPS: dict[str, Callable[[Path, Sizes], dict]] = {
    "open": measure_open,
    "count": measure_count,
    "names": measure_names,
    "sample": measure_sample,
    "rows": measure_rows,
    "pass": measure_pass,
    "expression": measure_expression,
    "expression of a type": measure_type,
    "markers": measure_markers,
}
ANNDATA = "anndata"  # the step of the peer; its figures have the names of ours
LIMITS = {"open": 1.0, "count": 1.0, "markers": 60.0}  # seconds that are asked for
LEAST_SHARE = 0.9  # of the decoder's own speed
MOST_OPEN_MB, MOST_MB = 300, 1_500  # memory above imports: to open, and of any question
