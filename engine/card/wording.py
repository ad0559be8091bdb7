"""What the figures of a card are called and how they are read: one text for the page, the README and the terminal."""

from atlasvi.engine.card.card_figures import DO_NOT_USE_BELOW, GOOD_FROM

THRESHOLD_ADVICE = (
    f"Below a squared Pearson correlation of {DO_NOT_USE_BELOW}, the threshold of scvi-hub's cards, generated counts "
    "should not be used for further analysis; the latent space may still be useful. "
    f"From {GOOD_FROM} on they are called good here, and doubtful in between."
)

ATTAINABLE_TEXT = (
    "Beside it stands what a draw of the model itself reaches against the other draws: about what a perfect model "
    "would reach, and real counts may pass it, because the encoder has seen them. Where it is low, most of this "
    "variation is the noise of counting, which no model predicts, and the threshold says little."
)

ATTAINED = (
    "Draws of the model hardly agree better with each other, if at all: what is missing is the noise of counting."
)
NEARLY = 0.9  # of the squared correlation of a draw itself

PARTS = {"training": "Training", "validation": "Validation", "test": "Test", "all": "All cells"}

VERDICTS = {
    "good": "Generated counts keep this variation.",
    "doubtful": "Generated counts keep part of this variation: check what you conclude from them on real counts.",
    "do not use generated data": "Generated counts lose too much of this variation.",
    "unknown": "The correlation is undefined.",
}

BLOCKS = {
    "cells": "across genes, within each cell",
    "genes": "across cells, for each gene",
}

QUANTITIES = {
    "cell variation": (
        "Coefficient of variation of each cell, across its genes",
        "For each cell: the standard deviation of its counts over all genes, divided by their mean. It says how uneven "
        "a cell's expression is, not how different cells are from each other.",
    ),
    "gene variation": (
        "Coefficient of variation of each gene, across cells",
        "For each gene: the standard deviation of its counts over all cells of the part, divided by their mean. "
        "It says how well the differences between cells are kept.",
    ),
    "cell library": (
        "Library size of each cell",
        "The sum of a cell's counts.",
    ),
    "cell expressed": (
        "Genes expressed in each cell",
        "The number of genes with a count above 0.",
    ),
    "gene zero_fraction": (
        "Zero fraction of each gene",
        "The fraction of cells in which a gene has no counts.",
    ),
}
"""By the names of `PartFigures.densities`: a title, and a sentence or two that say what is computed."""

AGREEMENT = {
    "mae": "Mean absolute error",
    "pearson": "Pearson correlation",
    "squared_pearson": "Squared Pearson correlation",
    "spearman": "Spearman correlation",
    "r2": "R² with the drawn values as the reference",
}

MARKERS = {
    "gene_f1": "Overlap of top genes (F1)",
    "lfc_mae": "LFC mean absolute error",
    "lfc_pearson": "LFC Pearson",
    "lfc_spearman": "LFC Spearman",
    "roc_auc": "ROC AUC",
    "pr_auc": "PR AUC",
}

LOSSES = {
    "elbo": "Evidence lower bound (ELBO)",
    "negative_elbo": "Negative ELBO",
    "reconstruction_loss": "Reconstruction loss",
    "kl": "KL divergence",
}

CURVES = {"loss": "Loss", "kl_weight": "Weight of the KL divergence", "learning_rate": "Learning rate"}

DRAWS = (
    "All figures compare the real counts with counts drawn from the posterior predictive distribution of the model: "
    "a latent state from the encoder, then counts from the decoder, with the cell's own batch and its observed "
    "library size. The values after ± are standard errors over draws."
)

AGREEMENT_TEXT = (
    "Agreement is between the vector of real values and that of drawn ones, averaged over draws. The correlations are "
    "not squared unless it is said. R² is 1 − Σ(drawn − real)² / Σ(drawn − mean of drawn)²: the drawn values stand "
    "where the measured ones are expected, as in the cards of scvi-hub, so that the figures can be compared; it is not "
    "the square of the Pearson correlation."
)

EXPRESSION_TEXT = (
    "Differential expression of each label against all other cells, in real and in drawn counts (scaled to 10,000 "
    "counts per cell, then log1p). Welch's t-test uses all cells, as the figures of scvi-hub do (whose text says "
    "Wilcoxon). Wilcoxon's rank-sum test uses a stratified sample of the cells, whose size stands beside it."
)

MARKERS_TEXT = (
    "F1 is the overlap of the 100 genes with the highest scores (a tenth of the genes if there are fewer than 1,000). "
    "LFC figures compare the log2 fold changes of all genes. ROC AUC and PR AUC say how well the scores in drawn "
    "counts find the genes that differ in real ones (adjusted p below 0.2). Scores are signed as on scvi-hub's cards, "
    "and genes that are lower in a label differ too, so that a ROC AUC below 0.5 does not mean that the model fails: "
    "compare it with other cards of the same data."
)

CALIBRATION_TEXT = (
    "Credible intervals between order statistics of the draws, and how often they hold the real count, over cells and "
    "genes where any count, real or drawn, is not 0. A calibrated model is on the diagonal; below it, the model is "
    "too sure of itself."
)

RANKS_TEXT = (
    "The fraction of real counts by the number of draws below them, ties divided evenly. The line is flat if the "
    "model's distributions are right; higher at both ends, they are too narrow; higher in the middle, too wide."
)

LOSSES_TEXT = (
    "Means over the cells of a part, in nats per cell. The ELBO of cells that were held out is the one to trust."
)

INTEGRATION_TEXT = (
    "How well labels stay apart and batches mix in the latent space. Figures are between 0 and 1 and higher is better, "
    "unless it is said otherwise. The values after ± are standard errors over cells or between halves of the sample."
)

INTEGRATION = {
    "silhouette_label": "Silhouette of labels",
    "silhouette_batch": "Silhouette of batches",
    "batch_entropy": "Batches among neighbours (entropy)",
    "neighbour_labels": "Labels of neighbours",
    "isolated_labels": "Isolated labels",
    "nmi_kmeans": "k-means NMI",
    "ari_kmeans": "k-means ARI",
    "clisi": "cLISI",
    "bras": "BRAS",
    "ilisi": "iLISI",
    "kbet": "kBET",
    "graph_connectivity": "Graph connectivity",
    "pcr_comparison": "PCR comparison",
}
