"""Minify: the whole atlas through the encoder, out of core; the posterior is kept, the counts are dropped."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from atlasvi.engine.minified import LIBRARY, MinifiedWriter
from atlasvi.engine.runs import TrainedRun
from atlasvi.engine.scvi_files import open_model
from atlasvi.loaders.buckets import Buckets
from atlasvi.loaders.cells import CellData, open_cells, select_genes
from atlasvi.loaders.feeder import DeviceFeeder
from atlasvi.loaders.ingestion import Progress
from atlasvi.loaders.loader import BatchLoader
from atlasvi.loaders.outputs import write_folder_aside
from atlasvi.loaders.tables import obs_to_record

OBS_SLICE = 2**16
BUCKET_CELLS = 2**16  # cells held in memory at a time while they are put into source order


@dataclass(frozen=True)
class MinifyReport:
    """What a minify made."""

    out: str
    n_cells: int
    n_latent: int


def minify(
    run: TrainedRun | str | Path,
    data: CellData | str | Path,
    out: str | Path,
    *,
    source_order: bool = False,
    batch_size: int = 1024,
    device: str = "auto",
    progress: Progress = lambda stage, done, total: None,
) -> MinifyReport:
    """Write the posterior of every cell of `data` under the model of `run` to a new minified store at `out`.

    run           a finished run or its directory, or one that scvi-tools saved
    data          a cell store or any source; it must have all genes of the model (others are left out)
    source_order  cells in the order of their sources instead of that of the store
    Memory does not grow with the number of cells.
    Raises GeneError, ColumnError if the data lacks genes or columns that the model takes, or holds batches (or other
    categories) that it was not trained on, OutputError if `out` exists or can't be written.
    """
    if not isinstance(run, TrainedRun):
        run = open_model(run)
    if isinstance(data, (str, Path)):
        data = open_cells(data)
    data = select_genes(data, run.genes)
    codes = run.setup.read_codes(data)
    with write_folder_aside(out) as scratch:
        dtypes = {name: dtype for name, dtype in data.read_obs(0, 0).dtypes.items() if name != LIBRARY}
        model = {
            "model": run.model_settings,
            "setup": asdict(run.setup),
            "order": "source" if source_order else "as trained",
            "data": data.path,
        }
        records = _encode(run, data, codes, batch_size, device, list(dtypes))
        writer = MinifiedWriter(scratch / "result", data.n_cells, run.model.n_latent, data.var, dtypes, model)
        if source_order:
            records = _in_source_order(records, data, scratch, progress)
        done = 0
        for record in records:
            writer.append(record)
            done += len(record["qzm"])
            progress("writing" if source_order else "encoding", done, data.n_cells)
        writer.close({name: tensor.numpy() for name, tensor in run.model.state_dict().items()})
    return MinifyReport(str(out), data.n_cells, run.model.n_latent)


def _encode(
    run: TrainedRun, data: CellData, codes: dict, batch_size: int, device: str, columns: list[str]
) -> Iterator[dict[str, np.ndarray]]:
    """Records of cells in the order of the data: qzm, qzv and the columns of obs."""
    where = torch.device("cuda" if device == "auto" and torch.cuda.is_available() else device.replace("auto", "cpu"))
    model = run.model.to(where).eval()
    start, obs_start, obs = 0, 0, data.read_obs(0, 0)
    with torch.inference_mode():
        for batch in DeviceFeeder(BatchLoader(data, batch_size, seed=0, codes=codes, shuffle=False), where):
            qzm, qzv = model.encode(batch)
            if start + len(batch) > obs_start + len(obs):  # a slice for many minibatches: obs has larger chunks
                obs_start, obs = start, data.read_obs(start, min(start + OBS_SLICE, data.n_cells))[columns]
            here = obs.iloc[start - obs_start : start - obs_start + len(batch)]
            start += len(batch)
            yield {
                "qzm": qzm.cpu().numpy(),
                "qzv": qzv.cpu().numpy(),
                f"obs/{LIBRARY}": batch.library.cpu().numpy(),
                **obs_to_record(here),
            }
    run.model.cpu()


def _in_source_order(
    records: Iterator[dict[str, np.ndarray]], data: CellData, scratch: Path, progress: Progress
) -> Iterator[dict[str, np.ndarray]]:
    """The same cells, ordered by source and row, through buckets of neighbouring rows on disk."""
    buckets = Buckets(scratch / "buckets")
    offsets = np.cumsum([0, *data.source_sizes])
    done = 0
    for record in records:
        record["place"] = offsets[record["obs/source"]] + record["obs/source_row"]
        bucket_of = record["place"] // BUCKET_CELLS
        for bucket in np.unique(bucket_of).tolist():
            here = bucket_of == bucket
            buckets.append(bucket, {name: values[here] for name, values in record.items()})
        done += len(bucket_of)
        progress("encoding", done, data.n_cells)
    for bucket in range(-(-int(offsets[-1]) // BUCKET_CELLS)):
        if record := buckets.read(bucket):
            buckets.discard(bucket)
            order = np.argsort(record.pop("place"))
            yield {name: values[order] for name, values in record.items()}
