"""Minibatches for a model: the order of an epoch, the cells it visits, assembly in the background, a device's copy.

It may import `cells` and what `cells` may.
"""
