"""Rows of sparse counts in memory: CSR, narrow types, checks, chosen genes, entries sorted into rows.

It may import the files beside the subpackages alone.
"""
