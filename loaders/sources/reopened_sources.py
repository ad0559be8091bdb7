"""Many sources with few files open: each is closed while others are read, and opened again when it is needed."""

from collections import OrderedDict
from pathlib import Path

import pandas as pd
import scipy.sparse as sp

from atlasvi.loaders.arrays.matrices import is_spooled
from atlasvi.loaders.rows.block_rows import Rows
from atlasvi.loaders.sources.data_spec import DataSpec
from atlasvi.loaders.sources.open_source import Source, open_spec

MOST_OPEN = 64  # sources; systems let a process open 256 (macOS) or 1,024 files (Linux), and a source may need several


def open_many(specs: list[DataSpec], scratch: str | Path | None = None) -> list[Source]:
    """Open sources, at most MOST_OPEN of them at a time. Equal tables of genes are held once."""
    opened: list[Source] = []
    recent: OrderedDict[int, ReopenedSource] = OrderedDict()
    try:
        for spec in specs:
            many = len(specs) > MOST_OPEN
            opened.append(ReopenedSource(spec, scratch, recent) if many else open_spec(spec, scratch))
            if len(opened) > 1 and opened[-1].var.equals(opened[-2].var):
                opened[-1].var = opened[-2].var
    except BaseException:
        for source in opened:
            source.close()
        raise
    return opened


class ReopenedSource:
    """A source that is open only while it is among the MOST_OPEN that were read last; what it says of itself stays.

    recent  the open ones, the one that was read last at the end: shared by all of an ingest
    """

    def __init__(self, spec: DataSpec, scratch: str | Path | None, recent: "OrderedDict[int, ReopenedSource]") -> None:
        self._spec, self._scratch, self._recent = spec, scratch, recent
        self._source: Source | None = None
        source = self._open()
        self.path, self.n_cells, self.nnz, self.var = source.path, source.n_cells, source.nnz, source.var
        self.layer, self.layers, self.notes = source.layer, source.layers, source.notes
        self.shuffled, self.spooled = source.shuffled, is_spooled(source)
        self._head = source.read_obs(0, 0)

    def read_counts(self, start: int, stop: int) -> sp.csr_matrix:
        """Rows [start, stop) x all genes, as stored: canonical CSR, values not validated."""
        return self._open().read_counts(start, stop)

    def read_narrow(self, start: int, stop: int) -> Rows | None:
        """Rows [start, stop) as narrow counts, fast; None where `read_counts` must be asked."""
        return self._open().read_narrow(start, stop)

    def count_run_cells(self) -> int:
        """Cells that are best read at a time, from a multiple of them on."""
        return self._open().count_run_cells()

    def read_obs(self, start: int, stop: int) -> pd.DataFrame:
        """Rows [start, stop) of obs, index the cell names."""
        return self._head if (start, stop) == (0, 0) else self._open().read_obs(start, stop)

    def close(self) -> None:
        """Close the file and remove temporary ones."""
        self._recent.pop(id(self), None)
        if self._source is not None:
            self._source.close()
            self._source = None

    def _open(self) -> Source:
        if self._source is None:
            self._source = open_spec(self._spec, self._scratch)
        self._recent[id(self)] = self
        self._recent.move_to_end(id(self))
        while len(self._recent) > MOST_OPEN:
            next(iter(self._recent.values())).close()
        return self._source
