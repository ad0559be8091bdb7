import math

import pytest

from atlasvi.engine.card.page.axes import Scale, widened, write_tick


def test_a_scale_maps_its_range_onto_units_also_downwards() -> None:
    assert [Scale(0, 10, 100, 0)(value) for value in (0, 5, 10)] == [100, 50, 0]
    assert Scale(1, 100, 0, 10, log=True)(10) == pytest.approx(5)


@pytest.mark.parametrize(
    ("low", "high", "log", "expected"),
    [
        (0, 1, False, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (-3, 12, False, [0, 5, 10]),
        (2, 30, True, [2, 5, 10, 20]),
        (1, 1e6, True, [1, 1e2, 1e4, 1e6]),
        (4.1, 4.9, True, [4.2, 4.4, 4.6, 4.8]),
    ],
)
def test_ticks_are_round_and_few(low: float, high: float, log: bool, expected: list[float]) -> None:
    assert Scale(low, high, 0, 1, log).ticks() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("value", "text"), [(0.05, "0.05"), (20, "20"), (3000, "3k"), (2.5e6, "2.5M"), (-2, "−2"), (1e-5, "1e−5"), (0, "0")]
)
def test_ticks_are_written_short(value: float, text: str) -> None:
    assert write_tick(value) == text


def test_a_range_is_widened_and_never_empty() -> None:
    assert widened([1, 2, math.nan], 0.5) == (0.5, 2.5)
    assert widened([0, 9], 0) == (0, 9)
    low, high = widened([3.0, 3.0], 0)
    assert low < 3 < high
    assert widened([math.nan]) == (0, 1)
