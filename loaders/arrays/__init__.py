"""Stored arrays and matrices, read fast: HDF5 and Zarr past their libraries, shards, decoding, checks before reading.

It may import `rows`, and the files beside the subpackages.
"""
