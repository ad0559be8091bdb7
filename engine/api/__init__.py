"""The class SCVI with the methods of scvi-tools: set up, train, ask, save, load, minify, map new data.

It may import every other subpackage but `cli`.
"""
