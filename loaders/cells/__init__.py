"""Cells in blocks of rows, on which a model is trained: a cell store, a source, an AnnData in memory.

It may import `sources` and what `sources` may.
"""
