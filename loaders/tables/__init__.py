"""obs and var: read from files of any anndata version, merged over sources, written piece by piece.

It may import `arrays`, `rows`, and the files beside the subpackages.
"""
