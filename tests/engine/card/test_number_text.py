import math

import pytest

from atlasvi.engine.card.draw_errors import Estimate
from atlasvi.engine.card.number_text import write_bytes, write_estimate, write_number, write_seconds


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (0.84, 0.0123, "0.840 ± 0.012"),
        (-650.04, 6.5, "−650.0 ± 6.5"),
        (123456.0, 321.0, "123,456 ± 321"),
        (0.84, 0.000001, "0.8400 ± < 0.0001"),
        (0.84, 0.0, "0.840 ± 0"),
        (0.84, math.nan, "0.840"),
        (-0.00001, 0.01, "0.000 ± 0.010"),
        (math.nan, math.nan, "undefined"),
    ],
)
def test_a_figure_has_as_many_decimals_as_its_error_leaves(value: float, error: float, text: str) -> None:
    assert write_estimate(Estimate(value, error)) == text


def test_a_figure_that_is_missing_is_what_the_caller_says() -> None:
    assert write_estimate(None, "–") == "–"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.84, "0.840"), (0.0312, "0.0312"), (12.3, "12.30"), (1234.5, "1,234"), (0, "0.00"), (math.inf, "undefined")],
)
def test_a_number_has_three_digits(value: float, text: str) -> None:
    assert write_number(value) == text


def test_sizes_and_times_have_units() -> None:
    assert [write_bytes(n) for n in (12, 512_000, 1_900_000_000, 3e12)] == ["12 B", "512 kB", "1.9 GB", "3 TB"]
    assert [write_seconds(n) for n in (12.5, 2040, 18720)] == ["12.5 s", "34 min", "5.2 h"]
    assert write_seconds(math.nan) == "undefined"
