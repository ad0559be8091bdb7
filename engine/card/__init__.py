"""The statistics of a model's card: real counts beside counts drawn from the model, in one pass over the cells.

    model_card           the whole card as plain values, which metrics.json holds (written by plain_values)
    agreement            how well two vectors agree: mean absolute error, Pearson, Spearman, R2
    draw_errors          figures over several draws, and their standard errors
    cell_statistics      of each cell: coefficient of variation, library size, genes expressed
    gene_moments         of each gene: sums over cells, hence coefficient of variation and zero fraction
    label_moments        of each label and gene: sums of normalised log counts, hence Welch's t-test
    rank_sums            Wilcoxon's rank-sum test, on a stratified sample of the cells
    stratified_sample    which cells are in that sample
    marker_agreement     how well differential expression in drawn counts agrees with that in real ones
    part_statistics      all of them for one part of the cells: training, validation or test
    measured_parts       the pass over the cells that computes them for each part
    number_text          numbers as a reader wants them
    wording              what figures are called and how they are read
    card_tables          all figures of a card as tables of text
    hub_readme           README.md of the hub's folder
    page                 card.html

Parts of a pass (of ranks, say) can be added. It may import `queries` and what that may import.
"""
