"""A model's card: how well counts drawn from it agree with real ones, computed out of core, and what both are.

    model_card           the whole card as plain values, which metrics.json holds (written by plain_values)
    make_card            computes it; over ranks, and again from where it was interrupted

The statistics, added up in one pass over the cells:

    agreement            how well two vectors agree: mean absolute error, Pearson, Spearman, R2
    draw_errors          figures over several draws, and their standard errors
    cell_statistics      of each cell: coefficient of variation, library size, genes expressed
    cell_agreement       their agreement, and the grid of a scatter, from values that are read in slices
    gene_moments         of each gene: sums over cells, hence coefficient of variation and zero fraction
    label_moments        of each label and gene: sums of normalised log counts, hence Welch's t-test
    rank_counts          ranks of real counts among their draws, hence calibration of credible intervals
    rank_sums            Wilcoxon's rank-sum test, on a stratified sample of the cells
    marker_agreement     how well differential expression in drawn counts agrees with that in real ones
    integration          how well the latent space keeps labels apart and mixes batches, on that sample
    scib_figures         scib-metrics' figures of the same, where that library is installed
    part_statistics      all sums for one part of the cells: training, validation or test
    measured_parts       the pass over the cells that computes them for each part

How a card is made of them:

    card_split           which cells are of which part, as far as the model says
    card_parts           runs of cells that any rank can measure, and their files
    card_figures         figures and the words of the verdict, from what the pass left
    provenance           data by content, model, training, versions, hardware, command

What is written of it:

    number_text          numbers as a reader wants them
    wording              what figures are called and how they are read
    card_tables          all figures of a card as tables of text
    hub_readme           README.md of the hub's folder
    page                 card.html

It may import `queries` and what that may import.
"""
