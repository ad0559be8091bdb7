"""Model directories of scvi-tools, read and written without scvi-tools.

It may import `model`, and the files beside the subpackages.
"""
