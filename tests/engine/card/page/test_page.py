import dataclasses
import itertools
import math
import re

import pytest

from atlasvi.engine.card import page
from atlasvi.engine.card.draw_errors import Estimate
from atlasvi.engine.card.model_card import PARTS, Colouring, LabelFigures, ModelCard, Note, PartFigures, Verdict
from atlasvi.engine.card.page import SECTIONS, make_page
from tests.engine.card.cards import make_card
from tests.engine.card.page.parsed import Element, parse

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src="https://evil.example/x.png" onerror="alert(1)">',
    "'); url(https://evil.example/a.css) /* </style><style>",
    "]]></svg><svg onload=alert(1)>",
    "a\nb\x00\u202ec\ud800&amp;",
)
CARDS = {
    "all parts": make_card(with_parts=PARTS),
    "no labels": make_card(with_labels=False),
    "one part": make_card(with_parts=("all",)),
}
CARDS["nothing computed"] = dataclasses.replace(
    CARDS["no labels"], parts={}, verdicts=(), integration=None, training_curves={}, picture=None
)


def make_hostile_card() -> ModelCard:
    """A card in which all names from data try to be markup."""
    card = make_card(with_parts=PARTS)
    assert card.picture is not None
    assert card.picture.label is not None
    colouring = Colouring(HOSTILE[0], HOSTILE[:4], card.picture.label.codes)
    name = HOSTILE[1]
    origin = dataclasses.replace(
        card.provenance,
        data=HOSTILE[1],
        command=HOSTILE[2],
        sources=dict.fromkeys(HOSTILE, 1),
        setup={each: list(HOSTILE) for each in HOSTILE},
        training={name: name},
        versions={name: HOSTILE[4]},
        hardware=HOSTILE[0],
    )
    labels = tuple(LabelFigures(each, 3, {"gene_f1": Estimate(0.5, 0.1)}) for each in HOSTILE)
    parts = {name: dataclasses.replace(part, labels=labels) for name, part in card.parts.items()}
    notes = tuple(Note(each, each) for each in HOSTILE)
    picture = dataclasses.replace(card.picture, label=colouring, batch=colouring, method=name)
    curves = {**card.training_curves, name: (1.0, 2.0, 3.0)}
    assert card.integration is not None
    meanings = dict(zip(card.integration.figures, HOSTILE))
    integration = dataclasses.replace(card.integration, meanings=meanings, computed_by=name)
    return dataclasses.replace(
        card,
        provenance=origin,
        parts=parts,
        notes=notes,
        picture=picture,
        training_curves=curves,
        integration=integration,
    )


CARDS["hostile names"] = make_hostile_card()


@pytest.fixture(params=CARDS)
def tree(request: pytest.FixtureRequest) -> Element:
    return parse(make_page(CARDS[request.param]))


def test_ids_are_unique_and_what_refers_to_one_finds_it(tree: Element) -> None:
    ids = [each.attributes["id"] for each in tree.all() if "id" in each.attributes]
    assert len(ids) == len(set(ids))
    for each in tree.all():
        assert each.attributes.get("aria-labelledby") in (None, *ids)
    links = [str(each.attributes["href"]) for each in tree.all("a")]
    assert {link[1:] for link in links} <= set(ids)
    assert {link[0] for link in links} == {"#"}


def test_there_is_one_h1_and_headings_skip_no_level(tree: Element) -> None:
    levels = [int(each.tag[1]) for each in tree.all("h1", "h2", "h3", "h4")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_landmarks_and_a_skip_link_lead_a_keyboard_to_the_card(tree: Element) -> None:
    (body,) = tree.all("body")
    assert [each.tag for each in body.children] == ["a", "header", "nav", "main", "footer"]
    assert body.children[0].attributes["href"] == f"#{body.children[3].attributes['id']}"
    (navigation,) = body.all("nav")
    assert [each.attributes["href"] for each in navigation.all("a")] == [f"#{name}" for name in SECTIONS]


def test_every_picture_has_a_text_alternative_and_stands_in_a_figure_with_a_caption(tree: Element) -> None:
    for each in tree.all("svg"):
        assert each.attributes.get("aria-hidden") == "true" or (
            each.attributes["role"] == "img" and len(str(each.attributes["aria-label"])) > 20
        )
    for each in tree.all("figure"):
        assert next(each.all("figcaption")).text().strip()


def test_every_table_has_a_caption_and_headers_with_scope_and_rows_of_one_length(tree: Element) -> None:
    for table in tree.all("table"):
        assert next(table.all("caption")).text().strip()
        assert all(each.attributes["scope"] in ("col", "row", "colgroup") for each in table.all("th"))
        widths = {sum(int(cell.attributes.get("colspan") or 1) for cell in row.children) for row in table.all("tr")}
        assert len(widths) == 1


def test_what_scrolls_sideways_is_reached_by_keyboard_and_has_a_name(tree: Element) -> None:
    for each in tree.all():
        if each.attributes.get("class") == "scroll":
            assert each.attributes["tabindex"] == "0"
            assert each.attributes["aria-label"]


def test_nothing_is_loaded_or_run(tree: Element) -> None:
    loading = ("src", "srcset", "xlink:href", "data", "poster", "action", "background")
    for each in tree.all():
        assert each.tag not in ("script", "link", "img", "iframe", "object", "embed", "base", "image", "use", "form")
        assert not [name for name in each.attributes if name in loading or name.startswith("on") or name == "style"]
    (style,) = tree.all("style")
    assert not re.search(r"url\(|@import|http", style.text())
    policies = [each.attributes["content"] for each in tree.all("meta") if "http-equiv" in each.attributes]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'"]


def test_hostile_names_are_shown_as_text() -> None:
    text = make_page(CARDS["hostile names"])
    text.encode()  # what can't be encoded can't be written
    tree = parse(text)
    labels = {each.text() for each in tree.all("th") if each.attributes["scope"] == "row"}
    assert set(HOSTILE[:4]) <= labels
    assert "a\\nb\\x00\\u202ec\\ud800&amp;" in labels
    assert "\u202e" not in text


def test_the_headline_is_the_verdict_of_the_cells_held_out_most() -> None:
    verdicts = tuple(
        Verdict(part, "cells", Estimate(value, 0.01), words)
        for part, value, words in (("training", 0.7, "good"), ("test", 0.3, "do not use generated data"))
    )
    tree = parse(make_page(dataclasses.replace(CARDS["all parts"], verdicts=verdicts)))
    (tile,) = tree.all("article")
    assert "Do not use generated data" in tile.text()
    assert "0.300 ± 0.010" in tile.text()
    assert "threshold 0.4" in tile.text()


def test_an_undefined_verdict_is_said_without_a_needle() -> None:
    verdict = Verdict("all", "cells", Estimate(math.nan, math.nan), "unknown")
    tree = parse(make_page(dataclasses.replace(CARDS["one part"], verdicts=(verdict,))))
    (tile,) = tree.all("article")
    assert "Unknown" in tile.text()
    assert not list(tile.all("circle"))


def test_figures_of_all_parts_and_both_tests_are_in_tables() -> None:
    tree = parse(make_page(CARDS["all parts"]))
    captions = [next(each.all("caption")).text().strip() for each in tree.all("table")]
    for part in ("Training", "Validation", "Test", "All cells"):
        tests = [each for each in captions if each.startswith(f"Differential expression by label: {part}")]
        assert len(tests) == 2
        assert "Welch" in tests[0]
        assert "Wilcoxon" in tests[1]


def test_an_empty_section_says_why() -> None:
    text = parse(make_page(CARDS["no labels"])).text()
    assert "Not computed." in text
    assert "There are no labels: give --labels-key COLUMN." in text


def test_without_counts_each_section_that_needs_them_says_so() -> None:
    part = dataclasses.replace(PartFigures(1000), losses={"kl": Estimate(3.0, 0.0)})
    note = Note("counts", "The data is minified and has no counts.")
    card = dataclasses.replace(make_card(with_labels=False), parts={"all": part}, verdicts=(), notes=(note,))
    tree = parse(make_page(card))
    for name in ("verdict", "generated-counts", "expression", "calibration"):
        (section,) = (each for each in tree.all("section") if each.attributes.get("id") == name)
        assert "Not computed. The data is minified and has no counts." in section.text()


def test_a_title_can_be_given_and_names_the_data_otherwise() -> None:
    assert next(parse(make_page(make_card())).all("h1")).text() == "Model of atlas.h5ad"
    assert next(parse(make_page(make_card(), "A <title>")).all("h1")).text() == "A <title>"


def test_the_style_is_part_of_the_package() -> None:
    assert ".skip:focus" in make_page(make_card())
    assert page.__doc__


def test_a_loss_has_one_chart_with_a_line_per_part_and_what_never_changes_has_none() -> None:
    ours = {"epoch": (0.0, 1.0), "train_elbo": (-3.0, -2.0), "validation_elbo": (-4.0, -3.0), "kl_weight": (1.0, 1.0)}
    theirs = {"epoch": (0.0, 1.0), "elbo_train": (3.0, 2.0)}
    for curves, said in (
        (ours, "Evidence lower bound (ELBO) by epoch: Training from −3.00 to −2.00 in 2 epochs; Validation from −4.00"),
        (theirs, "Negative ELBO by epoch: Training from 3.00 to 2.00 in 2 epochs."),
    ):
        tree = parse(make_page(dataclasses.replace(CARDS["one part"], training_curves=curves)))
        (section,) = [each for each in tree.all("section") if each.attributes["id"] == "training"]
        charts = [each for each in section.all("svg") if each.attributes.get("role") == "img"]
        assert len(charts) == 1
        assert str(charts[0].attributes["aria-label"]).startswith(said)
