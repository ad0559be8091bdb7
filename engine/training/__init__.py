"""Training runs, from the settings to the result: steps, schedules, checkpoints, resuming, progress.

It may import `scvi_tools`, `distributed`, `model`, and the files beside the subpackages.
"""
