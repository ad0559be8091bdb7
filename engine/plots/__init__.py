"""Pictures of cells and of groups of cells, for a paper: PNG, or SVG and PDF with text as text.

    embedding_plot   the cells in the plane, coloured by obs columns or by the expression of genes
    group_plot       a dot plot or a heat map: marker genes in groups of cells
    loss_plot        the losses of runs over epochs or steps
    latent_picture   the same as embedding_plot for latents that have no coordinates yet
    colouring        a column or a gene as colours
    palettes         colours that are told apart, by colour-blind readers too
    point_raster     which cell each pixel shows: ten million points take seconds
    map_labels       names on the map that do not cover each other
    style            fonts, sizes, light and dark
    picture_file     a figure as a file, in the format that its name says

It may import `queries` and what that may import. matplotlib is imported where it is used.
"""
