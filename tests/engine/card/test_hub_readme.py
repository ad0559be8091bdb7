import dataclasses
import math
import re
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt

from atlasvi.engine.card.draw_errors import Estimate
from atlasvi.engine.card.hub_readme import MOST_LABELS, HubFacts, describe_model, make_readme
from atlasvi.engine.card.model_card import PARTS, ModelCard
from atlasvi.engine.model.covariates import Setup
from atlasvi.engine.model.model_options import ModelSettings
from atlasvi.engine.model.trained_run import TrainedRun
from atlasvi.engine.model.vae import VAE
from atlasvi.engine.terminal import make_printable
from tests.engine.card.cards import make_card
from tests.engine.card.page.test_page import CARDS, HOSTILE

FACTS = HubFacts(
    name="atlas",
    scvi_version="1.5.1",
    anndata_version="0.12.0",
    model_parameters={"n_hidden": 128},
    setup_arguments={"batch_key": "batch", "layer": None},
    data_registry={"X": {"attr_name": "layers", "attr_key": "counts"}},
    summary_statistics={"n_cells": 1000, "n_batch": 2},
    data_is_minified=True,
    license="cc-by-4.0",
    tissues=("liver",),
)
HOSTILE_YAML = (
    'a: "b" # c',
    "---",
    "!!python/object/apply:os.system [ls]",
    "*alias",
    "- x\n- y",
    "yes",
    "1e5",
    "",
    *HOSTILE,
)


def _front_matter(text: str) -> dict[str, Any]:
    start, values, _ = text.split("---\n", 2)
    assert start == ""
    return yaml.safe_load(values)


def _metrics(text: str) -> dict[str, dict[str, Any]]:
    (index,) = _front_matter(text)["model-index"]
    return {
        result["dataset"]["split"]: {each["name"]: each for each in result["metrics"]} for result in index["results"]
    }


def _render(text: str) -> str:
    return MarkdownIt("commonmark").enable("table").render(text.split("---\n", 2)[2])


def test_the_front_matter_is_the_hubs() -> None:
    values = _front_matter(make_readme(make_card(), FACTS))
    assert values["license"] == "cc-by-4.0"
    assert values["library_name"] == "scvi-tools"
    assert values["tags"] == [
        "biology",
        "genomics",
        "single-cell",
        "model_cls_name:SCVI",
        "scvi_version:1.5.1",
        "anndata_version:0.12.0",
        "modality:rna",
        "tissue:liver",
        "annotated:True",
    ]
    assert "annotated:False" in _front_matter(make_readme(make_card(with_labels=False), FACTS))["tags"]


def test_the_model_index_holds_all_figures_as_numbers_by_part() -> None:
    metrics = _metrics(make_readme(make_card(with_parts=PARTS), FACTS))
    assert set(metrics) == set(PARTS)
    pearson = metrics["validation"]["cell-wise variation: pearson"]
    assert (pearson["type"], pearson["value"], pearson["args"]) == ("pearson", 0.84, {"standard_error": 0.0084})
    assert metrics["training"]["cell-wise variation: squared_pearson"]["value"] == 0.71
    assert metrics["training"]["differential expression, Welch, B cell: gene_f1"]["value"] == 0.95
    assert metrics["training"]["differential expression, Wilcoxon, B cell: gene_f1"]["value"] == 0.95
    assert metrics["test"]["loss: elbo"]["value"] == -650.0
    assert metrics["all"]["integration: silhouette_label"]["value"] == 0.55
    assert all(isinstance(each["value"], float) for part in metrics.values() for each in part.values())


def test_figures_that_are_undefined_are_left_out_of_the_model_index() -> None:
    metrics = _metrics(make_readme(make_card(), FACTS))
    assert "gene-wise zero_fraction: mae" in metrics["training"]
    assert "gene-wise zero_fraction: pearson" not in metrics["training"]


@pytest.mark.parametrize("value", [1e-07, 1.5e300, 123456789.125, -0.25, 3.0])
def test_numbers_are_the_same_when_yaml_is_read(value: float) -> None:
    card = make_card(with_parts=("all",))
    part = dataclasses.replace(card.parts["all"], losses={"elbo": Estimate(value, math.nan)})
    metrics = _metrics(make_readme(dataclasses.replace(card, parts={"all": part}), FACTS))
    assert metrics["all"]["loss: elbo"]["value"] == value


@pytest.mark.parametrize("name", HOSTILE_YAML)
def test_any_name_is_one_scalar_of_the_front_matter(name: str) -> None:
    card = make_card()
    card = dataclasses.replace(card, provenance=dataclasses.replace(card.provenance, data=name))
    values = _front_matter(
        make_readme(card, dataclasses.replace(FACTS, name=name, tissues=(name,), license=name or None))
    )
    (index,) = values["model-index"]
    assert isinstance(index["name"], str)
    assert index["results"][0]["dataset"]["name"] == make_printable(card.provenance.data_name)
    assert f"tissue:{index['name']}" in values["tags"]
    if name.isprintable():
        assert index["name"] == name


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
def test_all_sections_of_the_hubs_cards_are_there_whatever_is_missing(card: ModelCard) -> None:
    text = make_readme(card, FACTS)
    headings = re.findall("^# .*$", text, re.MULTILINE)
    assert headings == ["# Model Description", "# Metrics", "# Model Properties", "# Training", "# References"]
    blocks = re.findall("<summary><strong>(.*)</strong></summary>", text)
    assert [block for block in blocks if block in ("Coefficient of variation", "Differential expression")]
    assert {"Model Parameters", "Setup Data Arguments", "Data Registry", "Summary Statistics"} <= set(blocks)
    assert text.count("<details>") == text.count("</details>") == len(blocks)


def test_what_the_uploader_did_not_say_is_said_to_be_missing() -> None:
    text = make_readme(make_card(), dataclasses.replace(FACTS, license=None, data_is_minified=None))
    for name in ("**Training data url**", "**Training code url**", "- **Data is Minified**"):
        assert f"{name}: Not provided by uploader" in text
    assert text.count("\n\nNot provided by uploader\n") == 2  # the description and the references
    assert "license" not in _front_matter(text)


def test_what_the_uploader_said_stands_there() -> None:
    said = dict(description="A *liver* atlas.", references="Someone 2026", training_data_url="https://example.org/a")
    text = make_readme(make_card(), dataclasses.replace(FACTS, **said))
    assert "# Model Description\n\nA *liver* atlas.\n" in text
    assert text.endswith("# References\n\nSomeone 2026\n")
    assert "**Training data url**: https://example.org/a" in text


def test_the_texts_say_what_is_computed() -> None:
    text = make_readme(make_card(), FACTS)
    assert "Welch's t-test uses all cells" in text
    assert "Wilcoxon's rank-sum test uses a stratified sample" in text
    assert "not squared unless it is said" in text
    assert "squared Pearson correlation of 0.4" in text
    assert "across its genes" in text


def test_hostile_names_are_text_in_the_rendered_markdown() -> None:
    facts = dataclasses.replace(
        FACTS,
        data_registry={each: each for each in HOSTILE},
        summary_statistics={"a | b\n```": "```\n| c"},
        model_parameters={each: list(HOSTILE) for each in (*HOSTILE, "```\n<img>")},
    )
    rendered = _render(make_readme(CARDS["hostile names"], facts))
    for opening in ("<script", "<img", "<svg", "<style"):
        assert opening not in rendered
    tables = re.findall("<table>.*?</table>", rendered, re.DOTALL)
    for table in tables:
        widths = {len(re.findall("<t[hd]", row)) for row in re.findall("<tr>.*?</tr>", table, re.DOTALL)}
        assert len(widths) == 1
    assert "a | b\\n```" in rendered


def test_figures_stand_in_tables_by_part() -> None:
    rendered = _render(make_readme(make_card(with_parts=PARTS), FACTS))
    text = re.sub("<[^>]*>", " ", rendered)
    assert re.search(r"Figure\s+Training\s+Validation\s+Test\s+All cells", text)
    assert re.search(r"Pearson correlation\s+0\.8400 ± 0\.0084", text)
    assert "Differential expression by label: Test (50 cells). Welch’s t-test, all cells" in text
    assert re.search(r"Label\s+Cells sampled\s+Overlap of top genes", text)


def test_the_labels_with_most_cells_are_in_the_readme_and_it_says_that_there_are_more() -> None:
    card = make_card(with_parts=("all",))
    labels = tuple(dataclasses.replace(card.parts["all"].labels[0], label=f"type {k}") for k in range(MOST_LABELS + 1))
    text = make_readme(
        dataclasses.replace(card, parts={"all": dataclasses.replace(card.parts["all"], labels=labels)}), FACTS
    )
    assert f"| type {MOST_LABELS - 1} |" in text
    assert f"type {MOST_LABELS}" not in text
    assert "labels with most cells; `metrics.json` has all." in text


def test_a_model_is_described_as_scvi_tools_does() -> None:
    settings = ModelSettings(n_genes=3, n_latent=4, n_batches=2, var_activation="softplus")
    setup = Setup.from_saved({"batch_key": "donor", "batch_categories": ["a", "b"], "layer": "counts"})
    facts = describe_model(TrainedRun(VAE(settings), list("abc"), setup), "atlas", "0.12.0", description="Said.")
    assert facts.model_parameters["n_latent"] == 4
    assert facts.setup_arguments["batch_key"] == "donor"
    assert facts.data_registry["X"] == "adata.layers['counts']"
    assert facts.data_registry["batch"] == "adata.obs['_scvi_batch']"
    assert facts.summary_statistics["n_batch"] == 2
    text = make_readme(make_card(), facts)
    assert '"var_activation": "Softplus' in text
    assert "# Model Description\n\nSaid.\n" in text
