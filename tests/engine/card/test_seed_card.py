"""Every section and row of the hub's seed card (Tabula Sapiens: 20,259 cells, 3,000 genes, 12 labels) has one of ours.

Its rows are those that scvi-tools 1.5.1 writes; the card here is of a small model, with the same sections.
"""

import json
import re
from pathlib import Path

import pytest
import yaml

from atlasvi.engine.card.model_card import METRICS, ModelCard
from atlasvi.engine.hub.card_folder import write_card_folder

SAID = "Not provided by uploader"
SECTIONS = ("Model Description", "Metrics", "Model Properties", "Training", "References")
BLOCKS = (
    "Coefficient of variation",
    "Differential expression",
    "Model Parameters",
    "Setup Data Arguments",
    "Data Registry",
    "Summary Statistics",
)
AGREEMENT = {
    "Mean absolute error": "mae",
    "Pearson correlation": "pearson",
    "Spearman correlation": "spearman",
    "R² with the drawn values as the reference": "r2",
}
VARIATION = {
    "Coefficient of variation of each cell, across its genes.": ("cells", ("Training", "Validation")),
    "Coefficient of variation of each gene, across cells.": ("genes", ("All cells",)),
}
EXPRESSION = ("gene_f1", "lfc_mae", "lfc_pearson", "lfc_spearman", "roc_auc", "pr_auc")
PARAMETERS = (
    "n_hidden",
    "n_latent",
    "n_layers",
    "dropout_rate",
    "dispersion",
    "gene_likelihood",
    "use_observed_lib_size",
    "latent_distribution",
)
SETUP = (
    "layer",
    "batch_key",
    "labels_key",
    "size_factor_key",
    "categorical_covariate_keys",
    "continuous_covariate_keys",
)
REGISTRY = ("X", "batch", "labels", "latent_qzm", "latent_qzv", "minify_type", "observed_lib_size")
STATISTICS = (
    "n_batch",
    "n_cells",
    "n_extra_categorical_covs",
    "n_extra_continuous_covs",
    "n_labels",
    "n_latent_qzm",
    "n_latent_qzv",
    "n_vars",
)
TAGS = ("biology", "genomics", "single-cell", "model_cls_name:SCVI", "modality:rna", "annotated:True")
METADATA = {"scvi_version", "anndata_version", "model_cls_name", "training_data_url", "model_parent_module"}


@pytest.fixture(scope="module")
def ours(folder: Path, tmp_path_factory) -> Path:
    """The folder of our card."""
    out = tmp_path_factory.mktemp("seed") / "card"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("atlasvi.engine.card.make_card.place_cells", lambda latent, seed: ("PCA", latent[:, :2]))
        write_card_folder(folder / "run", folder / "data.h5ad", out, labels_key="type", n_draws=2)
    return out


def read_blocks(text: str) -> dict[str, str]:
    """The parts of the README that open, by their titles."""
    found = re.findall(r"<summary><strong>(.*?)</strong></summary>(.*?)</details>", text, re.DOTALL)
    return dict(found)


def read_rows(markdown: str) -> dict[str, list[str]]:
    """The rows of a table of Markdown by their first cell."""
    lines = [line.strip("| ").split(" | ") for line in markdown.splitlines() if line.startswith("| ")]
    return {line[0].replace("\\", ""): line[1:] for line in lines}


def test_the_sections_and_the_front_matter_are_those_of_the_seed_card(ours: Path):
    text = (ours / "README.md").read_text("utf-8")
    _, front, body = text.split("---\n", 2)
    known = yaml.safe_load(front)
    assert known["library_name"] == "scvi-tools"
    assert set(TAGS) <= set(known["tags"])
    assert {tag.partition(":")[0] for tag in known["tags"]} >= {"scvi_version", "anndata_version"}
    assert re.findall("^# (.*)$", body, re.MULTILINE) == list(SECTIONS)
    assert body.lstrip().startswith("scVI is a variational autoencoder")
    assert set(BLOCKS) <= set(read_blocks(body))
    for line in ("**Training data url**", "**Training code url**"):
        assert f"{line}: {SAID}" in body
    assert json.loads((ours / "_scvi_required_metadata.json").read_text()).keys() == METADATA
    assert {"model.pt", "adata.h5ad", METRICS} <= {file.name for file in ours.iterdir()}


def test_every_figure_of_its_three_blocks_has_ours(ours: Path):
    blocks = read_blocks((ours / "README.md").read_text("utf-8"))
    card = ModelCard.from_json((ours / METRICS).read_text("utf-8"))
    names = {"Training": "training", "Validation": "validation", "All cells": "all"}
    for title, (block, parts) in VARIATION.items():
        rows = read_rows(blocks["Coefficient of variation"].split(f"**{title}**")[1].split("**")[0])
        for row, figure in AGREEMENT.items():
            for part in parts:
                shown = rows[row][rows["Figure"].index(part)].replace("−", "-")
                value = getattr(card.parts[names[part]], block)["variation"][figure].value
                assert float(shown.split(" ±")[0]) == pytest.approx(value, rel=0.05)
    shown = blocks["Differential expression"].split("All cells \\(120 cells\\). Welch")[1].split("**")[1]
    labels = card.parts["all"].labels
    sizes = [each.n_cells for each in labels]
    assert sizes == sorted(sizes, reverse=True)
    rows = read_rows(shown)
    for each in labels:
        assert tuple(each.welch) == EXPRESSION
        assert rows[each.label][0] == f"{each.n_cells:,}"
        assert len(rows[each.label]) == 1 + len(EXPRESSION)


def test_every_row_of_its_model_properties_has_ours(ours: Path):
    blocks = read_blocks((ours / "README.md").read_text("utf-8"))
    parameters, setup = (
        json.loads(blocks[name].split("```json")[1].split("```")[0])
        for name in ("Model Parameters", "Setup Data Arguments")
    )
    assert set(PARAMETERS) <= set(parameters)
    assert set(SETUP) <= set(setup)
    assert set(REGISTRY) <= set(read_rows(blocks["Data Registry"]))
    assert "- **Data is Minified**: True" in blocks["Data Registry"]
    statistics = read_rows(blocks["Summary Statistics"])
    assert set(STATISTICS) <= set(statistics)
    assert (statistics["n_cells"], statistics["n_vars"], statistics["n_batch"]) == (["120"], ["20"], ["2"])
