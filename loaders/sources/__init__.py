"""Files of counts as others write them, read by slices of rows: AnnData, 10x, Matrix Market, TileDB-SOMA, annbatch.

It may import `tables`, `arrays`, `rows`, and the files beside the subpackages.
"""
