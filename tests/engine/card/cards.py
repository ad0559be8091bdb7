"""A small made-up card: every field has a value, figures are plausible, and some are undefined or missing."""

import math

import numpy as np

from atlasvi.engine.card.draw_errors import Estimate
from atlasvi.engine.card.model_card import (
    Calibration,
    CalibrationPoint,
    Colouring,
    Density,
    Figures,
    Integration,
    LabelFigures,
    LatentPicture,
    ModelCard,
    Note,
    PartFigures,
    Provenance,
    Verdict,
)

LABELS = ("B cell", "T cell", "Kupffer <cell> & co", "lonely cell")


def make_card(with_labels: bool = True, with_parts: tuple[str, ...] = ("training", "validation", "all")) -> ModelCard:
    """A card of 1,000 cells and 200 genes; labels, two batches, and these parts."""
    sizes = {"training": 900, "validation": 100, "test": 50, "all": 1000}
    parts = {name: _make_part(sizes[name], with_labels) for name in with_parts}
    verdicts = tuple(
        Verdict(name, block, Estimate(squared, 0.01), words)
        for name in parts
        for block, squared, words in (("cells", 0.71, "good"), ("genes", 0.35, "do not use generated data"))
    )
    notes = [Note("differential expression", "Label 'lonely cell' has one cell, and a variance needs two.")]
    if not with_labels:
        notes = [Note("differential expression", "There are no labels: give --labels-key COLUMN.")]
    return ModelCard(
        provenance=_make_provenance(with_labels),
        parts=parts,
        verdicts=verdicts,
        integration=Integration(
            {"silhouette_label": Estimate(0.55, 0.01), "batch_entropy": Estimate(0.8, math.nan)},
            {
                "silhouette_label": "Silhouette width of labels, scaled to 0 to 1.",
                "batch_entropy": "Entropy of the batches among neighbours, divided by the largest possible one.",
            },
            500,
            "atlasvi",
        ),
        training_curves={
            "epoch": (0.0, 1.0, 2.0),
            "train_elbo": (900.0, 700.5, 650.25),
            "validation_elbo": (880.0, math.nan, 660.0),
        },
        picture=_make_picture(with_labels),
        notes=tuple(notes),
    )


def _make_figures(**values: float) -> Figures:
    return {name: Estimate(value, abs(value) / 100) for name, value in values.items()}


def _make_agreement() -> Figures:
    return {**_make_figures(mae=1.27, pearson=0.84, spearman=0.82, r2=0.64)}


def _make_part(n_cells: int, with_labels: bool) -> PartFigures:
    markers = _make_figures(gene_f1=0.95, lfc_mae=0.41, lfc_pearson=0.84, lfc_spearman=0.98, roc_auc=0.36, pr_auc=0.92)
    sizes = (n_cells // 2, n_cells // 4, n_cells // 4 - 1, 1)
    labels = tuple(
        LabelFigures(name, n, markers if n > 1 else {}, markers if n > 1 else {}, min(n, 50))
        for name, n in zip(LABELS, sizes)
    )
    points = tuple(
        CalibrationPoint(expected, Estimate(observed, 0.002)) for expected, observed in ((1 / 3, 0.31), (2 / 3, 0.64))
    )
    names = ("cell variation", "cell library", "cell expressed", "gene variation", "gene zero_fraction")
    return PartFigures(
        n_cells=n_cells,
        cells={name: _make_agreement() for name in ("variation", "library", "expressed")},
        genes={
            "variation": _make_agreement(),
            "zero_fraction": {**_make_agreement(), "pearson": Estimate(math.nan, math.nan)},
        },
        labels=labels if with_labels else (),
        n_sampled=sum(label.n_sampled for label in labels) if with_labels else 0,
        calibration=Calibration(points, (0.2, 0.16, 0.15, 0.15, 0.16, 0.18), Estimate(0.025, 0.002), 123_456),
        losses=_make_figures(elbo=-650.0, reconstruction_loss=630.0, kl=20.0),
        densities={name: _make_density(name) for name in names},
        n_genes_without_counts=2,
        n_genes_never_drawn=5,
        attainable=_make_figures(cells=0.73, genes=0.8),
    )


def _make_density(name: str, n_boxes: int = 16) -> Density:
    edges = tuple(np.geomspace(0.5, 50, n_boxes + 1).tolist())
    place = np.arange(n_boxes)
    counts = np.rint(40 * np.exp(-((place[:, None] - place) ** 2) / 4 - (place[:, None] - 7) ** 2 / 20)).astype(int)
    return Density(name, edges, edges, tuple(map(tuple, counts.tolist())), 3)


def _make_picture(with_labels: bool, n_cells: int = 120) -> LatentPicture:
    random = np.random.default_rng(0)
    codes = random.integers(-1, len(LABELS), n_cells)
    places = random.normal(size=(n_cells, 2)) + 4 * np.stack([np.cos(codes), np.sin(codes)], axis=1)
    label = Colouring("cell_type", LABELS, tuple(codes.tolist()))
    batch = Colouring("batch", ("donor 1", "donor 2"), tuple(random.integers(0, 2, n_cells).tolist()))
    x, y = (tuple(values.tolist()) for values in places.T.round(3))
    return LatentPicture("UMAP", x, y, label if with_labels else None, batch, 1000)


def _make_provenance(with_labels: bool) -> Provenance:
    return Provenance(
        model="SCVI of atlasvi",
        model_settings={"n_hidden": 128, "n_latent": 10, "n_layers": 1, "gene_likelihood": "nb", "dispersion": "gene"},
        setup={"layer": "counts", "batch_key": "batch", "categories": {"batch": ["donor 1", "donor 2"]}},
        weights_sha256="0123456789abcdef",
        data="atlas.h5ad::layer=counts",
        data_spec={"path": "atlas.h5ad", "layer": "counts"},
        sources={"liver.h5ad": 600, "lung.h5ad": 400},
        n_cells=1000,
        n_genes=200,
        counts_hash="fedcba9876543210",
        genes_sha256="00112233445566ff",
        label_column="cell_type" if with_labels else None,
        batch_column="batch",
        split={"by": "hash of each cell's identity", "training": 900, "validation": 100},
        seed=0,
        n_draws=5,
        training={"epochs": 3, "seconds": 3600.0, "cells_per_s": 12_345.6, "device": "a GPU", "seed": 0},
        versions={"atlasvi": "0.9", "python": "3.11.2", "torch": "2.5.1"},
        hardware="a processor, 2 cores",
        seconds=12.5,
        cells_per_s=80.0,
        peak_memory_bytes=500_000_000,
        command="atlasvi card run atlas.h5ad::layer=counts --out card --labels-key cell_type",
        created="2026-01-31T12:00:00+00:00",
    )
