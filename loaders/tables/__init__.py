"""obs and var: read from files of any age, merged over sources, written in pieces.

It may import `arrays`, `rows`, and the files beside the subpackages.
"""
