"""A training run from its settings to its result: steps, schedules, checkpoints, resuming, progress.

It may import `scvi_tools`, `distributed`, `model`, and the files beside the subpackages.
"""
