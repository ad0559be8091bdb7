"""Stored arrays and matrices: fast readers that bypass the HDF5 and Zarr libraries, shards, decoding, safety checks.

It may import `rows`, and the files beside the subpackages.
"""
