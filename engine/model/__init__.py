"""scVI itself: covariates, encoder, decoder, layers, random draws, a trained run on disk.

It may import the files beside the subpackages alone.
"""
