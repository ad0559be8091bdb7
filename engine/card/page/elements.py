"""Parts of the page that every section uses: tables, figures, paragraphs."""

from collections.abc import Sequence

from atlasvi.engine.card.card_tables import Table
from atlasvi.engine.card.page.markup import Content, Markup, tag


def paragraph(*content: Content, class_: str | None = None) -> Markup:
    """A paragraph."""
    return tag("p", *content, class_=class_)


def html_table(table: Table, words: bool = False) -> Markup:
    """The table, in a box that scrolls sideways where it is too wide, also by keyboard; '' without rows.

    words  its columns are text rather than numbers
    """
    if not table.rows:
        return Markup("")
    head = []
    if table.groups:
        spans = [
            (tag("th", title, scope="colgroup", colspan=str(n)) if title else tag("td")) for title, n in table.groups
        ]
        head.append(tag("tr", tag("td"), spans))
    head.append(tag("tr", [tag("th", name, scope="col") if name else tag("td") for name in table.columns]))
    body = [
        tag(
            "tr",
            tag("th", row[0], scope="row"),
            [tag("td", cell or "–", class_="figure" if "±" in cell else None) for cell in row[1:]],
        )
        for row in table.rows
    ]
    grouped = [
        tag("colgroup"),
        *(tag("colgroup", span=str(n)) for _, n in table.groups),
    ]
    inner = tag(
        "table",
        tag("caption", tag("span", table.caption)),
        grouped if table.groups else [],
        tag("thead", head),
        tag("tbody", body),
        class_="words" if words else None,
    )
    return tag("div", inner, class_="scroll", role="region", aria_label=f"Table: {table.caption}", tabindex="0")


def figure(title: str, *content: Content) -> Markup:
    """A figure with a caption above it."""
    return tag("figure", tag("figcaption", title), *content)


def charts(figures: Sequence[Content]) -> Markup:
    """Figures beside each other, as many as there is room for."""
    return tag("div", *figures, class_="charts") if figures else Markup("")


def section(name: str, title: str, *content: Content) -> Markup:
    """A section of the page, whose heading names it."""
    return tag("section", tag("h2", title, id=f"{name}-title"), *content, id=name, aria_labelledby=f"{name}-title")
