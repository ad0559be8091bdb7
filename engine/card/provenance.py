"""What a card is of: data by content, model, training, split, versions, hardware, and the command that repeats it."""

import hashlib
import json
import shlex
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from atlasvi.engine.card.measured_parts import CellHashes
from atlasvi.engine.card.model_card import Provenance
from atlasvi.engine.distributed.launch import launch_prefix
from atlasvi.engine.model.run_files import CONFIG, METRICS
from atlasvi.engine.model.trained_run import TrainedRun
from atlasvi.engine.provenance import describe_hardware, find_commit, list_versions
from atlasvi.engine.queries.question_cells import CountedCells, QuestionCells
from atlasvi.loaders.cells.cell_store import CellStore
from atlasvi.loaders.damage import reading
from atlasvi.loaders.work_estimate import peak_memory_bytes

OF_TRAINING = ("epochs", "kept_epoch", "steps", "stopped_early", "seconds", "cells_per_s", "seed", "ranks", "device")


def hash_genes(genes: Sequence[str]) -> str:
    """A hash of names of genes, in their order; that of a run's fingerprint."""
    return hashlib.sha256("\n".join(map(str, genes)).encode()).hexdigest()[:16]


def make_provenance(
    run: TrainedRun,
    cells: QuestionCells,
    *,
    hashes: CellHashes,
    label_column: str | None,
    batch_column: str | None,
    split: Mapping[str, Any],
    seed: int,
    n_draws: int,
    n_measured: int,
    seconds: float,
    out: str | Path | None,
) -> Provenance:
    """The provenance of a card, once it is computed. n_measured: cells that this took `seconds` for."""
    spec = cells.source.spec if isinstance(cells, CountedCells) else None
    ours = run.path is not None and (run.path / CONFIG).is_file()
    data = str(spec) if spec is not None else str(cells.path)
    options = [
        *(["--labels-key", label_column] if label_column else []),
        *(["--batch-key", batch_column] if batch_column and batch_column != run.setup.keys.batch_key else []),
        *(["--draws", str(n_draws)] if n_draws != 5 else []),
        *(["--seed", str(seed)] if seed else []),
    ]
    words = ["card", str(run.path or "MODEL"), data, "--out", str(out or "DIR"), *options]
    return Provenance(
        model="SCVI of atlasvi" if ours else "SCVI",
        model_settings=run.model_settings,
        setup=run.setup.to_saved(),
        weights_sha256=run.weights_sha256,
        data=data,
        data_spec=spec.to_record() if spec is not None else {"path": data},
        sources=_list_sources(cells),
        n_cells=cells.n_cells,
        n_genes=len(run.genes),
        counts_hash=f"{hashes.counts:016x}" if isinstance(cells, CountedCells) else "",
        genes_sha256=hash_genes(run.genes),
        label_column=label_column,
        batch_column=batch_column,
        split=dict(split),
        seed=seed,
        n_draws=n_draws,
        training=_describe_training(run),
        versions=list_versions(),
        hardware=describe_hardware(),
        seconds=seconds,
        cells_per_s=n_measured / max(seconds, 1e-9),
        peak_memory_bytes=peak_memory_bytes(),
        command=f"{launch_prefix()} {shlex.join(words)}",
        libraries_hash=f"{hashes.libraries:016x}",
        order_hash=f"{hashes.order:016x}",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        commit=find_commit(Path.cwd()) or "",
        training_provenance=run.provenance.to_record() if run.provenance is not None else {},
    )


def read_training_curves(run: TrainedRun) -> dict[str, tuple[float, ...]]:
    """Losses by epoch, as the run recorded them; {} if it has no record."""
    lines: list[Mapping[str, Any]] = []
    if run.path is not None and (run.path / METRICS).is_file():
        with reading(str(run.path / METRICS)):
            lines = [json.loads(line) for line in (run.path / METRICS).read_text().splitlines() if line.strip()]
    elif run.state is not None:
        lines = list(run.state.get("history") or [])
    lines = [line for line in lines if line.get("kind", "epoch") == "epoch" and "epoch" in line]
    numbers = {
        name
        for line in lines
        for name, value in line.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }
    if "epoch" not in numbers:
        return {}
    names = ["epoch", *sorted(numbers - {"epoch"})]
    return {name: tuple(float(line[name]) if name in line else float("nan") for line in lines) for name in names}


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.perf_counter() - self._start


def _list_sources(cells: QuestionCells) -> dict[str, int]:
    if not isinstance(cells, CountedCells):
        return {str(cells.path): cells.n_cells}
    sizes = list(cells.source.source_sizes)
    names = cells.source.sources if isinstance(cells.source, CellStore) else [str(cells.path)]
    return dict(zip(map(str, names), sizes))


def _describe_training(run: TrainedRun) -> dict[str, Any]:
    mapped = {} if run.mapped_from is None else {"mapped_from": str(run.mapped_from)}
    return {**mapped, **{name: run.result[name] for name in OF_TRAINING if name in run.result}}
