"""The README.md of a hub repository: front matter that the hub reads, and the sections that its model cards have."""

import dataclasses
import json
import math
from collections.abc import Iterator
from string import punctuation
from typing import Any

from atlasvi.engine.card import card_tables, wording
from atlasvi.engine.card.card_tables import Table
from atlasvi.engine.card.model_card import Figures, ModelCard, PartFigures
from atlasvi.engine.card.number_text import write_bytes, write_seconds
from atlasvi.engine.model.trained_run import TrainedRun
from atlasvi.engine.scvi_tools.registry import write_init_params, write_registry
from atlasvi.engine.terminal import make_printable

MOST_LABELS = 60
NOT_PROVIDED = "Not provided by uploader"
NOT_COMPUTED = "Not computed: see what could not be computed, below."
_ESCAPES = str.maketrans({character: f"\\{character}" for character in punctuation if character not in ".,:-"})

SCVI = """\
scVI is a variational autoencoder of single-cell RNA-seq counts. It learns a latent space of few dimensions in which
technical batches are integrated; from it, denoised expression, differential expression and new counts can be computed.
It takes a matrix of raw counts, cells by genes.

- The method: [Lopez et al. 2018](https://www.nature.com/articles/s41592-018-0229-2).
- How pretrained models are used: [scvi-hub](https://www.biorxiv.org/content/10.1101/2024.03.01.582887v2), and the
  [user guide](https://docs.scvi-tools.org/en/stable/user_guide/models/scvi.html) of scvi-tools.
- New data can be mapped onto this model:
  [scArches](https://docs.scvi-tools.org/en/stable/tutorials/notebooks/scrna/scarches_scvi_tools.html).

This folder opens with `scvi.hub.HubModel` and with atlasvi. The figures below are in `metrics.json` as numbers, and
`card.html` shows them as a page."""


@dataclasses.dataclass(frozen=True)
class HubFacts:
    """What the README says beyond the card. None and '' are "Not provided by uploader".

    name                of the model, such as the repository's
    model_parameters, setup_arguments  of scvi-tools, plain values
    data_registry       by the keys of scvi-tools' registry: where each lies in the AnnData
    datasets            names of data sets on the hub
    data_in_folder      a sentence on what adata.h5ad holds
    summary_statistics  n_cells, n_batch and so on
    """

    name: str
    scvi_version: str
    anndata_version: str
    model_parameters: dict[str, Any]
    setup_arguments: dict[str, Any]
    data_registry: dict[str, Any]
    summary_statistics: dict[str, Any]
    data_is_minified: bool | None = None
    license: str | None = None
    description: str | None = None
    references: str | None = None
    training_data_url: str | None = None
    training_code_url: str | None = None
    modalities: tuple[str, ...] = ("rna",)
    tissues: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    data_in_folder: str = ""


def describe_model(run: TrainedRun, name: str, anndata_version: str, **said: Any) -> HubFacts:
    """The facts of a model as scvi-tools would know them, and what an uploader says: the other fields of HubFacts."""
    registry = write_registry(run.setup, run.model.settings, run.genes)
    arguments = write_init_params(run.model.settings)
    fields = registry["field_registries"]
    return HubFacts(
        name=name,
        scvi_version=registry["scvi_version"],
        anndata_version=anndata_version,
        model_parameters={**arguments["non_kwargs"], **arguments["kwargs"]["kwargs"]},
        setup_arguments=registry["setup_args"],
        data_registry={key: _place(**each["data_registry"]) for key, each in fields.items() if each["data_registry"]},
        summary_statistics={key: n for each in fields.values() for key, n in each["summary_stats"].items()},
        **said,
    )


def _place(attr_name: str, attr_key: str | None) -> str:
    return f"adata.{attr_name}" if attr_key is None else f"adata.{attr_name}[{attr_key!r}]"


def make_readme(card: ModelCard, facts: HubFacts) -> str:
    """The text of README.md. Whatever names hold, it is valid YAML and Markdown in which they are only text.

    It has the `MOST_LABELS` labels with most cells; all are in metrics.json.
    """
    card = dataclasses.replace(card, parts={name: _shorten(part) for name, part in card.parts.items()})
    sections = [_front_matter(card, facts), SCVI, "# Model Description", _paragraph(facts.description)]
    sections += ["# Metrics", *_metrics(card), "# Model Properties", *_properties(facts)]
    sections += ["# Training", *_training(card, facts), "# References", _paragraph(facts.references)]
    return "\n\n".join(sections) + "\n"


def _shorten(part: PartFigures) -> PartFigures:
    return dataclasses.replace(part, labels=part.labels[:MOST_LABELS])


def _front_matter(card: ModelCard, facts: HubFacts) -> str:
    """YAML of JSON's scalars, which are YAML whatever the text holds."""
    tags = ["biology", "genomics", "single-cell", "model_cls_name:SCVI"]
    tags += [f"scvi_version:{facts.scvi_version}", f"anndata_version:{facts.anndata_version}"]
    tags += [*(f"modality:{each}" for each in facts.modalities), *(f"tissue:{each}" for each in facts.tissues)]
    tags.append(f"annotated:{card.provenance.label_column is not None}")
    values: dict[str, Any] = {"license": facts.license} if facts.license else {}
    values |= {"library_name": "scvi-tools", "tags": tags}
    if facts.datasets:
        values["datasets"] = list(facts.datasets)
    values["model-index"] = [{"name": facts.name, "results": list(_results(card))}]
    return "\n".join(["---", *_yaml(values), "---"])


def _results(card: ModelCard) -> Iterator[dict[str, Any]]:
    """A result per part of the cells, as the hub's model-index has them; figures that are undefined are left out."""
    for name, part in card.parts.items():
        figures: dict[str, Figures] = {
            **{f"cell-wise {quantity}": each for quantity, each in part.cells.items()},
            **{f"gene-wise {quantity}": each for quantity, each in part.genes.items()},
            **{f"differential expression, Welch, {each.label}": each.welch for each in part.labels},
            **{f"differential expression, Wilcoxon, {each.label}": each.wilcoxon for each in part.labels},
            "loss": part.losses,
        }
        for verdict in card.verdicts:
            if verdict.part == name:
                kind = f"{verdict.block.removesuffix('s')}-wise variation"
                figures[kind] = {**figures.get(kind, {}), "squared_pearson": verdict.squared_pearson}
        if part.calibration is not None:
            figures["credible intervals"] = {"calibration_error": part.calibration.error}
        if name == "all" and card.integration is not None:
            figures["integration"] = card.integration.figures
        metrics = [
            {
                "type": kind,
                "value": float(figure.value),
                "name": f"{subject}: {kind}",
                **({"args": {"standard_error": float(figure.error)}} if math.isfinite(figure.error) else {}),
            }
            for subject, each in figures.items()
            for kind, figure in each.items()
            if math.isfinite(figure.value)
        ]
        if metrics:
            # without the path, which says nothing to others
            dataset = {"type": "single-cell-rna-seq", "name": card.provenance.data_name, "split": name}
            task = {"type": "posterior-predictive-check", "name": "Generated against real counts"}
            yield {"task": task, "dataset": dataset, "metrics": metrics}


def _yaml(value: Any, indent: str = "") -> Iterator[str]:
    """The lines of dictionaries and lists in YAML's block style; scalars as in JSON, keys as they are."""
    if isinstance(value, dict):
        for key, each in value.items():
            if isinstance(each, dict | list):
                yield f"{indent}{key}:"
                yield from _yaml(each, f"{indent}  ")
            else:
                yield f"{indent}{key}: {_scalar(each)}"
    else:
        for each in value:
            if isinstance(each, dict | list):
                first, *rest = _yaml(each, f"{indent}  ")
                yield f"{indent}- {first.lstrip()}"
                yield from rest
            else:
                yield f"{indent}- {_scalar(each)}"


def _scalar(value: Any) -> str:
    if isinstance(value, float):  # 1e-05 would be text in YAML 1.1, which wants a dot
        return repr(value) if "e" not in repr(value) or "." in repr(value) else repr(value).replace("e", ".0e")
    return json.dumps(make_printable(value) if isinstance(value, str) else value)


def _metrics(card: ModelCard) -> Iterator[str]:
    yield wording.DRAWS
    yield wording.AGREEMENT_TEXT
    yield wording.THRESHOLD_ADVICE
    if any(part.attainable for part in card.parts.values()):
        yield wording.ATTAINABLE_TEXT
    yield _markdown(card_tables.verdict_table(card))
    variation = ["cell variation", "gene variation"]
    yield from _details("Coefficient of variation", _quantities(card, variation))
    yield from _details("Differential expression", _expression(card))
    others = [name for name in wording.QUANTITIES if name not in variation]
    yield from _details("Library size, genes expressed and zero fraction", _quantities(card, others))
    calibration = [wording.CALIBRATION_TEXT, _markdown(card_tables.calibration_table(card))]
    yield from _details("Calibration of credible intervals", calibration)
    yield from _details("Held-out ELBO", [wording.LOSSES_TEXT, _markdown(card_tables.losses_table(card))])
    integrated = card_tables.integration_table(card)
    integration = [wording.INTEGRATION_TEXT, f"**{_escape(integrated.caption)}**", _markdown(integrated)]
    yield from _details("Integration", integration)
    if card.notes:
        yield from _details("What could not be computed", [_markdown(card_tables.notes_table(card))])


def _quantities(card: ModelCard, names: list[str]) -> Iterator[str]:
    for name in names:
        yield f"**{wording.QUANTITIES[name][0]}.** {wording.QUANTITIES[name][1]}"
        yield _markdown(card_tables.agreement_table(card, name))


def _expression(card: ModelCard) -> Iterator[str]:
    yield wording.EXPRESSION_TEXT
    yield wording.MARKERS_TEXT
    if any(len(part.labels) == MOST_LABELS for part in card.parts.values()):
        yield f"Here are the {MOST_LABELS} labels with most cells; `metrics.json` has all."
    tables = [card_tables.expression_table(card, part) for part in card.parts]
    if not any(table.rows for table in tables):
        yield NOT_COMPUTED
    for table in tables:
        for part in card_tables.split_groups(table) if table.rows else ():
            yield f"**{_escape(part.caption)}**"
            yield _markdown(part)


def _properties(facts: HubFacts) -> Iterator[str]:
    yield from _details("Model Parameters", ["Settings of the model:", _json(facts.model_parameters)])
    yield from _details("Setup Data Arguments", ["Arguments of `setup_anndata`:", _json(facts.setup_arguments)])
    rows = tuple((key, _text(place)) for key, place in facts.data_registry.items())
    registry = Table("", ("Registry key", "Place in AnnData"), rows)
    minified = NOT_PROVIDED if facts.data_is_minified is None else str(facts.data_is_minified)
    yield from _details("Data Registry", [_markdown(registry), f"- **Data is Minified**: {minified}"])
    statistics = tuple((key, _text(value)) for key, value in facts.summary_statistics.items())
    yield from _details("Summary Statistics", [_markdown(Table("", ("Summary statistic", "Value"), statistics))])


def _training(card: ModelCard, facts: HubFacts) -> Iterator[str]:
    origin = card.provenance
    if facts.data_in_folder:
        yield _escape(facts.data_in_folder)
    yield f"**Training data url**: {_paragraph(facts.training_data_url)}"
    yield f"**Training code url**: {_paragraph(facts.training_code_url)}"
    values = {
        "Data": origin.data,
        "Cells": f"{origin.n_cells:,}",
        "Genes": f"{origin.n_genes:,}",
        "Hash of the counts": origin.counts_hash,
        "SHA-256 of the gene names, 16 digits": origin.genes_sha256,
        "SHA-256 of the weights, 16 digits": origin.weights_sha256,
        "Draws": f"{origin.n_draws:,}",
        "Seed of the draws": str(origin.seed),
        "Hardware": origin.hardware,
        "Time for the card": f"{write_seconds(origin.seconds)}, {origin.cells_per_s:,.0f} cells/s",
        "Peak memory": write_bytes(origin.peak_memory_bytes),
        "Command": origin.command,
        "Created": origin.created,
    }
    rows = tuple((key, value or "unknown") for key, value in values.items())
    yield from _details(
        "Provenance", [_markdown(Table("", ("What", "Value"), rows)), "Training:", _json(origin.training)]
    )
    yield from _details(
        "Split, sources and versions",
        [_json({"split": origin.split, "sources": origin.sources, "versions": origin.versions})],
    )


def _details(title: str, content: Any) -> Iterator[str]:
    yield f"<details>\n<summary><strong>{title}</strong></summary>"
    yield from content
    yield "</details>"


def _markdown(table: Table) -> str:
    if not table.rows:
        return NOT_COMPUTED
    groups = [""] + [title for title, n in table.groups for _ in range(n)]
    columns = (
        [f"{group}: {name}" if group else name for group, name in zip(groups, table.columns, strict=True)]
        if table.groups
        else list(table.columns)
    )
    lines = [columns, ["---"] * len(columns), *table.rows]
    return "\n".join(
        "| " + " | ".join(cell if k == 1 else _escape(cell) for cell in line) + " |" for k, line in enumerate(lines)
    )


def _escape(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return make_printable(text).translate(_ESCAPES)


def _paragraph(text: str | None) -> str:
    """What an uploader wrote, as Markdown of theirs on as many lines as it has."""
    return text.strip() if text and text.strip() else NOT_PROVIDED


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _json(values: dict[str, Any]) -> str:
    """A block of JSON. Its strings are ASCII and on one line, so a fence is never closed by them: a line starts with a
    quote, a brace or a digit."""
    return f"```json\n{json.dumps(values, indent=2, default=str)}\n```"
