"""The scVI model: covariates, encoder, decoder, layers, likelihoods, random draws, and a trained run on disk.

Of this package it may import only the files beside the subpackages.
"""
