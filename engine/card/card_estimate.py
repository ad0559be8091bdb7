"""What a card would take: some parts are measured into a folder for temporary files."""

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from atlasvi.engine.card.card_parts import measure_part
from atlasvi.engine.card.make_card import PICTURE_CELLS, CardPlan, plan_card
from atlasvi.engine.model.trained_run import TrainedRun
from atlasvi.engine.queries.opened_data import open_question_cells
from atlasvi.engine.queries.question_cells import BATCH_SIZE, CountedCells, QuestionCells, need_at_least
from atlasvi.engine.scvi_tools.model_directories import open_model
from atlasvi.engine.training.run_parts import choose_device
from atlasvi.loaders.outputs import check_output_free
from atlasvi.loaders.sources.data_spec import DataSpec
from atlasvi.loaders.work_estimate import WorkEstimate, check_room, peak_memory_bytes, time_parts

PART_BATCHES = 2  # minibatches of a part: parts are smaller than those of a card, so that several are timed


def estimate_card(
    run: str | Path,
    data: DataSpec | str | Path,
    out: str | Path,
    *,
    labels_key: str | None = None,
    batch_key: str | None = None,
    n_draws: int = 5,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    device: str = "auto",
    is_minified: bool = False,
) -> WorkEstimate:
    """What a card with these arguments would take in one process; nothing is written but temporary files.

    is_minified  whether the cells are given minified too, so that their posterior need not be kept
    Raises the errors of `make_card`, as far as they come before the first cell or show in those that are tried;
    OutputError if the disk is too small.
    """
    need_at_least(1, n_draws=n_draws, batch_size=batch_size)
    check_output_free(out)
    model = open_model(run)
    cells = open_question_cells(data, model)
    try:
        keeps = isinstance(cells, CountedCells) and not is_minified
        plan = plan_card(model, cells, labels_key, batch_key, n_draws, seed, batch_size, device, None, keeps)
        plan.job = replace(plan.job, part_cells=PART_BATCHES * batch_size)
        model.model.to(choose_device(device)).eval()
        trial = _Trial(plan, model, cells)
        n_tried, per_cell = time_parts(trial.measure())
    finally:
        if isinstance(cells, CountedCells):
            cells.source.close()
    scratch_bytes = round(trial.n_bytes / max(n_tried, 1) * cells.n_cells)
    weights = sum(tensor.nbytes for tensor in model.model.state_dict().values())
    disk_bytes = weights + 4 * (2 * model.model.n_latent + 1) * cells.n_cells
    of_labels = "" if plan.labels is None else f" of {len(plan.labels.categories):,} labels"
    return WorkEstimate(
        out=str(out),
        n_cells=cells.n_cells,
        n_genes=len(model.genes),
        n_tried=n_tried,
        seconds=per_cell * cells.n_cells,
        memory_bytes=peak_memory_bytes(),
        disk_bytes=disk_bytes,
        scratch_bytes=scratch_bytes,
        free_bytes=check_room(out, disk_bytes + scratch_bytes),
        notes=(
            *(f"{note.subject}: {note.reason}" for note in plan.notes),
            f"The figures{of_labels}, and a picture of {min(PICTURE_CELLS, cells.n_cells):,} cells, take about half a "
            "minute more.",
        ),
    )


class _Trial:
    """Measures parts of a card's job; n_bytes: what these wrote."""

    def __init__(self, plan: CardPlan, run: TrainedRun, cells: QuestionCells) -> None:
        self._plan, self._run, self._cells, self.n_bytes = plan, run, cells, 0

    def measure(self) -> Iterator[int]:
        """Yields the number of cells of a part, once it is measured."""
        job = self._plan.job
        with tempfile.TemporaryDirectory(prefix="atlasvi-dry-run-") as folder:
            for part in range(job.n_parts):
                measure_part(Path(folder), job, part, self._run.model, self._cells, self._plan.options)
                self.n_bytes = sum(file.stat().st_size for file in Path(folder).iterdir())
                yield min(job.part_cells, job.n_cells - part * job.part_cells)
