import dataclasses
import math

from atlasvi.engine.card.card_tables import (
    agreement_table,
    all_tables,
    calibration_table,
    expression_table,
    integration_table,
    losses_table,
    notes_table,
    verdict_table,
)
from atlasvi.engine.card.draw_errors import Estimate
from atlasvi.engine.card.model_card import PARTS
from tests.engine.card.cards import make_card

CARD = make_card(with_parts=PARTS)


def test_every_row_of_every_table_has_a_cell_for_each_column() -> None:
    for table in all_tables(CARD):
        assert {len(row) for row in table.rows} == {len(table.columns)}
        assert not table.groups or 1 + sum(n for _, n in table.groups) == len(table.columns)


def test_parts_are_columns_apart_and_errors_stand_beside_figures() -> None:
    table = agreement_table(CARD, "cell variation")
    assert table.columns == ("Figure", "Training", "Validation", "Test", "All cells")
    rows = {row[0]: row[1] for row in table.rows}
    assert rows["Mean absolute error"] == "1.270 ± 0.013"
    assert rows["Pearson correlation"] == "0.8400 ± 0.0084"
    assert rows["Squared Pearson correlation"] == "0.710 ± 0.010"


def test_a_figure_that_is_undefined_is_said_to_be() -> None:
    rows = {row[0]: row[1] for row in agreement_table(CARD, "gene zero_fraction").rows}
    assert rows["Pearson correlation"] == "undefined"


def test_a_figure_of_one_part_alone_leaves_the_others_empty() -> None:
    training = dataclasses.replace(CARD.parts["training"], losses={"kl": Estimate(20.0, math.nan)})
    card = dataclasses.replace(CARD, parts={"training": training, "test": CARD.parts["test"]})
    rows = {row[0]: row[1:] for row in losses_table(card).rows}
    assert rows["Reconstruction loss"] == ("–", "630.0 ± 6.3")
    assert rows["KL divergence"] == ("20.00", "20.00 ± 0.20")


def test_both_tests_of_a_label_stand_in_its_row_and_one_without_a_test_has_none() -> None:
    table = expression_table(CARD, "training")
    assert [n for _, n in table.groups] == [7, 7]
    rows = {row[0]: row for row in table.rows}
    assert rows["B cell"][:3] == ("B cell", "450", "0.9500 ± 0.0095")
    assert rows["B cell"][8:10] == ("50", "0.9500 ± 0.0095")
    assert set(rows["lonely cell"][2:8]) == {"–"}


def test_the_verdict_names_both_coefficients_of_variation() -> None:
    within, across = "across genes, within each cell", "across cells, for each gene"
    rows = verdict_table(CARD).rows
    assert rows[0] == ("Training", "900", within, "0.710 ± 0.010", "0.7300 ± 0.0073", "good")
    assert rows[1] == ("Training", "900", across, "0.350 ± 0.010", "0.8000 ± 0.0080", "do not use generated data")
    older = {name: dataclasses.replace(part, attainable={}) for name, part in CARD.parts.items()}
    assert verdict_table(dataclasses.replace(CARD, parts=older)).rows[0][4] == "–"


def test_calibration_has_a_row_for_each_interval_and_says_how_many_counts() -> None:
    rows = {row[0]: row[1] for row in calibration_table(CARD).rows}
    assert rows["0.333"] == "0.3100 ± 0.0020"
    assert rows["Counts compared"] == "123,456"


def test_integration_and_notes_say_what_they_are() -> None:
    assert integration_table(CARD).rows[0][0] == "Silhouette of labels"
    assert "500 cells, computed by atlasvi" in integration_table(CARD).caption
    assert notes_table(CARD).rows[0][0] == "differential expression"
    assert not integration_table(dataclasses.replace(CARD, integration=None)).rows
