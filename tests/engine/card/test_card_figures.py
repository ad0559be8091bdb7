from atlasvi.engine.card.card_figures import SAID_LABELS, explain_untested_labels

ONE = "it has one cell, and a variance needs two"


def test_a_label_without_a_test_among_all_cells_is_said_once_and_many_together():
    rare = {f"type {k}": ONE for k in range(SAID_LABELS + 2)}
    found = explain_untested_labels(
        {"training": {**rare, "lonely": ONE, "big": "no cell has another label"}, "all": {"lonely": ONE}}
    )
    assert [note.reason for note in found] == [
        "7 labels among training cells have no test: each has one cell, and a variance needs two "
        "('type 0', 'type 1', 'type 2', 'type 3', 'type 4' and 2 more).",
        "Label 'big' among training cells has no test: no cell has another label.",
        "Label 'lonely' has no test: it has one cell, and a variance needs two.",
    ]
    assert explain_untested_labels({}) == []
