"""Cells in blocks of rows, which is what a model is trained on: a cell store, a source, an AnnData in memory.

It may import `sources` and what `sources` may.
"""
