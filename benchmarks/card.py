"""Does the card say what scvi-tools' criticism report says, from the same weights; and how fast, in how much memory?

    python benchmarks/card.py --peers VENV MODEL_DIR H5AD LABELS_KEY [--seeds 5] [--json FILE]
    python benchmarks/card.py --quick [--json FILE]                a small model of simulated cells, without the peer

Both compute their figures for several seeds. For each figure of the report: our mean and spread over seeds beside
theirs. Exits with 1 if our mean is outside the spread of their seeds by more than both standard deviations allow (three
of the larger one), which seeds alone would rarely do. `--quick` compares ours with a reference in memory, by scanpy's
tests and scipy's correlations over dense draws.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import processes
import scanpy
from scipy import stats

from atlasvi.engine import load_run, make_card, simulate, train
from atlasvi.engine.card.card_check import list_figures
from atlasvi.engine.card.model_card import ModelCard
from atlasvi.engine.queries.opened_data import open_question_cells
from atlasvi.engine.queries.predictive_counts import predictive_counts

HERE = Path(__file__).resolve().parent
SPREADS, LEAST = 3, 0.005  # a figure of few labels hardly differs between seeds


def run_peer(peers: Path, model: Path, h5ad: Path, labels_key: str, seed: int, folder: Path) -> dict:
    """scvi-tools' figures, seconds and memory of one seed."""
    out = folder / f"{seed}.json"
    command = [peers / "bin" / "python", HERE / "peers" / "card.py", model, h5ad, labels_key, seed, out]
    processes.run([str(part) for part in command])
    return json.loads(out.read_text())


def run_ours(model: Path, h5ad: Path, labels_key: str, seed: int) -> dict:
    """The same of ours."""
    start = time.perf_counter()
    card = make_card(model, h5ad, labels_key=labels_key, seed=seed)
    seconds = time.perf_counter() - start
    figures = {name: estimate.value for name, estimate in list_figures(card).items()}
    peak = card.provenance.peak_memory_bytes
    return {"figures": figures, "seconds": seconds, "n_cells": card.provenance.n_cells, "peak_memory_bytes": peak}


def compare(theirs: list[dict], ours: list[dict]) -> pd.DataFrame:
    """A row for each figure of theirs: means and standard deviations over seeds, and whether ours is within theirs."""
    rows = []
    for name in theirs[0]["figures"]:
        a, b = (np.array([each["figures"][name] for each in runs]) for runs in (theirs, ours))
        allowed = max(SPREADS * max(a.std(ddof=1), b.std(ddof=1)), LEAST * abs(a.mean()))
        within = a.min() - allowed <= b.mean() <= a.max() + allowed
        rows.append(
            {"figure": name, "scvi-tools": a.mean(), "sd": a.std(ddof=1), "atlasvi": b.mean(), "sd ": b.std(ddof=1),
             "within": bool(within)}
        )  # fmt: skip
    return pd.DataFrame(rows)


def check_in_memory(folder: Path) -> dict[str, list[float]]:
    """[ours, reference] by figure, of a small model of simulated cells, trained for one epoch."""
    simulate(folder / "cells.h5ad", 600, 300, 2, 3, 0)
    settings = {"n_hidden": 16, "n_latent": 4}
    train(folder / "cells.h5ad", folder / "run", batch_key="batch", epochs=1, device="cpu", settings=settings)
    adata = anndata.read_h5ad(folder / "cells.h5ad")
    labels = "cell_type"
    card = make_card(folder / "run", folder / "cells.h5ad", labels_key=labels, n_draws=2)
    run = load_run(folder / "run")
    cells = open_question_cells(folder / "cells.h5ad", run)
    drawn = predictive_counts(run.model, cells, 0, indices=np.arange(adata.n_obs), n_draws=2).toarray()
    drawn = drawn.reshape(adata.n_obs, adata.n_vars, 2).astype(float)
    return reference_figures(card, np.asarray(adata.X.todense(), float), drawn, adata.obs[labels].astype(str))


def reference_figures(
    card: ModelCard, real: np.ndarray, drawn: np.ndarray, labels: pd.Series
) -> dict[str, list[float]]:
    """[ours, that of dense counts in memory] of variation by cell and gene, and of fold changes of each label."""
    found, figures = {}, {name: each.value for name, each in list_figures(card).items()}
    for block, axis in (("cells", 1), ("genes", 0)):
        with np.errstate(invalid="ignore", divide="ignore"):
            a = np.nan_to_num(real.std(axis) / real.mean(axis))
            b = np.nan_to_num(np.nanmean(drawn.std(axis) / drawn.mean(axis), axis=1))
        found[f"all {block} variation mae"] = np.abs(a - b).mean()
        found[f"all {block} variation pearson"] = stats.pearsonr(a, b)[0]
        found[f"all {block} variation spearman"] = stats.spearmanr(a, b)[0]
    changes = [_fold_changes(each, labels) for each in (real, drawn[:, :, 0], drawn[:, :, 1])]
    for label in sorted(set(labels)):
        maes = [np.abs(changes[0][label] - each[label]).mean() for each in changes[1:]]
        found[f"all label {label!r} Welch lfc_mae"] = np.mean(maes)
    return {name: [figures[name], float(value)] for name, value in found.items()}


def _fold_changes(counts: np.ndarray, labels: pd.Series) -> dict[str, np.ndarray]:
    adata = anndata.AnnData(counts.copy(), pd.DataFrame({"label": pd.Categorical(labels)}, index=labels.index))
    scanpy.pp.normalize_total(adata, target_sum=1e4)
    scanpy.pp.log1p(adata)
    scanpy.tl.rank_genes_groups(adata, "label", method="t-test")
    tables = {label: scanpy.get.rank_genes_groups_df(adata, group=label) for label in sorted(set(labels))}
    return {name: t.set_index("names")["logfoldchanges"].loc[adata.var_names].values for name, t in tables.items()}


def main() -> int:
    """Compute, print the table, return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", type=Path, help="the peers' virtual environment")
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("h5ad", type=Path, nargs="?")
    parser.add_argument("labels_key", nargs="?")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="small, without the peer")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not options.quick and None in (options.peers, options.model, options.h5ad, options.labels_key):
        parser.error("give --peers VENV MODEL_DIR H5AD LABELS_KEY, or --quick")
    with tempfile.TemporaryDirectory() as scratch:
        if options.quick:
            found = check_in_memory(Path(scratch))
            table = pd.DataFrame([{"figure": name, "atlasvi": a, "in memory": b} for name, (a, b) in found.items()])
            atol = np.where(table["figure"].str.endswith("spearman"), 2e-3, 1e-6)  # rounding decides what is a tie
            table["within"] = np.isclose(table["atlasvi"], table["in memory"], rtol=1e-4, atol=atol)
            speed = {}
        else:
            data = options.model, options.h5ad, options.labels_key
            theirs = [run_peer(options.peers, *data, seed, Path(scratch)) for seed in range(options.seeds)]
            ours = [run_ours(*data, seed) for seed in range(options.seeds)]
            table = compare(theirs, ours)
            speed = {
                name: {
                    "cells/s": float(np.median([each["n_cells"] / each["seconds"] for each in runs])),
                    "peak MB": max(each["peak_memory_bytes"] for each in runs) / 1e6,
                }
                for name, runs in (("scvi-tools", theirs), ("atlasvi", ours))
            }
    print(table.to_string(index=False))
    for name, each in speed.items():
        print(f"{name}: {each['cells/s']:.0f} cells/s, at most {each['peak MB']:.0f} MB")
    if options.json:
        lines = table.to_dict("records")
        options.json.write_text(json.dumps({"figures": lines, "speed": speed}, indent=2) + "\n")
    return int(not table["within"].all())


if __name__ == "__main__":
    sys.exit(main())
