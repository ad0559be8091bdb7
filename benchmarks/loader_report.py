"""What benchmarks/loaders.py makes of its figures: entropies, ratios, which targets are met, tables. Pure functions."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

OURS, PEER = "ours", "peer"
LABELS = ("cell_type", "batch", "source_block")


@dataclass(frozen=True)
class Ratio:
    """A figure of one row over that of another, and what it must be: at least, or at most, `target` (None: open)."""

    name: str
    row: str
    other: str
    figure: str
    at_least: float | None = None
    at_most: float | None = None


RATIOS = (
    Ratio("cells_per_s_vs_annbatch", "fast", "annbatch", "cells_per_s", at_least=5),
    Ratio("cells_per_s_vs_annbatch_default", "fast", "annbatch_default", "cells_per_s"),
    Ratio("cells_per_s_small_vs_annbatch", "small", "annbatch", "cells_per_s", at_least=2),
    Ratio("bytes_fast_vs_annbatch", "bytes_fast", "bytes_annbatch", "bytes_per_cell", at_most=0.70),
    Ratio("bytes_small_vs_annbatch", "bytes_small", "bytes_annbatch", "bytes_per_cell", at_most=0.45),
    Ratio("h5ad_vs_scdataset", "h5ad", "scdataset", "cells_per_s", at_least=3),
    Ratio("soma_vs_tiledbsoma_ml", "soma", "tiledbsoma_ml", "cells_per_s", at_least=5),
    Ratio("collection_vs_annbatch", "collection", "annbatch", "cells_per_s", at_least=1.5),
    Ratio("ingest_vs_annbatch", "ingest", "ingest_annbatch", "cells_per_s", at_least=3),
    Ratio("uncached_vs_annbatch", "uncached", "uncached_annbatch", "cells_per_s"),
    Ratio("memory_2m_vs_200k", "large", "fast", "loader_mb", at_most=1.10),
    Ratio("entropy_cell_type_vs_uniform", "order_fast", "order_fast", "cell_type", at_least=0.99),
    Ratio("entropy_batch_vs_uniform", "order_fast", "order_fast", "batch", at_least=0.99),
    Ratio("entropy_source_block_vs_uniform", "order_fast", "order_fast", "source_block"),
)
# Figures with a target of their own: (name, row, figure, at most)
ABSOLUTE = (
    ("first_batch_s", "fast", "first_batch_s", 1.0),
    ("first_batch_s_small", "small", "first_batch_s", 1.0),
    ("loader_mb", "fast", "loader_mb_most", 300.0),
    ("loader_mb_small", "small", "loader_mb_most", 300.0),
    ("loader_mb_2m", "large", "loader_mb_most", 300.0),
    ("ingest_peak_mb", "ingest", "tree_peak_mb", 1500.0),
    ("ingest_small_peak_mb", "ingest_small", "tree_peak_mb", 1500.0),
)


def batch_entropies(labels: np.ndarray, batch: int) -> np.ndarray:
    """Entropy in bits of the labels in each full minibatch; the last, where it is smaller, is left out.

    labels  int [cells], >= 0, in the order in which cells are visited
    Returns float64 [cells // batch].
    """
    full = labels[: len(labels) // batch * batch].reshape(-1, batch)
    shares = np.stack([np.bincount(row, minlength=int(labels.max(initial=0)) + 1) for row in full]) / batch
    return -(shares * np.log2(shares, where=shares > 0, out=np.zeros_like(shares))).sum(1)


def uniform_entropy(labels: np.ndarray, batch: int, seed: int = 0, draws: int = 400) -> float:
    """Mean entropy in bits of the labels of `batch` cells drawn uniformly without replacement, by simulation."""
    rng = np.random.default_rng(seed)
    return float(np.mean([batch_entropies(rng.choice(labels, batch, replace=False), batch)[0] for _ in range(draws)]))


def compare_entropies(labels: Mapping[str, np.ndarray], order: np.ndarray, batch: int) -> dict[str, dict[str, float]]:
    """Per label the mean entropy of an epoch's minibatches, that of a uniform draw of the same cells, and the ratio.

    labels  name -> int [all cells of the sources]
    order   int [cells visited]: number of each cell in the sources
    """
    compared = {}
    for name, values in labels.items():
        mean = float(batch_entropies(values[order], batch).mean())
        uniform = uniform_entropy(values[np.sort(order)], batch)
        compared[name] = {"mean": mean, "uniform": uniform, "ratio": mean / uniform}
    return compared


def summarise_epochs(repeats: Sequence[Mapping]) -> dict:
    """One figure a row from the processes that measured it: the median over processes of each one's median epoch."""
    per_process = [[epoch["cells"] / epoch["wall_s"] for epoch in repeat["epochs"]] for repeat in repeats]
    rates = [statistics.median(rates) for rates in per_process]
    epochs = [epoch for repeat in repeats for epoch in repeat["epochs"]]
    row: dict = {
        "cells_per_s": statistics.median(rates),
        "cells_per_s_by_process": rates,
        "cells_per_s_range": [min(map(min, per_process)), max(map(max, per_process))],
        "cpu_s_per_100k_cells": statistics.median(epoch["cpu_s"] / epoch["cells"] * 1e5 for epoch in epochs),
        "cells_an_epoch": epochs[0]["cells"],
    }
    if "peak_mb" in repeats[0]:
        row["loader_mb"] = statistics.median(repeat["peak_mb"] - repeat["imports_mb"] for repeat in repeats)
        row["loader_mb_most"] = max(repeat["peak_mb"] - repeat["imports_mb"] for repeat in repeats)
        row["first_batch_s"] = statistics.median(repeat["first_batch_s"] for repeat in repeats)
        row["first_batch_s_most"] = max(repeat["first_batch_s"] for repeat in repeats)
    return row | {"repeats": list(repeats)}


def summarise_ingests(repeats: Sequence[Mapping], cells: int) -> dict:
    """The median of the rates of an ingest, and the most of the peaks of memory over all its processes."""
    rates = [cells / repeat["wall_s"] for repeat in repeats]
    return {
        "cells_per_s": statistics.median(rates),
        "cells_per_s_by_process": rates,
        "cells_per_s_range": [min(rates), max(rates)],
        "tree_peak_mb": max(repeat["tree_peak_mb"] for repeat in repeats),
        "repeats": list(repeats),
    }


def compute_ratio(ratio: Ratio, figures: Mapping[str, Mapping]) -> float | None:
    """The ratio, or None where one of its rows is missing or failed."""
    row, other = figures.get(ratio.row, {}), figures.get(ratio.other, {})
    if ratio.row == ratio.other:  # entropies, which have their uniform draw beside them
        return row["entropies"][ratio.figure]["ratio"] if "entropies" in row else None
    if ratio.figure not in row or ratio.figure not in other:
        return None
    return row[ratio.figure] / other[ratio.figure]


def range_ratio(ratio: Ratio, figures: Mapping[str, Mapping]) -> list[float] | None:
    """Least and greatest of the ratio round by round, ours and theirs having run in turn; None where there are none."""
    series = f"{ratio.figure}_by_process"
    pairs = [figures.get(name, {}).get(series) for name in (ratio.row, ratio.other)]
    if pairs[0] is None or pairs[1] is None:
        return None
    rounds = [ours / theirs for ours, theirs in zip(*pairs)]
    return [min(rounds), max(rounds)]


def compute_ratios(figures: Mapping[str, Mapping]) -> dict[str, float | None]:
    """All ratios by name; None where a row is missing or failed."""
    return {ratio.name: compute_ratio(ratio, figures) for ratio in RATIOS}


def check_limits(figures: Mapping[str, Mapping]) -> list[dict]:
    """What must be shown, beside what was: `name`, `value`, `target`, `met` (None where there is no value)."""
    limits = []
    for ratio in RATIOS:
        if ratio.at_least is not None or ratio.at_most is not None:
            limits.append(check_limit(ratio.name, compute_ratio(ratio, figures), ratio.at_least, ratio.at_most))
    for name, row, figure, at_most in ABSOLUTE:
        limits.append(check_limit(name, figures.get(row, {}).get(figure), None, at_most))
    return limits


def check_limit(name: str, value: float | None, at_least: float | None, at_most: float | None) -> dict:
    """One line of `check_limits`."""
    met = None
    if value is not None:
        met = (at_least is None or value >= at_least) and (at_most is None or value <= at_most)
    target = f">= {at_least:g}" if at_least is not None else f"<= {at_most:g}"
    return {"name": name, "value": value, "target": target, "met": met}


def list_failures(figures: Mapping[str, Mapping]) -> dict[str, str]:
    """The rows that failed and the ratios that lack them, each with its error."""
    failed = {name: row["error"] for name, row in figures.items() if "error" in row}
    for ratio in RATIOS:
        missing = [name for name in (ratio.row, ratio.other) if name in failed]
        if missing:
            failed[ratio.name] = f"{missing[0]}: {failed[missing[0]]}"
    return failed


def align_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns line up: the first to the left, the others to the right."""
    widths = [max(len(row[at]) for row in (header, *rows)) for at in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if at == 0 else cell.rjust(width) for at, (cell, width) in enumerate(zip(cells, widths))
        ]
        return "| " + " | ".join(padded) + " |"

    rule = ["-" * width if at == 0 else "-" * (width - 1) + ":" for at, width in enumerate(widths)]
    return "\n".join([line(header), line(rule), *(line(row) for row in rows)])


def format_report(report: Mapping, titles: Mapping[str, str]) -> str:
    """The tables that are printed: loaders, sizes, ingest, entropies, ratios and targets, failures."""
    figures = report["figures"]
    parts = []
    loaders = [
        [
            titles[name],
            f"{row['cells_per_s']:,.0f}",
            " to ".join(f"{rate:,.0f}" for rate in row["cells_per_s_range"]),
            f"{row['cpu_s_per_100k_cells']:.2f}",
            f"{row['first_batch_s']:.2f}" if "first_batch_s" in row else "",
            f"{row['loader_mb']:,.0f}" if "loader_mb" in row else "",
        ]
        for name, row in figures.items()
        if "cpu_s_per_100k_cells" in row
    ]
    header = [
        "minibatches of 1,024, CSR",
        "cells/s",
        "least to most",
        "CPU s/100k",
        "first batch s",
        "MB above imports",
    ]
    if loaders:
        parts.append(align_table(header, loaders))
    sizes = [
        [titles[name], f"{row['bytes_per_cell']:,.0f}", f"{row['bytes_per_cell_of_x']:,.0f}"]
        for name, row in figures.items()
        if "bytes_per_cell" in row
    ]
    if sizes:
        parts.append(align_table(["on disk", "bytes per cell", "of them X"], sizes))
    ingests = [
        [titles[name], f"{row['cells_per_s']:,.0f}", f"{row['tree_peak_mb']:,.0f}"]
        for name, row in figures.items()
        if "tree_peak_mb" in row
    ]
    if ingests:
        parts.append(align_table(["ingest of h5ad files", "cells/s", "peak MB, all processes"], ingests))
    entropies = [
        [titles[name]]
        + [f"{row['entropies'][label]['mean']:.4f} / {row['entropies'][label]['uniform']:.4f}" for label in LABELS]
        for name, row in figures.items()
        if "entropies" in row
    ]
    if entropies:
        labels = [label.replace("_", " ") for label in LABELS]
        parts.append(align_table(["entropy of a minibatch, bits, mean / uniform draw", *labels], entropies))
    targets = {limit["name"]: limit for limit in report["limits"]}
    names = [*report["ratios"], *(name for name in targets if name not in report["ratios"])]
    lines = []
    for name in names:
        limit = targets.get(name, {})
        value = report["ratios"].get(name, limit.get("value"))
        spread = report["ratio_ranges"].get(name)
        verdict = {True: "met", False: "NOT MET", None: ""}[limit.get("met")]
        shown = "not measured" if value is None else f"{value:,.3f}" if value < 100 else f"{value:,.0f}"
        between = f"{spread[0]:,.2f} to {spread[1]:,.2f}" if spread else ""
        lines.append([name, shown, between, limit.get("target", ""), verdict])
    parts.append(align_table(["ratio or figure", "value", "round by round", "target", ""], lines))
    if report["failed"]:
        parts.append("Failed:\n" + "\n".join(f"- {name}: {error}" for name, error in report["failed"].items()))
    return "\n\n".join(parts)
