"""The minified store, which holds the posterior instead of the counts: making, writing and reading it.

It may import `training`, `scvi_tools`, `distributed`, `model`, and the files beside the subpackages.
"""
