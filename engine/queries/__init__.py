"""Questions to a trained model and its cells, one function a question: latents, expression, differential, neighbours.

It may import `minified`, `training`, `scvi_tools`, `distributed`, `model`, and the files beside the subpackages.
"""
