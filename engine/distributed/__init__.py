"""The processes of one run: started, found, watched, stopped; sums over them.

It may import the files beside the subpackages alone.
"""
