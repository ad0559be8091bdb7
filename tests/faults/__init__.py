"""Inputs of other people that once failed, or passed in a bad way: `faults` in the shared data folder."""
