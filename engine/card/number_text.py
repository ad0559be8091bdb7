"""Numbers as a reader wants them: a figure with as many decimals as its error leaves, sizes and times with units."""

import math

from atlasvi.engine.card.draw_errors import Estimate

UNDEFINED = "undefined"
FEWEST, MOST = 2, 4  # decimals of a figure below 100


def write_estimate(figure: Estimate | None, missing: str = "") -> str:
    """'0.840 ± 0.012': the error with two digits, the value with the same decimals; without the error if unknown."""
    if figure is None:
        return missing
    if math.isnan(figure.value):
        return UNDEFINED
    if math.isnan(figure.error):
        return write_number(figure.value)
    if figure.error == 0:  # computed exactly, as the KL divergence is
        return f"{write_number(figure.value)} ± 0"
    decimals = MOST if figure.error < 10**-MOST else min(MOST, max(0, 1 - math.floor(math.log10(figure.error))))
    smallest = 10.0**-decimals
    error = f"< {smallest:.{decimals}f}" if figure.error < smallest / 2 else f"± {figure.error:,.{decimals}f}"
    return f"{write_decimals(figure.value, decimals)} {error.replace('<', '± <')}"


def write_number(value: float) -> str:
    """A number with three digits, at least two decimals below 100: 0.84, 0.0312, 12.30, 1,234."""
    if not math.isfinite(value):
        return UNDEFINED
    if float(value).is_integer() and abs(value) >= 100:
        return f"{value:,.0f}"
    size = math.floor(math.log10(abs(value))) if value else 0
    return write_decimals(value, 0 if size >= 3 else min(MOST, max(FEWEST if size < 2 else 1, 2 - size)))


def write_decimals(value: float, decimals: int) -> str:
    """With a proper minus sign, commas between thousands, and no negative zero."""
    text = f"{value:,.{decimals}f}"
    return text.replace("-", "\N{MINUS SIGN}") if any(digit in text for digit in "123456789") else text.lstrip("-")


def write_bytes(n: float) -> str:
    """A size: '512 kB', '1.9 GB'."""
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:.3g} TB"


def write_seconds(seconds: float) -> str:
    """A duration: '12.5 s', '34 min', '5.2 h'."""
    if not math.isfinite(seconds):
        return UNDEFINED
    if seconds < 100:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:,.1f} h"
