import json
import math

import pytest

from atlasvi.engine.card.draw_errors import Estimate
from atlasvi.engine.card.model_card import CARD_FORMAT, ModelCard
from atlasvi.loaders.errors import SourceError
from tests.engine.card.cards import make_card


@pytest.mark.parametrize("with_labels", [True, False])
def test_a_card_is_the_same_after_json(with_labels: bool) -> None:
    card = make_card(with_labels, with_parts=("training", "validation", "test", "all"))
    text = card.to_json()
    again = ModelCard.from_json(text)
    assert again.to_json() == text  # NaN is not equal to itself, so the cards can't be compared
    assert again.parts["test"].cells == card.parts["test"].cells
    assert again.picture == card.picture


def test_figures_are_values_with_errors_and_nan_is_null() -> None:
    values = json.loads(make_card().to_json())
    assert values["format"] == CARD_FORMAT
    assert values["parts"]["training"]["cells"]["variation"]["pearson"] == {"value": 0.84, "error": 0.0084}
    assert values["parts"]["training"]["genes"]["zero_fraction"]["pearson"] == {"value": None, "error": None}
    pearson = ModelCard.from_json(json.dumps(values)).parts["training"].genes["zero_fraction"]["pearson"]
    assert isinstance(pearson, Estimate)
    assert math.isnan(pearson.value)


def test_fields_that_are_missing_take_their_defaults_and_unknown_ones_are_ignored() -> None:
    values = json.loads(make_card().to_json())
    del values["integration"], values["parts"]["training"]["losses"]
    values["later"] = 1
    card = ModelCard.from_json(json.dumps(values))
    assert card.integration is None
    assert card.parts["training"].losses == {}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1}', '{"format": 1, "provenance": 3, "parts": {}}'])
def test_what_is_not_a_card_is_said_to_be_damaged(text: str) -> None:
    with pytest.raises(SourceError, match=r"card/metrics\.json is damaged: it holds no model card"):
        ModelCard.from_json(text, "card/metrics.json")


def test_a_card_of_a_newer_format_is_refused_in_a_sentence() -> None:
    values = {**json.loads(make_card().to_json()), "format": CARD_FORMAT + 1}
    with pytest.raises(SourceError, match="format 2, and this atlasvi reads up to 1"):
        ModelCard.from_json(json.dumps(values))
