"""The command line: each command calls a function that Python users can call too.

It may import every other subpackage but `api`.
"""
