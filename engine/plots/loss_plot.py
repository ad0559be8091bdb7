"""The losses of a run over its epochs and steps: is it trained enough, and does it overfit?"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atlasvi.engine.minified.places import name_place
from atlasvi.engine.model.run_files import METRICS, RESULT
from atlasvi.engine.plots.palettes import OKABE_ITO
from atlasvi.engine.plots.picture_file import find_format, write_picture
from atlasvi.engine.plots.style import Style, drawing
from atlasvi.loaders.damage import reading
from atlasvi.loaders.errors import SourceError
from atlasvi.loaders.manifest import read_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 5.2, 4.6  # inches
PANELS = (("loss", "loss (-ELBO)"), ("kl", "KL of the latents"))
PARTS = {"train": ("training", "-", "o"), "validation": ("held out", "--", "s")}
COLOURS = (OKABE_ITO[0], OKABE_ITO[5])  # of these, on white
COLOURS_ON_DARK = (OKABE_ITO[4], OKABE_ITO[1])
SETTLED = 0.1  # of the run is left out where the loss of the first epochs would flatten all that follows


@dataclass(frozen=True)
class LossCurves:
    """What a run has recorded so far.

    epochs  values of 'step', and of 'train_' and 'validation_' with 'loss' (-ELBO) and 'kl', after each epoch
    steps   the same of single steps, in epochs ('at'), of training alone
    kept    the epoch whose weights the run kept, from 1; None: it is not finished
    """

    epochs: list[dict[str, float]]
    steps: list[dict[str, float]]
    kept: int | None


def plot_losses(
    run: str | Path, out: str | Path | None = None, *, style: Style | None = None, replace: bool = False
) -> "Figure":
    """The losses of a run, finished or not, in nats per cell: of single steps, and of training and held-out cells.

    out      .png, .svg or .pdf; None: only the figure is returned
    replace  whether a file of this name may be replaced
    Raises SourceError if `run` is no run, or has no epoch yet, MissingDependencyError without matplotlib, OutputError
    if `out` can't be written.
    """
    style = style or Style()
    if out is not None:
        find_format(out, replace)
    curves = read_losses(run)
    with drawing(style):
        figure = _draw(curves, str(run), style)
        if out is not None:
            write_picture(figure, out, style, replace)
    return figure


def read_losses(run: str | Path) -> LossCurves:
    """The losses that a run has recorded. Raises SourceError if it is no run, or has no epoch yet."""
    what = name_place(run)
    if what != "run":
        instead = "name the folder that atlasvi train made"
        if what in ("minified store", "minified data"):
            instead += f"; atlasvi query {run} plot draws these cells"
        raise SourceError(
            f"{run}: losses are those of a run, and this is {f'a {what}' if what else 'none'}: {instead}."
        )
    place = Path(run)
    lines = _read_lines(place / METRICS)
    epochs = [_name_losses(line) for line in lines if line.get("kind", "epoch") == "epoch"]
    if not epochs:
        raise SourceError(f"{run}: it has not finished an epoch yet, so there are no losses: wait for the first.")
    steps = [_name_losses(line) for line in lines if line.get("kind") == "step"]
    for line in steps:
        line["at"] = _place(line["step"], line["epoch"], epochs)
    kept = None
    if (place / RESULT).is_file():
        kept = read_json(place / RESULT).get("kept_epoch")
    return LossCurves(epochs, steps, None if kept is None else kept + 1)


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a run's record; the last may be half-written, while the run is going on."""
    if not path.is_file():
        return []
    texts = path.read_text("utf-8").splitlines()
    with reading(str(path)):
        lines = [json.loads(text) for text in texts[:-1] if text.strip()]
        try:
            lines += [json.loads(text) for text in texts[-1:]]
        except json.JSONDecodeError:
            if (path.parent / RESULT).is_file():
                raise
    return lines


def _place(step: float, epoch: float, epochs: Sequence[Mapping[str, float]]) -> float:
    """A step in epochs: how far it is from the end of the epoch before to the end of its own."""
    ends = {line["epoch"]: line["step"] for line in epochs}
    length = next((ends[k] - ends[k - 1] for k in ends if k - 1 in ends), epochs[0]["step"])
    end = ends.get(epoch, ends.get(epoch - 1, step) + length)
    return epoch + 1 - (end - step) / max(length, 1)


def _name_losses(line: Mapping[str, Any]) -> dict[str, float]:
    found = {"epoch": float(line["epoch"]), "step": float(line["step"])}
    for part in PARTS:
        if f"{part}_elbo" in line:
            found |= {f"{part}_loss": -line[f"{part}_elbo"], f"{part}_kl": line[f"{part}_kl"]}
    return found


def _draw(curves: LossCurves, name: str, style: Style) -> "Figure":
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    width = style.width or WIDTH
    figure = Figure((width, HEIGHT / WIDTH * width), layout="constrained", facecolor=style.paper)
    axes: Any = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    for (key, title), ax in zip(PANELS, axes):
        ax.set_facecolor(style.paper)
        ax.set_ylabel(f"{title}\nnats per cell")
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(axis="y", color=style.faint, alpha=0.25, linewidth=0.5)
        _draw_panel(ax, curves, key, COLOURS_ON_DARK if style.dark else COLOURS)
        if curves.kept is not None:
            ax.axvline(curves.kept, color=style.faint, linewidth=0.8, linestyle=":", zorder=1)
    if curves.kept is not None:
        axes[0].annotate(
            f"kept: epoch {curves.kept:,}",
            (curves.kept, 1),
            xycoords=("data", "axes fraction"),
            xytext=(-3 if curves.kept > curves.epochs[-1]["epoch"] / 2 else 3, -2),
            textcoords="offset points",
            color=style.ink,
            ha="right" if curves.kept > curves.epochs[-1]["epoch"] / 2 else "left",
            va="top",
            fontsize=0.9 * style.font_size,
        )
    axes[1].xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[1].set_xlabel(f"epoch ({curves.epochs[-1]['step']:,.0f} steps in all)")
    lines = axes[0].get_legend_handles_labels()
    figure.legend(*lines, frameon=False, loc="outside lower center", ncols=3, labelcolor=style.ink)
    title = style.title if style.title is not None else name
    if title:
        axes[0].set_title(title, color=style.ink, fontsize=1.15 * style.font_size, loc="left")
    return figure


def _draw_panel(ax: "Axes", curves: LossCurves, key: str, colours: Sequence[str]) -> None:
    """One measure: single steps as a thin line, epochs as lines with marks if there are few."""
    steps = [(line["at"], line[f"train_{key}"]) for line in curves.steps if f"train_{key}" in line]
    if steps:
        ax.plot(*zip(*steps), color=colours[0], alpha=0.45, linewidth=0.7, label="training, single steps")
    settled, last = list[float](), curves.epochs[-1]["epoch"] + 1
    for colour, (part, (name, dash, mark)) in zip(colours, PARTS.items()):
        points = [(line["epoch"] + 1, line[f"{part}_{key}"]) for line in curves.epochs if f"{part}_{key}" in line]
        if points:
            marker = mark if len(points) <= 30 else None
            ax.plot(*zip(*points), color=colour, linestyle=dash, linewidth=1.4, marker=marker, markersize=3, label=name)
            settled += [value for epoch, value in points if epoch > SETTLED * last or len(points) <= 3]
    settled = [value for value in settled if math.isfinite(value)]
    if settled:
        low, high = min(settled), max(settled)
        room = 0.08 * (high - low) or 0.5
        ax.set_ylim(low - room, high + room)
