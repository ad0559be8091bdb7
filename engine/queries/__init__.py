"""Questions to a trained model about cells: one function each, which SCVI's methods and `atlasvi query` call.

All kinds of cells (counts in memory or on disk, minified by us or by scvi-tools) implement `QuestionCells`.
It may import `neighbours`, `minified`, `training`, `scvi_tools`, `distributed`, `model`, and the files beside the
subpackages.
"""
