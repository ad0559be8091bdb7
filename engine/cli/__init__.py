"""The command line: each command a thin shell over a function that Python callers use.

It may import every other subpackage but `api`.
"""
