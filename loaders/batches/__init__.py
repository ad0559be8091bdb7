"""Minibatches for a model: the order of an epoch, which cells it visits, reading in the background, copies to a GPU.

It may import `cells` and what `cells` may.
"""
