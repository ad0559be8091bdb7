"""How faithful is a map of a sample with all other cells beside it, against a UMAP of all cells, and what does it take?

    python benchmarks/embedding.py --work DIR [--cells 100000] [--samples 10000 20000] [--kinds atlas cloud]
    python benchmarks/embedding.py --work DIR --cells 10000000 --samples 100000 --no-full     time and memory alone
    python benchmarks/embedding.py --work DIR --quick

Each map is made by `embed` in a process of its own, of a store of simulated cells (simulated_latents.py).
Trustworthiness (Venna and Kaski 2001; scikit-learn's) is of 15 neighbours among 5,000 cells at random: 1 if all that
are near in the map are near in the latent space. `kept` is the share of the 15 nearest of all cells in the latent space
that are among the 100 nearest in the map, for 1,000 cells. Then the map is drawn, by cell type and by a gene.
"""

import argparse
import json
import shutil
import sys
import time
from pathlib import Path

import numpy as np
from measured_process import read_status_mb, reset_peak
from processes import RunError, run_json

K, IN_MAP = 15, 100
TRUSTED_CELLS, KEPT_CELLS = 5_000, 1_000
MOST_LOST, MOST_MB = 0.01, 1_500  # trustworthiness below that of the UMAP of all; memory above imports


def measure_embed(path: Path, sample: int) -> dict[str, float]:
    """Time and memory of `embed`. What numba compiles is counted: a user waits for it once."""
    from atlasvi.engine.queries.embed import embed
    from atlasvi.engine.queries.umap_layout import import_umap

    import_umap()
    imports_mb, start = reset_peak(), time.perf_counter()
    report = embed(path, sample=sample, replace=True)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "mb": read_status_mb("VmHWM") - imports_mb, "sample": report.n_sample}


def measure_plots(path: Path, sample: int) -> dict[str, float]:
    """Time and memory of two pictures."""
    from atlasvi.engine.plots.embedding_plot import plot_embedding

    imports_mb, figures = reset_peak(), dict[str, float]()
    for name, options in (("type", {"by": ["cell_type"]}), ("gene", {"genes": ["gene_00001"]})):
        start = time.perf_counter()
        plot_embedding(path, path.with_name(f"{path.name}-{name}.png"), replace=True, **options)  # type: ignore[arg-type]
        figures[f"{name}_s"] = time.perf_counter() - start
    return {**figures, "plot_mb": read_status_mb("VmHWM") - imports_mb}


def measure_faith(path: Path, sample: int) -> dict[str, float]:
    """How well the map keeps what is near."""
    from sklearn.manifold import trustworthiness

    from atlasvi.engine.minified.minified_store import MinifiedStore
    from atlasvi.engine.neighbours.exact_search import ExactSearch

    store, random = MinifiedStore(path), np.random.default_rng(0)
    means, places, every = store.take_mean(np.arange(store.n_cells)), store.read_embedding(), np.arange(store.n_cells)
    some = random.choice(store.n_cells, min(TRUSTED_CELLS, store.n_cells), replace=False)
    asked = some[:KEPT_CELLS]
    near = []
    for points, k in ((means, K), (places, IN_MAP)):
        search = ExactSearch(points[asked], min(k, store.n_cells - 1), asked)
        search.add(points, every)
        near.append(search.finish()[1])
    kept = [len(np.intersect1d(*pair)) / len(pair[0]) for pair in zip(*near)]
    return {
        "trustworthiness": float(trustworthiness(means[some], places[some], n_neighbors=K)),
        "kept": float(np.mean(kept)),
    }


STEPS = {"embed": measure_embed, "plots": measure_plots, "faith": measure_faith}


def write_store(path: Path, kind: str, n_cells: int, n_genes: int) -> None:
    """A minified store of simulated cells."""
    from query_store import PART_CELLS, make_store
    from simulated_latents import SimulatedLatents

    source = SimulatedLatents(kind, n_cells, 20)  # type: ignore[arg-type]
    make_store(path, n_cells, n_genes, draw=lambda part, seed: source.draw(PART_CELLS, (seed, part)))


def main() -> int:
    """Measure, print the table, return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="a folder with 200 bytes of space for each cell")
    parser.add_argument("--cells", type=int, default=100_000)
    parser.add_argument("--genes", type=int, default=2_000)
    parser.add_argument("--samples", type=int, nargs="+", default=[10_000, 20_000])
    parser.add_argument("--kinds", nargs="+", default=["atlas", "cloud"])
    parser.add_argument("--full", action=argparse.BooleanOptionalAction, default=True, help="a UMAP of all cells too")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="1,500 cells, to see that it runs")
    parser.add_argument("--step", choices=list(STEPS), help=argparse.SUPPRESS)
    parser.add_argument("--sample", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        print(json.dumps(STEPS[options.step](options.work, options.sample)))
        return 0
    if options.quick:
        options.cells, options.genes, options.samples, options.kinds = 1_500, 50, [500], ["atlas"]
    rows = []
    for kind in options.kinds:
        path = options.work / f"{kind}-{options.cells}"
        options.work.mkdir(parents=True, exist_ok=True)
        write_store(path, kind, options.cells, options.genes)
        for sample in [*options.samples, *[options.cells] * options.full]:
            row = {"kind": kind, "cells": options.cells, "full": sample >= options.cells}
            for step in ("embed", *["faith"] * options.full, "plots"):
                command = [sys.executable, __file__, "--work", path, "--step", step, "--sample", sample]
                try:
                    row |= run_json([str(part) for part in command], warm=options.quick)
                except RunError as error:
                    raise SystemExit(f"{step}: {error}") from None
            rows.append(row)
            print(row, file=sys.stderr, flush=True)
        shutil.rmtree(path)
    print("| cells | number | of UMAP | embed s | MB | trustworthiness | kept | drawn by type s | by gene s | MB |")
    print("| --- " * 10 + "|")
    for row in rows:
        figures = [row["kind"], f"{row['cells']:,}", f"{row['sample']:,}", f"{row['seconds']:.0f}", f"{row['mb']:,.0f}"]
        figures += [f"{row[name]:.3f}" if name in row else "" for name in ("trustworthiness", "kept")]
        figures += [f"{row['type_s']:.1f}", f"{row['gene_s']:.1f}", f"{row['plot_mb']:,.0f}"]
        print(f"| {' | '.join(figures)} |")
    if options.json:
        options.json.write_text(json.dumps({"rows": rows}, indent=2) + "\n")
    failed = [row for row in rows if row["mb"] > MOST_MB and not row["full"]]
    for kind in options.kinds if options.full else ():
        of_kind = [row for row in rows if row["kind"] == kind]
        failed += [row for row in of_kind if row["trustworthiness"] < of_kind[-1]["trustworthiness"] - MOST_LOST]
    for row in failed:
        print(f"missed: {row}", file=sys.stderr)
    return 1 if failed and not options.quick else 0


if __name__ == "__main__":
    sys.exit(main())
