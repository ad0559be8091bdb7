"""Are labels that `annotate` gives right, as probable as it says, and "unknown" where the reference lacks the type?

    python benchmarks/annotation.py --counts onek1k.h5ad --donors indiv --labels cell_type [--picture FILE.png]
                                    [--json FILE]
    python benchmarks/annotation.py --quick

A third of the donors is held out; a model (recipe atlas, 40 epochs) is trained on the others, which are the reference.
Beside `annotate`, in the same run: a logistic regression on the latents of the reference, asked about the same latents.
Then each type in turn is left out, twice: out of the reference only, where the model has seen it, and out of the
training too. The AUROC is that of the distance to the neighbours: does it tell the cells of the missing type from the
others? The picture is a reliability plot: how often labels of a probability are right.
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
from scipy import sparse
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from atlasvi.engine import annotate, minify, open_minified, train
from atlasvi.engine.minified.kept_posterior import KeptPosterior
from atlasvi.engine.queries.annotation import BINS, measure_calibration
from atlasvi.engine.queries.new_cells import open_new_cells


def draw_donors(n_cells: int = 900) -> anndata.AnnData:
    """Counts of three types of cells from nine donors."""
    random = np.random.default_rng(0)
    types = random.integers(3, size=n_cells)
    rates = random.gamma(0.5, 2, (3, 100)) + 0.05
    counts = random.poisson(rates[types] * random.gamma(5, 0.2, (n_cells, 1))).astype(np.float32)
    obs = pd.DataFrame({"cell_type": np.array(["a", "b", "c"])[types], "indiv": random.integers(9, size=n_cells)})
    obs["indiv"] = "d" + obs["indiv"].astype(str)
    obs.index = obs.index.astype(str)
    counts[counts.sum(1) == 0, 0] = 1
    return anndata.AnnData(sparse.csr_matrix(counts), obs)


def make_reference(adata: anndata.AnnData, donors: str, epochs: int, folder: Path) -> KeptPosterior:
    """A model trained on these cells, and their posterior."""
    folder.mkdir()
    adata.write_h5ad(folder / "reference.h5ad")
    settings = {"recipe": "atlas"}
    train(folder / "reference.h5ad", folder / "run", batch_key=donors, epochs=epochs, device="cpu", settings=settings)
    minify(folder / "run", folder / "reference.h5ad", folder / "reference.mini")
    return open_minified(folder / "reference.mini")


def regress(store: KeptPosterior, new: Path, labels: str) -> np.ndarray:
    """Labels of new cells by a logistic regression on the latents of the reference."""
    opened = open_new_cells(str(new), store.run)
    asked = np.concatenate([qzm for qzm, _ in opened.cells.read_latents(opened.model, None)])
    known = store.read_latent(0, store.n_cells)[0]
    opened.cells.source.close()
    return LogisticRegression(max_iter=2_000).fit(known, store.read_column(labels).astype(str)).predict(asked)


def draw_reliability(probability: np.ndarray, right: np.ndarray, error: float, out: Path) -> None:
    """Write the reliability plot: share of right labels against probability, and how many cells have each."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    bins = np.minimum((probability * BINS).astype(int), BINS - 1)
    sizes = np.bincount(bins, minlength=BINS)
    there = sizes > 0
    means = [np.bincount(bins, values, BINS)[there] / sizes[there] for values in (probability, right)]
    figure, (top, bottom) = pyplot.subplots(
        2, 1, figsize=(4, 5), sharex=True, height_ratios=(3, 1), constrained_layout=True
    )
    top.plot([0, 1], [0, 1], color="0.7", linestyle="--")
    top.plot(*means, marker="o")
    top.set(ylabel="share of right labels", title=f"expected calibration error {error:.3f}", ylim=(0, 1.02))
    bottom.bar((np.arange(BINS) + 0.5) / BINS, sizes, width=0.9 / BINS)
    bottom.set(xlabel="probability of the label", ylabel="cells", yscale="log", xlim=(0, 1))
    figure.savefig(out, dpi=150)
    pyplot.close(figure)


def main() -> int:
    """Measure, print the table, return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counts", type=Path)
    parser.add_argument("--donors", default="indiv")
    parser.add_argument("--labels", default="cell_type")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="900 drawn cells: to see that it runs")
    options = parser.parse_args()
    if options.counts is None and not options.quick:
        parser.error("--counts is needed, or --quick")
    adata = draw_donors() if options.quick else anndata.read_h5ad(options.counts)
    donors, types = (adata.obs[column].astype(str).to_numpy() for column in (options.donors, options.labels))
    names = np.random.default_rng(0).permutation(np.unique(donors))
    is_new = np.isin(donors, names[: len(names) // 3])
    truth, kinds = types[is_new], np.unique(types)
    found: dict[str, dict] = {"all types": {}, **{f"without {kind}": {} for kind in kinds}}
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        new = work / "new.h5ad"
        adata[is_new].copy().write_h5ad(new)
        store = make_reference(adata[~is_new].copy(), options.donors, options.epochs, work / "all")
        start = time.perf_counter()
        table = annotate(store, str(new), options.labels)
        seconds = time.perf_counter() - start
        right = (table["closest"] == truth).to_numpy()
        error = measure_calibration(table["probability"].to_numpy(), right)
        found["all types"] = {
            "accuracy": float(right.mean()),
            "logistic_regression": float((regress(store, new, options.labels) == truth).mean()),
            "calibration_error": error,
            "unknown": float((table["label"] == "unknown").mean()),
            "seconds": seconds,
        }
        if options.picture:
            draw_reliability(table["probability"].to_numpy(), right, error, options.picture)
        for kind in kinds:
            line: dict[str, float] = {"cells": int((truth == kind).sum())}
            part = adata[~is_new & (types != kind)].copy()
            untrained = make_reference(part, options.donors, options.epochs, work / f"without {kind}")
            for name, reference, among in (
                ("reference", store, f"{options.labels} != {kind!r}"),
                ("training", untrained, None),
            ):
                table = annotate(reference, str(new), options.labels, among=among)
                line[f"auroc_{name}"] = float(roc_auc_score(truth == kind, table["distance"]))
                called = (table["label"] == "unknown").to_numpy()
                line[f"found_{name}"] = float(called[truth == kind].mean())
                line[f"false_{name}"] = float(called[truth != kind].mean())
            found[f"without {kind}"] = line
    first = found["all types"]
    print(
        f"{is_new.sum():,} new cells of {len(names) // 3} donors: {first['accuracy']:.2%} right (logistic regression "
        f"{first['logistic_regression']:.2%}), expected calibration error {first['calibration_error']:.4f}, "
        f"{first['unknown']:.1%} unknown, {first['seconds']:.1f} s"
    )
    lines = {name: line for name, line in found.items() if name != "all types"}
    print(pd.DataFrame(lines).T.to_string(float_format="{:.3f}".format))
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    reached = first["accuracy"] >= first["logistic_regression"] and first["calibration_error"] <= 0.05
    return int(not options.quick and not (reached and all(line["auroc_reference"] >= 0.9 for line in lines.values())))


if __name__ == "__main__":
    sys.exit(main())
