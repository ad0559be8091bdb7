"""What sources of one stored matrix have in common: AnnData files, 10x output, folders with an .mtx."""

import scipy.sparse as sp

from atlasvi.loaders.arrays.matrices import Matrix
from atlasvi.loaders.damage import reading
from atlasvi.loaders.rows.block_rows import Rows
from atlasvi.loaders.sources.data_spec import DataSpec
from atlasvi.loaders.sources.run_lengths import choose_run


class MatrixSource:
    """The members of `Source` that follow from the matrix, cells x genes, and how the source was opened."""

    shuffled = False  # the cells are in their authors' order

    def __init__(self, spec: DataSpec, matrix: Matrix) -> None:
        self.spec, self.path, self._matrix = spec, spec.path, matrix
        self.n_cells, self.nnz, self.spooled = matrix.shape[0], matrix.nnz, matrix.spooled
        self.notes: list[str] = []

    def read_counts(self, start: int, stop: int) -> sp.csr_matrix:
        """Rows [start, stop) x all genes, as stored: canonical CSR, values not validated."""
        with reading(self.path):
            return self._matrix.read_rows(start, stop)

    def read_narrow(self, start: int, stop: int) -> Rows | None:
        """Rows [start, stop) as counts of narrow dtypes, fast; None where the caller must use `read_counts`."""
        with reading(self.path):
            return self._matrix.read_narrow(start, stop)

    def ask_ahead(self, start: int, stop: int) -> object:
        """Begin to read what `read_narrow` will need of a bucket; what is returned must be kept until then."""
        with reading(self.path):
            return self._matrix.ask_ahead(start, stop)

    def count_piece_cells(self) -> float:
        """Cells that are decoded together."""
        with reading(self.path):
            return self._matrix.count_piece_rows()

    def count_run_cells(self) -> int:
        """Number of cells that is best read at a time, beginning at multiples of this number."""
        return choose_run(self.count_piece_cells(), self.shuffled)
