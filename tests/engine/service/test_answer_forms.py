import numpy as np
import pandas as pd
import pytest

from atlasvi.engine.queries.answer_tables import make_frames_table
from atlasvi.engine.queries.question import Answer
from atlasvi.engine.queries.question_cells import QueryError
from atlasvi.engine.service.answer_forms import ARROW, CSV, JSON, TooLarge, choose_form, collect_values
from atlasvi.engine.service.limits import Limits


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ("", JSON),
        ("*/*", JSON),
        ("text/html,application/xhtml+xml,*/*;q=0.8", JSON),
        ("text/*", CSV),
        (ARROW, ARROW),
        (f"{JSON};q=0.5, {ARROW}", ARROW),
        (f"{JSON};q=0, {CSV};q=0.1", CSV),
        ("image/png", None),
        (f"{CSV};q=high", None),
    ],
)
def test_the_form_is_the_one_that_is_accepted_most(accept: str, form: str | None):
    assert choose_form(accept) == form


def answer(**columns: object) -> Answer:
    table = pd.DataFrame(columns)
    table.index = pd.Index([f"r{k}" for k in range(len(table))], name="row")
    return Answer(make_frames_table(iter([table.iloc[:2], table.iloc[2:]]), "row"), len(table))


def test_values_that_json_has_not_are_null_or_text():
    found = collect_values(
        answer(
            x=[1.5, np.nan, np.inf, -np.inf],
            n=[1, 2, 3, 4],
            t=[True, False, True, True],
            word=["a", None, "c", "=1+1"],
            kind=pd.Categorical(["u", "v", None, "u"]),
            gaps=pd.array([1, None, 3, 4], dtype="Int64"),
        ),
        Limits(),
    )
    assert found["columns"] == {
        "row": ["r0", "r1", "r2", "r3"],
        "x": [1.5, None, "Infinity", "-Infinity"],
        "n": [1, 2, 3, 4],
        "t": [True, False, True, True],
        "word": ["a", None, "c", "=1+1"],
        "kind": ["u", "v", None, "u"],
        "gaps": [1, None, 3, 4],
    }
    assert found["n_rows"] == 4


def test_two_columns_of_one_name_are_refused():
    with pytest.raises(QueryError, match="Two columns"):
        collect_values(answer(row=[1]), Limits())


def test_an_answer_with_too_many_values_for_json_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Limits, "json_values", 7)
    with pytest.raises(TooLarge, match="more than 7 values"):
        collect_values(answer(x=[1.0, 2, 3, 4]), Limits())
