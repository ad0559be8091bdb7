"""Places of data: files on local disk, or objects in a bucket or on a web server, read and listed in the same words.

A place is a `pathlib.Path`, or an `ObjectPath` with those of its methods that reading needs; `to_place` chooses. All
other code reads elements from a place and does not know which it is. It imports only the files beside the subpackages
that import nothing themselves (`errors`).
"""
