"""What a minify would take: some parts are encoded into a folder for temporary files."""

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from atlasvi.engine.minified import minify_parts
from atlasvi.engine.minified.minified_store import Latents
from atlasvi.engine.minified.minify import plan_minify, prepare_store
from atlasvi.engine.minified.minify_parts import Opened
from atlasvi.engine.scvi_tools.model_directories import open_model
from atlasvi.loaders.cells.open_cells import open_cells
from atlasvi.loaders.outputs import check_output_free
from atlasvi.loaders.sources.data_spec import DataSpec
from atlasvi.loaders.work_estimate import WorkEstimate, check_room, peak_memory_bytes, time_parts

PART_BATCHES = 8  # minibatches of a part: parts are smaller than those of `minify`, so that several are timed
NAME_BYTES = 12  # of the index of names, for a cell


def estimate_minify(
    run: str | Path,
    data: DataSpec | str | Path,
    out: str | Path,
    *,
    source_order: bool = False,
    batch_size: int = 1024,
    device: str = "auto",
    latents: Latents = "float32",
) -> WorkEstimate:
    """What `minify` with these arguments would write, and take in one process; nothing is written but temporary files.

    Raises the errors of `minify`, as far as they come before the first cell or show in those that are tried;
    OutputError if the disk is too small.
    """
    check_output_free(out)
    model = open_model(run)
    cells = open_cells(data, like=model.like)
    try:
        opened = plan_minify(
            model, cells, source_order=source_order, batch_size=batch_size, device=device, latents=latents
        )
        # cells are written in the order of the data: to order them by source takes as much disk again, and little time
        opened = replace(opened, job=replace(opened.job, source_order=False, part_cells=PART_BATCHES * batch_size))
        trial = _Trial(opened)
        n_tried, per_cell = time_parts(trial.encode())
    finally:
        cells.close()
    of_cells = round((trial.n_bytes / max(n_tried, 1) + NAME_BYTES) * cells.n_cells)
    disk_bytes, scratch_bytes = of_cells + trial.other_bytes, 2 * of_cells if source_order else 0
    return WorkEstimate(
        out=str(out),
        n_cells=cells.n_cells,
        n_genes=len(opened.data.var),
        n_tried=n_tried,
        seconds=per_cell * cells.n_cells,
        memory_bytes=peak_memory_bytes(),
        disk_bytes=disk_bytes,
        scratch_bytes=scratch_bytes,
        free_bytes=check_room(out, disk_bytes + scratch_bytes),
    )


class _Trial:
    """Encodes parts of a job, and counts what they write.

    n_bytes      of the cells that were encoded
    other_bytes  of what a store has without cells
    """

    def __init__(self, opened: Opened) -> None:
        self._opened, self.n_bytes, self.other_bytes = opened, 0, 0

    def encode(self) -> Iterator[int]:
        """Yields the number of cells of a part, once it is written."""
        job = self._opened.job
        with tempfile.TemporaryDirectory(prefix="atlasvi-dry-run-") as folder:
            scratch = Path(folder)
            prepare_store(scratch, self._opened)
            empty = _count_bytes(scratch)
            self.other_bytes = empty + _count_bytes(scratch, "zarr.json")  # all of which are in the first one, too
            minify_parts.open_minifies.keep(scratch, self._opened)
            try:
                for part in minify_parts.encode_parts(folder, list(range(job.n_parts))):
                    self.n_bytes = _count_bytes(scratch) - empty
                    yield min(job.part_cells, job.n_cells - part * job.part_cells)
            finally:
                minify_parts.forget(scratch)


def _count_bytes(scratch: Path, pattern: str = "*") -> int:
    files = (scratch / minify_parts.RESULT).rglob(pattern)
    return sum(file.stat().st_size for file in files if file.is_file())
