import math
import re

from atlasvi.engine.card.draw_errors import Estimate
from atlasvi.engine.card.model_card import Density
from atlasvi.engine.card.page.axes import WIDTH
from atlasvi.engine.card.page.charts import Dots, Line, density_chart, density_key, dot_chart, line_chart, series_key
from tests.engine.card.page.parsed import Element, parse


def _with_class(chart: str, name: str) -> list[Element]:
    return [each for each in parse(chart).all() if name in (each.attributes.get("class") or "").split()]


def test_a_line_leaves_out_values_that_are_not_finite() -> None:
    chart = line_chart([Line("a", (0, 1, 2), (1.0, math.nan, 3.0))], "x", "y", "said")
    (line,) = _with_class(chart, "line")
    assert line.attributes["d"]
    assert line.attributes["d"].count("L") == 1
    assert "nan" not in chart


def test_a_line_of_one_value_is_a_mark_and_one_of_none_is_nothing() -> None:
    assert len(_with_class(line_chart([Line("a", (0,), (1.0,))], "x", "y", "said"), "mark")) == 1
    assert not _with_class(line_chart([Line("a", (), ())], "x", "y", "said"), "mark")


def test_a_density_draws_a_box_for_each_that_has_points() -> None:
    density = Density("cells", (1, 10, 100), (1, 10, 100), ((5, 0), (1, 7)))
    chart = density_chart(density, "real", "drawn", "said")
    boxes = [each for k in range(6) for each in _with_class(chart, f"d{k}")]
    assert sum((each.attributes["d"] or "").count("M") for each in boxes) == 3
    assert [each.text().strip() for each in parse(density_key(density)).all("li")] == ["from 1", "from 5", "from 7"]


def test_a_density_without_points_has_axes_alone() -> None:
    chart = density_chart(Density("cells", (1, 10), (1, 10), ((0,),)), "real", "drawn", "said")
    assert not [each for k in range(6) for each in _with_class(chart, f"d{k}")]


def test_dots_stand_at_their_values_with_bars_of_their_errors_and_none_is_left_out() -> None:
    values = [Estimate(0.5, 0.1), Estimate(0.7, math.nan), Estimate(math.nan, math.nan), None]
    chart = dot_chart(["a", "b", "c", "d"], [Dots("test", values)], "F1", "said")
    assert len(_with_class(chart, "mark")) == 2
    assert len(_with_class(chart, "line")) == 1


def test_the_axis_of_dots_takes_in_values_outside_of_zero_to_one() -> None:
    chart = dot_chart(["a"], [Dots("test", [Estimate(-0.5, 0.01)])], "LFC Pearson", "said")
    (dot,) = _with_class(chart, "mark")
    place = re.match(r"M([\d.]+) ", dot.attributes["d"] or "")
    assert place
    assert 0 < float(place[1]) < WIDTH


def test_long_names_are_cut_in_a_chart_and_whole_as_its_title() -> None:
    name = "a very long name of a cell type <with> markup"
    chart = parse(dot_chart([name], [Dots("test", [Estimate(0.5, 0.1)])], "F1", "said"))
    (text,) = [each for each in chart.all("text") if any(child.tag == "title" for child in each.children)]
    assert text.texts[0].endswith("…")
    assert text.children[0].text() == name


def test_series_differ_by_shape_and_dash_as_well_as_by_colour() -> None:
    key = parse(series_key([("a", 0), ("b", 1), ("c", 2)]))
    dashes = {
        each.attributes.get("stroke-dasharray") for each in key.all("path") if "line" in str(each.attributes["class"])
    }
    shapes = {str(each.attributes["d"])[4:] for each in key.all("path") if "mark" in str(each.attributes["class"])}
    assert len(dashes) == 3
    assert len(shapes) == 3
