"""Likelihoods and sparse layers."""
