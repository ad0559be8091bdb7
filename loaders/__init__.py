"""Counts on disk -> sparse minibatches."""
