"""The processes of one run: starting them, connecting them, watching them, stopping them, and sums over them.

Of this package it may import only the files beside the subpackages.
"""
