"""card.html: a model's card as one page that needs no network and no script.

markup       elements in which all text is escaped
palette      colours in light and dark
axes, charts, latent_map  pictures as SVG
elements, figures, sections  the parts of the page
style.css    how it looks on a phone, on wide screens and on paper
"""

from importlib.resources import files

from atlasvi.engine.card.model_card import ModelCard
from atlasvi.engine.card.page import sections
from atlasvi.engine.card.page.latent_map import choosing_rules
from atlasvi.engine.card.page.markup import Markup, tag
from atlasvi.engine.card.page.palette import colour_rules

PAGE = "card.html"

SECTIONS = {
    "verdict": ("Verdict", sections.verdict),
    "training": ("Training", sections.training),
    "latent-space": ("Latent space", sections.latent_space),
    "generated-counts": ("Generated counts", sections.generated_counts),
    "expression": ("Differential expression", sections.expression),
    "calibration": ("Calibration", sections.calibration),
    "integration": ("Integration", sections.integration),
    "missing": ("Not computed", sections.missing),
    "provenance": ("Provenance", sections.provenance),
}


def make_page(card: ModelCard, title: str | None = None) -> str:
    """The text of card.html. title: the heading; if None, it names the model's data."""
    title = title or name_model(card)
    links = [tag("li", tag("a", name, href=f"#{key}")) for key, (name, _) in SECTIONS.items()]
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content="default-src 'none'; style-src 'unsafe-inline'"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{title}: model card"),
        tag("style", _style()),
    )
    header = tag(
        "header",
        tag("p", "Model card", class_="eyebrow"),
        tag("h1", title),
        tag("p", f"{card.provenance.model}, on {card.provenance.data}", class_="soft path"),
        sections.facts(card),
    )
    body = tag(
        "body",
        tag("a", "Skip to the card", href="#card", class_="skip"),
        header,
        tag("nav", tag("ul", links), aria_label="Sections"),
        tag("main", [make(card) for _, make in SECTIONS.values()], id="card", tabindex="-1"),
        tag("footer", tag("p", "All figures are in metrics.json as numbers. Made by atlasvi.")),
    )
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def name_model(card: ModelCard) -> str:
    """'Model of atlas.h5ad', for the data '/data/atlas.h5ad::layer=counts'."""
    return f"Model of {card.provenance.data_name}"


def _style() -> Markup:
    """Our own CSS, which holds no text from data."""
    text = files(__package__).joinpath("style.css").read_text("utf-8")
    return Markup("\n".join([colour_rules(), text, choosing_rules()]))
