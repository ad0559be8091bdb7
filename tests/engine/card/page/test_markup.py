import pytest

from atlasvi.engine.card.page.markup import Markup, decimal, escape, join, tag


def test_text_in_elements_and_attributes_is_escaped_and_markup_is_not() -> None:
    assert tag("p", "a < b & c", title='"x" <y>') == '<p title="&quot;x&quot; &lt;y&gt;">a &lt; b &amp; c</p>'
    assert tag("p", tag("b", "<i>"), " and ", ["more", Markup("<br>")]) == "<p><b>&lt;i&gt;</b> and more<br></p>"


def test_markup_and_text_added_are_markup_in_which_the_text_is_escaped() -> None:
    added = Markup("<b>") + "<script>"
    assert isinstance(added, Markup)
    assert added == "<b>&lt;script&gt;"
    assert join(["<", Markup("<br>")], " & ") == "&lt; &amp; <br>"


def test_characters_that_are_not_printable_are_written_out() -> None:
    assert escape("a\x00b\u202ec\ud800") == "a\\x00b\\u202ec\\ud800"


def test_attributes_have_html_names_and_none_leaves_them_out() -> None:
    written = tag("input", class_="a", aria_label="b", checked=True, disabled=False, title=None, width=1.50)
    assert written == '<input class="a" aria-label="b" checked width="1.5">'


def test_a_name_of_an_attribute_that_is_none_is_refused() -> None:
    with pytest.raises(AssertionError, match="no name of an attribute"):
        tag("p", **{"a b": "c"})


@pytest.mark.parametrize(("number", "text"), [(1.0, "1"), (0.125, "0.12"), (-0.001, "0"), (1234.5, "1234.5")])
def test_coordinates_are_short(number: float, text: str) -> None:
    assert decimal(number) == text
