"""Axes of a chart: where a value lies, which ticks are labelled, and the lines and texts around the marks."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from atlasvi.engine.card.page.markup import Content, Markup, tag

WIDTH = 300.0
"""Units of a chart's width: text of 12 units is readable on a phone, where a unit is about a pixel, and not huge on a
wide screen, where it is at most 1.3."""
LEFT, RIGHT, TOP, BOTTOM = 58.0, 10.0, 10.0, 44.0


@dataclass(frozen=True)
class Scale:
    """Maps values from `low` to `high` (which differ, and are above 0 if `log`) onto units from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Where a value lies, in units."""
        low, high, value = (math.log(each) if self.log else each for each in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self, most: int = 5) -> list[float]:
        """Round values within the scale; of a logarithmic one powers of ten, with 2 and 5 times these if few."""
        if not self.log:
            return linear_ticks(self.low, self.high, most)
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        for steps in ((1, 2, 5), (1, 3), (1,)):
            found = [step * 10.0**power for power in powers for step in steps]
            found = [each for each in found if self.low <= each * (1 + 1e-9) and each <= self.high * (1 + 1e-9)]
            if len(found) <= most:
                break
        if len(found) > most:
            found = found[:: math.ceil(len(found) / most)]
        return found if len(found) > 1 else linear_ticks(self.low, self.high, most)


def linear_ticks(low: float, high: float, most: int) -> list[float]:
    """At most about `most` multiples of 1, 2 or 5 times a power of ten."""
    step = 10.0 ** math.floor(math.log10((high - low) / most))
    step *= next((each for each in (1, 2, 5) if (high - low) / (each * step) <= most), 10)
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def write_tick(value: float) -> str:
    """A short number: 0.05, 20, 3k, 1M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}".replace("-", "\N{MINUS SIGN}")
    if value and abs(value) < 1e-3:
        return f"{value:.0e}".replace("e-0", "e-").replace("-", "\N{MINUS SIGN}")
    return f"{value:.3g}".replace("-", "\N{MINUS SIGN}")


def widened(values: Sequence[float], margin: float = 0.04) -> tuple[float, float]:
    """The range of the values that are finite, wider by `margin` of it; never empty, and (0, 1) if there are none."""
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return 0.0, 1.0
    low, high = min(known), max(known)
    room = (high - low) * margin if high > low else abs(high) / 10 or 1.0
    return low - room, high + room


def draw_axes(x: Scale, y: Scale, x_title: str, y_title: str) -> Markup:
    """Grid lines, ticks and titles."""
    lines: list[Content] = []
    texts: list[Content] = []
    for value in x.ticks():
        at = x(value)
        lines.append(tag("line", x1=at, x2=at, y1=y.start, y2=y.end))
        texts.append(tag("text", write_tick(value), x=at, y=y.start + 16, text_anchor="middle"))
    for value in y.ticks():
        at = y(value)
        lines.append(tag("line", x1=x.start, x2=x.end, y1=at, y2=at))
        texts.append(tag("text", write_tick(value), x=x.start - 6, y=at + 4, text_anchor="end"))
    middle = (y.start + y.end) / 2
    texts.append(tag("text", x_title, x=(x.start + x.end) / 2, y=y.start + 36, text_anchor="middle", class_="axis"))
    texts.append(
        tag("text", y_title, transform=f"translate(13 {middle:.0f}) rotate(-90)", text_anchor="middle", class_="axis")
    )
    return tag("g", lines, class_="grid") + tag("g", texts, class_="ticks")


def picture(height: float, alternative: str, *content: Content, width: float = WIDTH) -> Markup:
    """An SVG image with a text alternative."""
    return tag(
        "svg", *content, viewBox=f"0 0 {width:.0f} {height:.0f}", role="img", aria_label=alternative, class_="chart"
    )
