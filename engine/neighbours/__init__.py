"""The nearest cells of a cell in latent space: exact search, and an index of inverted lists beside a minified store.

It may import `minified`, `model`, and the files beside the subpackages. `build_index.py` says why the index is our own.
"""
