"""The losses of runs over epochs or steps, from their metrics.jsonl: also of a run that is still training."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from atlasvi.engine.model.run_files import METRICS, RESULT
from atlasvi.engine.plots.colouring import shorten
from atlasvi.engine.plots.embedding_plot import BORDER, TITLE
from atlasvi.engine.plots.palettes import choose_colours
from atlasvi.engine.plots.picture_file import check_size, find_format, write_picture
from atlasvi.engine.plots.style import Style, drawing
from atlasvi.engine.queries.question_cells import QueryError
from atlasvi.loaders.errors import SourceError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Over = Literal["epochs", "steps"]
TERMS = {"elbo": "ELBO", "reconstruction_loss": "reconstruction loss", "kl": "KL divergence"}
PARTS: dict[str, tuple[str, Any]] = {"train": ("training", (0, (2.5, 1.2))), "validation": ("held out", "solid")}
PANEL = 27, 20  # width and height of a panel, in letters of the font's size: 3 by 2.2 inches for 8 points
SETTLED = 0.06  # of a run: the losses before are left out of the scale, because random weights are far from the rest
MOST_RUNS = 8


@dataclass(frozen=True)
class Losses:
    """The curves of a run: for (part, term) the places and the losses in nats per cell, float64 [points] each.

    kept  where the weights are from that the model kept; None: the run is not finished
    """

    name: str
    curves: dict[tuple[str, str], tuple[np.ndarray, np.ndarray]]
    kept: float | None


def plot_losses(
    runs: str | Path | Sequence[str | Path],
    out: str | Path | None = None,
    *,
    over: Over = "epochs",
    style: Style | None = None,
    replace: bool = False,
) -> "Figure":
    """ELBO, reconstruction loss and KL divergence of training and held-out cells, a panel for each.

    runs     one run directory or several (at most eight), finished or not
    out      .png, .svg or .pdf; None: only the figure is returned
    over     epochs; or steps, with the losses inside epochs that take long (a report every ten seconds)
    replace  whether a file of this name may be replaced
    A dot marks the weights that a finished run kept. Losses of the first 6% of a run are often so far from the others
    that they lie above the picture.
    Raises SourceError for a folder that is no run, or has no losses yet; QueryError for too many runs or an unknown
    `over`; MissingDependencyError without matplotlib; OutputError if `out` can't be written.
    """
    style = style or Style()
    paths = [Path(runs)] if isinstance(runs, (str, Path)) else [Path(run) for run in runs]
    if over not in get_args(Over):
        raise QueryError(f"over is {over!r}: use one of {', '.join(get_args(Over))}.")
    if not 1 <= len(paths) <= MOST_RUNS:
        raise QueryError(f"A picture shows the losses of 1 to {MOST_RUNS} runs; {len(paths)} are named.")
    if out is not None:
        find_format(out, replace)
    with drawing(style):
        figure = draw_losses([read_losses(path, over) for path in paths], over, style)
        if out is not None:
            write_picture(figure, out, style, replace)
    return figure


def read_losses(run: Path, over: Over = "epochs") -> Losses:
    """The losses that a run has written so far. Raises SourceError if it has none."""
    try:
        text = (run / METRICS).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(
            f"{run}: there is no {METRICS}: name the folder that atlasvi train made. Pictures of cells: "
            "atlasvi query MINI plot."
        ) from error
    lines, at = [], "step" if over == "steps" else "epoch"
    for number, line in enumerate(written := text.splitlines(), 1):
        try:
            found = json.loads(line)
            lines.append(
                {
                    "kind": found["kind"],
                    "epoch": int(found["epoch"]) + 1,
                    "step": int(found["step"]),
                    **{name: float(value) for name, value in found.items() if name.startswith(tuple(PARTS))},
                }
            )
        except (ValueError, TypeError, KeyError) as error:
            if number == len(written) and not text.endswith("\n"):
                continue  # the run is writing this line
            raise SourceError(f"{run / METRICS}: line {number} does not hold the metrics of a run.") from error
    per_step = [line for line in lines if line["kind"] == "step"]
    n_epochs = len(lines) - len(per_step)
    if over == "epochs" or len(per_step) < 2 * n_epochs:  # the mean of few minibatches of a short epoch is only noise
        lines = [line for line in lines if line["kind"] == "epoch"]
    curves = {}
    for part in PARTS:
        for term in TERMS:
            points = [(line[at], line[name]) for line in lines if (name := f"{part}_{term}") in line]
            if points:
                curves[part, term] = tuple(np.array(points, np.float64).T)
    if not curves:
        raise SourceError(f"{run}: no epoch is finished yet, so there are no losses: draw it later.")
    return Losses(run.resolve().name, curves, _find_kept(run, lines, at))


def _find_kept(run: Path, lines: list[dict[str, Any]], at: str) -> float | None:
    try:
        kept = json.loads((run / RESULT).read_text("utf-8")).get("kept_epoch")
    except (OSError, ValueError):
        return None
    return next((line[at] for line in lines if line["kind"] == "epoch" and line["epoch"] - 1 == kept), None)


def draw_losses(runs: Sequence[Losses], over: Over, style: Style) -> "Figure":
    """A figure of three panels beside each other; call it, and write its figure, inside `drawing`."""
    from matplotlib.figure import Figure

    line = style.line
    panel, height = (letters * style.font_size / 72 for letters in PANEL)
    if style.width is not None:
        panel = (style.width - 2 * BORDER) / len(TERMS)
    width = len(TERMS) * panel + 2 * BORDER
    default = f"Losses of {shorten(runs[0].name)}" if len(runs) == 1 else "Losses"
    title = style.wrap(default if style.title is None else style.title, width - 2 * BORDER, TITLE, bold=True)
    head = 1.4 * line * len(title.splitlines()) + 0.4 * line
    legend = (math.ceil(len(runs) / 4) if len(runs) > 1 else 0) + 1
    below = 1.3 * line * legend
    total = height + head + below + 2 * BORDER
    check_size(max(width, total), style)
    figure = Figure(figsize=(width, total), facecolor=style.paper)
    figure.text(BORDER / width, 1 - BORDER / total, title, va="top", size=TITLE * style.font_size, weight="bold")
    left, bottom, top = 4.2 * style.font_size / 72, 3.2 * line, 1.6 * line
    if panel - left < 6 * style.font_size / 72:
        raise QueryError(f"width is {style.width:g} inches, too little for three panels: make the picture wider.")
    for number, (term, name) in enumerate(TERMS.items()):
        axes = figure.add_axes(
            (
                (BORDER + number * panel + left) / width,
                (BORDER + below + bottom) / total,
                (panel - left - line) / width,
                (height - bottom - top) / total,
            )
        )
        axes.set_facecolor(style.paper)
        _draw_term(axes, runs, term, style)
        axes.set_title(name, loc="left", size=1.3 * style.font_size, pad=4)
        axes.set_xlabel({"epochs": "epoch", "steps": "step"}[over], size=style.font_size)
    figure.axes[0].set_ylabel("nats per cell", size=style.font_size)
    _add_legends(figure, runs, style, (BORDER / width, (BORDER + below) / total, 1.3 * line / total))
    return figure


def _draw_term(axes: "Axes", runs: Sequence[Losses], term: str, style: Style) -> None:
    """The curves of a term, scaled to what the runs do after their beginning."""
    from matplotlib.ticker import MaxNLocator

    settled: list[float] = []
    for number, run in enumerate(runs):
        for part, (_, dash) in PARTS.items():
            if (part, term) not in run.curves:
                continue
            colour = _choose_colour(number, part, len(runs))
            places, values = run.curves[part, term]
            marker = "o" if len(places) == 1 else None  # a line through one point can't be seen
            axes.plot(places, values, color=colour, linestyle=dash, linewidth=1.2, marker=marker, markersize=3)
            later = values[places >= places[0] + SETTLED * (places[-1] - places[0])]
            settled += later[np.isfinite(later)].tolist()
            if part == "validation" and run.kept is not None and run.kept in places:
                at = values[np.flatnonzero(places == run.kept)[-1]]
                axes.plot(run.kept, at, "o", color=colour, markersize=4.5, mec=style.paper, mew=0.8, zorder=3)
    if settled:
        low, high = min(settled), max(settled)
        margin = 0.06 * (high - low) or max(abs(low), 1) * 0.05
        axes.set_ylim(low - margin, high + margin)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.6g}")
    axes.tick_params(labelsize=style.font_size, length=2, width=0.6, color=style.faint)
    axes.grid(axis="y", color=style.faint, linewidth=0.4, alpha=0.35)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _choose_colour(number: int, part: str, n_runs: int) -> str:
    """Of several runs each has a colour, of one run each part."""
    return choose_colours(n_runs)[number] if n_runs > 1 else choose_colours(2)[part == "train"]


def _add_legends(figure: "Figure", runs: Sequence[Losses], style: Style, place: tuple[float, float, float]) -> None:
    """Below the panels: what the kinds of lines are, and the colour of each run, if there are several.

    place  left, top and the height of a row, in shares of the figure
    """
    from matplotlib.lines import Line2D

    left, top, row = place
    several = len(runs) > 1
    colours = {part: style.ink if several else _choose_colour(0, part, 1) for part in PARTS}
    kinds = [
        Line2D([], [], color=colours[part], linestyle=dash, linewidth=1.2, label=name)
        for part, (name, dash) in PARTS.items()
    ]
    if any(run.kept is not None for run in runs):
        kinds.append(
            Line2D([], [], color=colours["validation"], marker="o", linestyle="", markersize=4.5, label="weights kept")
        )
    named = [
        Line2D([], [], color=own, linewidth=2, label=shorten(run.name))
        for run, own in zip(runs, choose_colours(len(runs)))
    ]
    for handles in (kinds, *[named[at : at + 4] for at in range(0, len(named) * several, 4)]):
        figure.legend(
            handles=handles,
            loc="upper left",
            bbox_to_anchor=(left, top),
            ncols=len(handles),
            frameon=False,
            fontsize=style.font_size,
            labelcolor=style.ink,
            handletextpad=0.5,
            columnspacing=1.6,
            borderpad=0,
            borderaxespad=0,
        )
        top -= row
