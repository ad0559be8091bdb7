"""Many sources with few open files: each is closed while others are read, and opened again when it is needed."""

from collections import OrderedDict
from pathlib import Path

import pandas as pd
import scipy.sparse as sp

from atlasvi.loaders.places.byte_files import share_of_files
from atlasvi.loaders.rows.block_rows import Rows
from atlasvi.loaders.sources.data_spec import DataSpec
from atlasvi.loaders.sources.open_source import open_spec
from atlasvi.loaders.sources.source_protocol import Source

MOST_OPEN = 64  # sources: more do not make it faster
FILES_A_SOURCE = 4  # a source may need several files, and libraries and the output need some too


def open_many(specs: list[DataSpec], scratch: str | Path | None = None) -> list[Source]:
    """Open sources, at most MOST_OPEN of them at a time, fewer where the process may open few files.

    Equal tables of genes share their memory.
    """
    opened: list[Source] = []
    recent: OrderedDict[int, ReopenedSource] = OrderedDict()
    most = share_of_files(FILES_A_SOURCE, MOST_OPEN)
    many = len(specs) > most
    try:
        for spec in specs:
            opened.append(ReopenedSource(spec, scratch, recent, most) if many else open_spec(spec, scratch))
            if len(opened) > 1 and opened[-1].var.equals(opened[-2].var):
                opened[-1].var = opened[-2].var
    except BaseException:
        for source in opened:
            source.close()
        raise
    return opened


class ReopenedSource:
    """A source that is open only while it is among the `most` sources that were read last.

    Its attributes are copied, since a reference to the closed source would keep its memory in use.
    recent  the open sources, the last one read at the end; shared by all sources of an ingest
    """

    def __init__(
        self, spec: DataSpec, scratch: str | Path | None, recent: "OrderedDict[int, ReopenedSource]", most: int
    ) -> None:
        self.spec, self._scratch, self._recent, self._most = spec, scratch, recent, most
        self._source: Source | None = None
        source = self._open()
        self.path, self.n_cells, self.nnz, self.var = source.path, source.n_cells, source.nnz, source.var
        self.layer, self.layers, self.anndata_layer = source.layer, source.layers, source.anndata_layer
        self.notes, self.shuffled, self.spooled = source.notes, source.shuffled, source.spooled
        self._head = source.read_obs(0, 0)

    def read_counts(self, start: int, stop: int) -> sp.csr_matrix:
        """Rows [start, stop) x all genes, as stored: canonical CSR, values not validated."""
        return self._open().read_counts(start, stop)

    def read_narrow(self, start: int, stop: int) -> Rows | None:
        """Rows [start, stop) as counts of narrow dtypes, fast; None where the caller must use `read_counts`."""
        return self._open().read_narrow(start, stop)

    def ask_ahead(self, start: int, stop: int) -> object:
        """Begin to read what `read_narrow` will need of a bucket; what is returned must be kept until then."""
        return self._open().ask_ahead(start, stop)

    def count_run_cells(self) -> int:
        """Number of cells that is best read at a time, beginning at multiples of this number."""
        return self._open().count_run_cells()

    def read_obs(self, start: int, stop: int) -> pd.DataFrame:
        """Rows [start, stop) of obs, the cell names as index."""
        return self._head if (start, stop) == (0, 0) else self._open().read_obs(start, stop)

    def close(self) -> None:
        """Close the file and remove temporary ones."""
        self._recent.pop(id(self), None)
        if self._source is not None:
            self._source.close()
            self._source = None

    def _open(self) -> Source:
        if self._source is None:
            self._source = open_spec(self.spec, self._scratch)
        self._recent[id(self)] = self
        self._recent.move_to_end(id(self))
        while len(self._recent) > self._most:
            next(iter(self._recent.values())).close()
        return self._source
