"""SCVI with scvi-tools' face: set up, train, ask, save, load, minify, map new data.

It may import every other subpackage but `cli`.
"""
