import numpy as np

from atlasvi.engine.card.model_card import Colouring, LatentPicture
from atlasvi.engine.card.page.latent_map import MOST_CATEGORIES, choosing_rules, draw_map, largest_categories
from tests.engine.card.page.parsed import parse


def _make_picture(n_labels: int, n_cells: int = 400) -> LatentPicture:
    random = np.random.default_rng(0)
    codes = np.arange(n_cells) % (n_labels + 1) - 1
    places = random.normal(size=(n_cells, 2)) + 40 * random.normal(size=(n_labels + 1, 2))[codes]
    label = Colouring("cell_type", tuple(f"type {k}" for k in range(n_labels)), tuple(codes.tolist()))
    x, y = (tuple(values.tolist()) for values in places.T)
    return LatentPicture("UMAP", x, y, label, None, 10_000)


def _n_points(drawn: str) -> int:
    return sum(
        str(each.attributes["d"]).count("M")
        for each in parse(drawn).all("path")
        if str(each.attributes["class"]).startswith("p ")
    )


def test_every_cell_is_a_point_and_every_category_a_button() -> None:
    points = _make_picture(30)
    assert points.label is not None
    drawn, buttons = draw_map(points, points.label, "label")
    assert _n_points(drawn) == 400
    inputs = list(parse(buttons).all("input"))
    assert len(inputs) == 31
    assert {each.attributes["name"] for each in inputs} == {"show-label"}
    assert [each.attributes["value"] for each in inputs if "checked" in each.attributes] == ["-1"]


def test_each_of_thirty_labels_has_its_own_colour_and_shape() -> None:
    points = _make_picture(30)
    assert points.label is not None
    drawn, _ = draw_map(points, points.label, "label")
    looks = {
        str(each.attributes["class"]).split()[1]: tuple(str(each.attributes["class"]).split()[2:])
        for each in parse(drawn).all("path")
    }
    del looks["missing"]
    assert len(looks) == len(set(looks.values())) == 30


def test_labels_whose_cells_lie_together_have_their_number_on_the_map() -> None:
    points = _make_picture(10)
    assert points.label is not None
    drawn, _ = draw_map(points, points.label, "label")
    assert sorted(int(each.text()) for each in parse(drawn).all("text")) == list(range(1, 11))


def test_mixed_batches_have_no_numbers() -> None:
    points = _make_picture(10)
    batch = Colouring("batch", ("a", "b", "c"), tuple(np.random.default_rng(1).integers(0, 3, 400).tolist()))
    drawn, _ = draw_map(points, batch, "batch")
    assert not list(parse(drawn).all("text"))


def test_the_rarest_of_too_many_categories_are_one_and_unused_ones_are_left_out() -> None:
    codes = tuple(np.repeat(np.arange(50), np.arange(50)).tolist())  # the first does not occur
    new, titles, sizes = largest_categories(Colouring("donor", tuple(f"d{k}" for k in range(50)), codes))
    assert len(titles) == MOST_CATEGORIES + 1
    assert titles[0] == "d49"
    assert titles[-1] == f"{49 - MOST_CATEGORIES} others"
    assert sum(sizes) == len(codes)
    assert np.bincount(new).tolist() == sizes
    assert f'value="{MOST_CATEGORIES}"' in choosing_rules()


def test_cells_without_a_place_are_left_out_and_no_cells_are_an_empty_map() -> None:
    colouring = Colouring("batch", ("a", "b"), (0, 1, 0))
    drawn, _ = draw_map(
        LatentPicture("PCA", (0.0, 1.0, float("nan")), (0.0, 1.0, 2.0), None, colouring, 3), colouring, "b"
    )
    assert _n_points(drawn) == 2
    assert "nan" not in drawn
    nothing = Colouring("batch", ("a",), ())
    drawn, _ = draw_map(LatentPicture("PCA", (), (), None, nothing, 0), nothing, "b")
    assert _n_points(drawn) == 0
