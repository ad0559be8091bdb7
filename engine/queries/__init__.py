"""Questions to a trained model and cells, one function each; SCVI's methods and `atlasvi query` are shells over them.

Cells of every kind (counts in memory or on disk, minified by us or by scvi-tools) answer the calls of `QuestionCells`.
It may import `minified`, `training`, `scvi_tools`, `distributed`, `model`, and the files beside the subpackages.
"""
