"""Pictures of what benchmarks/loaders.py measured, for a reader who would rather look. Needs matplotlib."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

try:
    from matplotlib.figure import Figure
except ImportError as error:
    raise SystemExit("--plots needs matplotlib: pip install 'atlasvi[plots]'.") from error
from loader_report import LABELS
from loader_rows import TITLES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OURS, PEER = "#0072b2", "#e69f00"  # Okabe & Ito, told apart by all kinds of colour vision
INK, FAINT = "#333333", "#888888"
# Rows that are compared, ours first
GROUPS = (
    ("fast", "small", "annbatch", "annbatch_default"),
    ("collection", "annbatch"),
    ("h5ad", "scdataset"),
    ("soma", "tiledbsoma_ml"),
    ("uncached", "uncached_annbatch"),
)


def draw_plots(report: Mapping, folder: Path) -> list[Path]:
    """Write cells_per_s.png, bytes.png and entropies.png, those that there are figures for; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    figures = report["figures"]
    written = []
    for name, draw in (("cells_per_s", draw_rates), ("bytes", draw_sizes), ("entropies", draw_entropies)):
        if figure := draw(figures):
            machine = report["machine"]
            note = f"{machine['processor']}, {machine['cores']} cores, {report['date']}"
            figure.supxlabel(note, x=0.99, ha="right", size=7, color=FAINT)
            written.append(folder / f"{name}.png")
            figure.savefig(written[-1], dpi=150, facecolor="white")
    return written


def draw_rates(figures: Mapping[str, Mapping]) -> Figure | None:
    """Cells per second (a log scale) and CPU time, the rows of a comparison together."""
    names: list[str] = []
    places: list[float] = []
    for group in GROUPS:
        measured = [name for name in group if "cells_per_s" in figures.get(name, {})]
        if measured[:1] == [group[0]]:  # a peer alone shows nothing
            start = places[-1] + 1.5 if places else 0.0
            names += measured
            places += [start + at for at in range(len(measured))]
    if not names:
        return None
    figure = Figure(figsize=(10, 1.3 + 0.3 * places[-1]), layout="constrained")
    rates, cpu = figure.subplots(1, 2, sharey=True, width_ratios=[3, 2])
    for axes, unit in ((rates, "cells/s (median; line: least to most)"), (cpu, "CPU seconds per 100,000 cells")):
        dress(axes, unit)
    rates.set_xscale("log")
    for at, name in zip(places, names):
        row = figures[name]
        rate, seconds = row["cells_per_s"], row["cpu_s_per_100k_cells"]
        rates.barh(at, rate, color=colour(name))
        rates.plot(row["cells_per_s_range"], [at, at], color=INK, linewidth=1)
        rates.annotate(
            f"{rate / 1e3:,.0f}k", (max(rate, row["cells_per_s_range"][1]), at), (4, 0), textcoords="offset points",
            va="center", size=8,
        )  # fmt: skip
        cpu.barh(at, seconds, color=colour(name))
        cpu.annotate(f"{seconds:.2g}", (seconds, at), (4, 0), textcoords="offset points", va="center", size=8)
    least = min(figures[name]["cells_per_s_range"][0] for name in names)
    most = max(figures[name]["cells_per_s_range"][1] for name in names)
    rates.set_xlim(least / 2, most * 2.2)
    cpu.margins(x=0.15)
    name_rows(rates, names, places)
    figure.suptitle("Shuffled minibatches of 1,024 cells from disk", size=11, weight="bold", color=INK)
    return figure


def draw_sizes(figures: Mapping[str, Mapping]) -> Figure | None:
    """Bytes per cell on disk."""
    names = [name for name in figures if "bytes_per_cell" in figures[name]]
    if not names:
        return None
    figure = Figure(figsize=(7, 1.1 + 0.35 * len(names)), layout="constrained")
    axes = figure.subplots()
    dress(axes, "bytes per cell, obs and var included")
    for at, name in enumerate(names):
        size = figures[name]["bytes_per_cell"]
        axes.barh(at, size, color=colour(name))
        axes.annotate(f"{size:,.0f}", (size, at), (4, 0), textcoords="offset points", va="center", size=8)
    axes.margins(x=0.12)
    name_rows(axes, names, range(len(names)))
    figure.suptitle("Size on disk", size=11, weight="bold", color=INK)
    return figure


def draw_entropies(figures: Mapping[str, Mapping]) -> Figure | None:
    """Mean entropy of a minibatch's labels beside that of a uniform draw of the same cells."""
    names = [name for name in figures if "entropies" in figures[name]]
    if not names:
        return None
    figure = Figure(figsize=(10, 1.3 + 0.35 * len(names)), layout="constrained")
    panels = figure.subplots(1, len(LABELS), sharey=True)
    for label, axes in zip(LABELS, panels):
        dress(axes, "entropy, bits")
        axes.set_title(label.replace("_", " "), size=9, color=INK)
        for at, name in enumerate(names):
            found = figures[name]["entropies"][label]
            axes.barh(at, found["mean"], color=colour(name))
            axes.plot([found["uniform"]] * 2, [at - 0.42, at + 0.42], color=INK, linewidth=1.5)
            axes.annotate(
                f"{100 * found['ratio']:.1f}%", (0, at), (4, 0), textcoords="offset points", va="center", size=8,
                color="white" if colour(name) == OURS else INK,
            )  # fmt: skip
    name_rows(panels[0], names, range(len(names)))
    figure.suptitle(
        "How mixed is a minibatch? Mean entropy; the line, and 100%, is a uniform draw of the same cells",
        size=11, weight="bold", color=INK,
    )  # fmt: skip
    return figure


def colour(row: str) -> str:
    """Blue for ours, orange for a peer's."""
    row = row.removeprefix("order_")
    return (
        PEER
        if row.startswith(("annbatch", "scdataset", "tiledbsoma")) or row.endswith("annbatch") or row == "bytes_soma"
        else OURS
    )


def name_rows(axes: "Axes", names: Sequence[str], places: Sequence[float]) -> None:
    """Titles of the rows, the first at the top."""
    axes.set_yticks(places, [TITLES[name] for name in names], size=8)
    axes.set_ylim(places[-1] + 0.6, -0.6)


def dress(axes: "Axes", unit: str) -> None:
    """The look of a panel."""
    axes.set_xlabel(unit, size=8, color=INK)
    axes.tick_params(axis="x", labelsize=8, colors=INK)
    axes.tick_params(axis="y", length=0, colors=INK)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_axisbelow(True)
    axes.grid(axis="x", color="#e5e5e5", linewidth=0.8)
