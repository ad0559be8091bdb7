"""The minified store, which keeps the posterior and drops the counts: how it is made, written and read.

It may import `training`, `scvi_tools`, `distributed`, `model`, and the files beside the subpackages.
"""
