import re
import time

import pytest

from atlasvi.engine.service.patterns import check_pattern
from atlasvi.loaders.batches.obs_expression import list_patterns


@pytest.mark.parametrize(
    "pattern",
    [
        "B cell|NK cell", r"^D\d+_s\d+$", "T cell.*(naive|memory)", "(?i)t cell", "(?:ab)+", "[ab]+", r"\d{3}-\d{1,4}",
        "", "colou?r", "(a|b)+", "(?=T).*cell", "naive$",
    ],
)  # fmt: skip
def test_what_people_look_for_is_looked_for(pattern: str):
    check_pattern(pattern)


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+$", "(a*)*b", "(a|aa)+$", "(.*)*x", ".*.*.*.*x", "a?" * 25 + "a" * 25, r"(a+)\1\1$", "(?=(a+)+$)a",
        "((a{1,9}){1,9}){1,9}$", "(?:(?:a|ab)(?:c|bc))*$", "(a{0,5000}){0,5000}",
        r"(?:(?:\b){60000}){60000}", "(?:(?:(?=)){60000}){60000}", "(?:(?:){60000}){60000}",
    ],
)  # fmt: skip
def test_what_can_take_exponential_time_is_refused(pattern: str):
    with pytest.raises(ValueError, match="can take very long"):
        check_pattern(pattern)


def test_what_is_no_pattern_is_refused():
    with pytest.raises(ValueError, match="no regular expression"):
        check_pattern("(a")


@pytest.mark.parametrize("pattern", ["a*a*a*b", "(?:a|a)(?:a|a)a*a*b", ".*a.*a.*b"])
def test_the_worst_that_is_allowed_ends_soon(pattern: str):
    check_pattern(pattern)
    begun = time.process_time()
    assert not re.search(pattern, "a" * 64 + "c")
    assert time.process_time() - begun < 2


def test_patterns_of_an_expression_are_found():
    text = "`a b`.str.contains('x') and (c > 1 | d.str.contains(pat='y', flags=2)) and e.str.contains('z', regex=False)"
    assert list_patterns(text) == [("x", 0), ("y", 2)]
    assert list_patterns("cell type=B") == list_patterns("a ==") == []
