"""Cards of real, small models: what each kind of data and model gives, and what it says of what it can't."""

import shutil
from dataclasses import replace
from pathlib import Path

import anndata
import numpy as np
import pytest

from atlasvi.engine import SCVI
from atlasvi.engine.card import card_parts
from atlasvi.engine.card import make_card as module
from atlasvi.engine.card.card_check import compare_figures
from atlasvi.engine.card.make_card import make_card
from atlasvi.engine.card.model_card import METRICS, ModelCard
from atlasvi.engine.hub.card_folder import write_card_folder
from atlasvi.engine.minified.minified_by_scvi_tools import open_minified
from atlasvi.engine.minified.minify import minify
from atlasvi.engine.queries.question_cells import QueryError
from atlasvi.engine.training.train import train
from atlasvi.loaders.errors import ColumnError, OutputError, SourceError
from atlasvi.loaders.ingestion.ingest import ingest
from atlasvi.loaders.sources.data_spec import parse_source
from atlasvi.loaders.workers import Workers, run_task
from tests.engine.card.small_atlas import N_CELLS, make_adata
from tests.engine.distributed.rank_processes import run_ranks


def subjects(card: ModelCard) -> dict[str, str]:
    return {note.subject: note.reason for note in card.notes}


def test_a_card_has_every_figure_of_training_and_validation_cells_and_of_all(folder: Path, whole: ModelCard):
    assert ModelCard.from_json((folder / "card" / METRICS).read_text()).to_json() == whole.to_json()
    assert list(whole.parts) == ["training", "validation", "all"]
    sizes = [part.n_cells for part in whole.parts.values()]
    assert sizes[0] + sizes[1] == sizes[2] == N_CELLS
    for part in whole.parts.values():
        assert set(part.cells) == {"variation", "library", "expressed"}
        assert set(part.genes) == {"variation", "zero_fraction"}
        assert set(part.losses) == {"elbo", "reconstruction_loss", "kl"}
        assert part.calibration.points[-1].observed.error > 0
        assert {label.label for label in part.labels} == {"B", "T", "NK"}
        assert all(0 <= label.wilcoxon["gene_f1"].value <= 1 for label in part.labels)
        assert sum(map(sum, part.densities["cell library"].counts)) == part.n_cells
    assert len(whole.verdicts) == 6
    assert set(whole.integration.figures) == {
        "silhouette_label", "silhouette_batch", "batch_entropy", "neighbour_labels",
    }  # fmt: skip
    assert len(whole.picture.x) == N_CELLS
    assert whole.picture.batch.names == ("a", "b")
    assert len(whole.training_curves["epoch"]) == 2
    assert whole.notes == ()
    known = whole.provenance
    assert (known.n_cells, known.n_genes, known.label_column, known.batch_column) == (120, 20, "type", "batch")
    assert known.command.startswith("atlasvi card")
    assert known.training["epochs"] == 2


def test_a_killed_card_continues_and_is_the_same(folder: Path, whole: ModelCard, monkeypatch):
    monkeypatch.setattr(card_parts, "FEWEST_PARTS", 8)
    monkeypatch.setattr(card_parts, "LEAST_PART_CELLS", 1)
    measured, real = [], module.measure_part

    def measure(scratch, job, part, *rest):
        if len(measured) == 3:
            raise KeyboardInterrupt
        measured.append(part)
        real(scratch, job, part, *rest)

    monkeypatch.setattr(module, "measure_part", measure)
    out = folder / "again"
    with pytest.raises(KeyboardInterrupt):
        make_card(folder / "run", folder / "data.h5ad", out, labels_key="type")
    assert not out.exists()
    monkeypatch.setattr(module, "measure_part", lambda *given: measured.append(given[2]) or real(*given))
    card = make_card(folder / "run", folder / "data.h5ad", out, labels_key="type")
    assert measured == list(range(8))
    assert card.provenance.counts_hash == whole.provenance.counts_hash
    assert compare_figures(card, whole) == []
    np.testing.assert_allclose(
        [part.genes["variation"]["pearson"].value for part in card.parts.values()],
        [part.genes["variation"]["pearson"].value for part in whole.parts.values()],
        rtol=1e-12,
    )


def test_a_cell_store_has_the_card_of_the_file_that_it_was_made_from(folder: Path, whole: ModelCard):
    ingest(folder / "data.h5ad", folder / "store")
    card = make_card(folder / "run", folder / "store", labels_key="type")
    assert card.provenance.counts_hash == whole.provenance.counts_hash
    assert card.parts["validation"].n_cells == whole.parts["validation"].n_cells
    for name in ("training", "validation"):  # cells are in another order, so the draws are others
        ours, theirs = card.parts[name], whole.parts[name]
        assert ours.losses["kl"].value == pytest.approx(theirs.losses["kl"].value, rel=1e-5)
        assert [label.n_cells for label in ours.labels] == [label.n_cells for label in theirs.labels]


def test_the_card_of_a_run_whose_data_changed_is_refused(folder: Path):
    adata = make_adata()
    adata.X[5, 3] += 1
    adata.write_h5ad(folder / "other.h5ad")
    with pytest.raises(QueryError, match=r"not the data that .*run was trained on .*or it has changed since"):
        make_card(folder / "run", folder / "other.h5ad", folder / "never")
    assert not (folder / "never").exists()


def test_an_existing_folder_or_a_missing_column_is_refused(folder: Path, whole: ModelCard):
    with pytest.raises(OutputError, match="exists already"):
        make_card(folder / "run", folder / "data.h5ad", folder / "card")
    with pytest.raises(ColumnError, match="type"):
        make_card(folder / "run", folder / "data.h5ad", labels_key="cell_type")
    with pytest.raises(QueryError, match="n_draws is 0"):
        make_card(folder / "run", folder / "data.h5ad", n_draws=0)


@pytest.mark.parametrize(
    ("labels_key", "subject", "reason"),
    [
        (None, "differential expression", "There are no labels"),
        ("one", "differential expression", "Label 'only' has no test: no cell has another label"),
        ("rare", "differential expression", "Label 'lonely' has no test: it has one cell"),
    ],
)
def test_labels_that_cannot_be_tested_are_said(folder: Path, labels_key, subject, reason):
    card = make_card(folder / "run", folder / "data.h5ad", labels_key=labels_key, n_draws=2)
    said = [note.reason for note in card.notes if note.subject == subject]
    assert any(each.startswith(reason) for each in said), said
    assert sum("lonely" in each or "only" in each for each in said) <= 1  # once, not again for each part
    by_name = {label.label: label for label in card.parts["all"].labels}
    if labels_key == "rare":
        assert by_name["two cells"].welch["gene_f1"].value >= 0
        assert by_name["lonely"].welch == {}
    if labels_key != "rare":
        assert "How well labels are kept apart is not computed" in " ".join(note.reason for note in card.notes)
    assert "neighbour_labels" not in card.integration.figures or labels_key == "rare"
    assert "batch_entropy" in card.integration.figures


def test_without_validation_cells_or_batches_the_card_says_so(folder: Path):
    settings = {"n_hidden": 8, "n_latent": 3, "validation_fraction": 0.0}
    train(folder / "data.h5ad", folder / "bare", epochs=1, batch_size=64, device="cpu", settings=settings)
    card = make_card(folder / "bare", folder / "data.h5ad", n_draws=1)
    assert list(card.parts) == ["training", "all"]
    said = subjects(card)
    assert said["validation"].startswith("No cell was held out")
    assert said["errors"].startswith("There is one draw")
    assert "there are no batches" in said["integration"]
    assert card.integration is None
    assert card.parts["training"].calibration is None
    assert np.isnan(card.parts["training"].cells["variation"]["mae"].error)


def test_test_cells_have_a_part_of_their_own(folder: Path):
    settings = {"n_hidden": 8, "n_latent": 3, "validation_fraction": 0.0}
    options = {"split_column": "split", "epochs": 1, "batch_size": 64, "device": "cpu", "settings": settings}
    train(folder / "data.h5ad", folder / "tested", **options)
    card = make_card(folder / "tested", folder / "data.h5ad", n_draws=2)
    assert {name: part.n_cells for name, part in card.parts.items()} == {"training": 90, "test": 30, "all": 120}


def test_minified_data_gives_what_needs_no_counts(folder: Path, whole: ModelCard):
    minify(folder / "run", folder / "data.h5ad", folder / "mini")
    data = parse_source(folder / "mini")  # as the command line has it
    card = make_card(folder / "run", data, folder / "mini-card", labels_key="type", n_draws=3)
    assert "minified and has no counts" in subjects(card)["counts"]
    assert list(card.parts) == ["all"]
    everything = card.parts["all"]
    assert (set(everything.cells), everything.genes, everything.labels) == ({"library"}, {}, ())
    assert everything.losses["kl"].value == pytest.approx(whole.parts["all"].losses["kl"].value, rel=1e-4)
    assert set(everything.losses) == {"kl"}
    assert card.verdicts == ()
    assert card.provenance.counts_hash == ""
    for name, estimate in whole.integration.figures.items():
        assert card.integration.figures[name] == pytest.approx(estimate, rel=1e-3)


def test_a_model_in_memory_and_a_model_of_scvi_tools_have_cards(folder: Path, tmp_path: Path):
    adata = make_adata()
    SCVI.setup_anndata(adata, batch_key="batch", labels_key="type")
    model = SCVI(adata, n_hidden=8, n_latent=3)
    model.train(1, accelerator="cpu", train_size=0.8)
    card = model.card(n_draws=2)
    assert [card.parts[name].n_cells for name in ("training", "validation")] == [96, 24]
    assert card.provenance.label_column == "type"  # that of the model
    model.save(tmp_path / "saved")
    (tmp_path / "saved" / "atlasvi.pt").unlink()
    again = make_card(tmp_path / "saved", folder / "data.h5ad", n_draws=2)  # as scvi-tools saves it
    assert again.provenance.split["by"] == "indices saved with the model"
    np.testing.assert_allclose(
        again.parts["validation"].cells["variation"]["pearson"].value,
        card.parts["validation"].cells["variation"]["pearson"].value,
        rtol=1e-4,
    )
    adata[:50].write_h5ad(tmp_path / "few.h5ad")
    few = make_card(tmp_path / "saved", tmp_path / "few.h5ad", n_draws=2)
    assert list(few.parts) == ["all"]
    assert "it is other data" in subjects(few)["parts"]


def card_on_rank(folder: Path) -> None:
    """The card of the run, on one of several ranks, in small parts."""
    card_parts.FEWEST_PARTS, card_parts.LEAST_PART_CELLS = 8, 1
    module.place_cells = lambda latent, seed: ("PCA", latent[:, :2].astype(float))
    write_card_folder(folder / "run", folder / "data.h5ad", folder / "shared", labels_key="type")


def test_ranks_compute_the_card_that_one_process_computes(folder: Path, whole: ModelCard, tmp_path: Path):
    run_ranks(card_on_rank, 2, tmp_path / "said", folder)
    card = ModelCard.from_json((folder / "shared" / METRICS).read_text())
    assert compare_figures(card, whole) == []
    assert card.provenance.counts_hash == whole.provenance.counts_hash
    assert card.parts["all"].calibration.rank_histogram == whole.parts["all"].calibration.rank_histogram
    assert open_minified(folder / "shared" / "adata.h5ad").n_cells == card.provenance.n_cells  # minified by both


@pytest.mark.slow
def test_a_dask_cluster_computes_the_same_card_to_the_bit(folder: Path, tmp_path: Path, monkeypatch):
    distributed = pytest.importorskip("distributed")
    monkeypatch.setattr(card_parts, "FEWEST_PARTS", 4)
    monkeypatch.setattr(card_parts, "LEAST_PART_CELLS", 1)
    minify(folder / "run", folder / "data.h5ad", tmp_path / "mini")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=2, dashboard_address=None) as cluster:
        for data, labels in ((folder / "data.h5ad", "type"), (folder / "data.h5ad", None), (tmp_path / "mini", "type")):
            alone, others = tmp_path / "alone", tmp_path / "others"
            options = {"labels_key": labels, "n_draws": 2}
            write_card_folder(folder / "run", data, alone, **options)
            write_card_folder(folder / "run", data, others, dask=cluster.scheduler_address, **options)
            cards = [ModelCard.from_json((each / METRICS).read_text()) for each in (alone, others)]
            assert replace(cards[0], provenance=cards[1].provenance).to_json() == cards[1].to_json()
            assert cards[0].provenance.counts_hash == cards[1].provenance.counts_hash
            latents = [anndata.read_h5ad(each / "adata.h5ad").obsm["scvi_latent_qzm"] for each in (alone, others)]
            np.testing.assert_array_equal(*latents)
            for each in (alone, others):  # the next card has the same path, and workers must not take it for this one
                shutil.rmtree(each)


def test_a_task_of_a_cluster_opens_what_the_first_process_wrote(folder: Path, whole: ModelCard, monkeypatch):
    monkeypatch.setattr(card_parts, "FEWEST_PARTS", 3)
    monkeypatch.setattr(card_parts, "LEAST_PART_CELLS", 1)
    monkeypatch.setattr(Workers, "run", lambda self, tasks, done: [(run_task(task), done(task)) for task in tasks])
    seen = []
    card = make_card(
        folder / "run",
        folder / "data.h5ad",
        folder / "tasks",
        labels_key="type",
        dask="tcp://nowhere",
        progress=lambda *said: seen.append(said),
    )
    assert compare_figures(card, whole) == []
    assert [done for stage, done, _ in seen if stage == "drawing counts"] == [0, 40, 80, 120]
    with pytest.raises(ValueError, match="opens the data itself"):
        make_card(folder / "run", make_adata(), folder / "never", dask="tcp://nowhere")
    with pytest.raises(SourceError, match="in a folder that they share"):
        make_card(folder / "run", folder / "data.h5ad", dask="tcp://nowhere")


def test_minified_cells_of_other_data_are_refused_before_the_pass(folder: Path, tmp_path: Path, monkeypatch):
    make_adata()[:50].write_h5ad(tmp_path / "few.h5ad")
    minify(folder / "run", tmp_path / "few.h5ad", tmp_path / "mini")
    monkeypatch.setattr(module, "measure_part", lambda *given: pytest.fail("the pass began"))
    with pytest.raises(SourceError, match=r"it has 50 minified cells and .*data\.h5ad has 120"):
        write_card_folder(folder / "run", folder / "data.h5ad", tmp_path / "card", minified=tmp_path / "mini")
    with pytest.raises(OutputError, match="is not an address"):
        write_card_folder(folder / "run", folder / "data.h5ad", tmp_path / "card", data_url="somewhere")
