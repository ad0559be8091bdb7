"""Labels of latents whose true probabilities are known: two types that overlap, and one that lies apart."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from atlasvi.engine import annotate
from atlasvi.engine.minified.kept_posterior import KeptPosterior
from atlasvi.engine.model.covariates import Setup, SetupKeys
from atlasvi.engine.queries.annotation import AnnotationOptions, Annotator, measure_calibration
from atlasvi.engine.queries.new_cells import NewCells
from atlasvi.engine.queries.question_cells import MinifiedCells, QueryError
from atlasvi.loaders.errors import ColumnError
from tests.engine.api.small_models import make_adata
from tests.engine.queries.forms_of_cells import make_forms

CENTRES = np.array([[0, 0, 0, 0], [2, 0, 0, 0], [0, 9, 0, 0]], np.float32)
TYPES = np.array(["T", "B", "NK"], object)


class Obs:
    def __init__(self, table: pd.DataFrame) -> None:
        self.table, self.columns = table, list(table.columns)

    def read_names(self, start: int, stop: int) -> pd.Index:
        return self.table.index[start:stop]

    def read_column(self, name: str, start: int = 0, stop: int | None = None) -> pd.Series:
        return self.table[name].iloc[start:stop].reset_index(drop=True)

    def take_names(self, rows: np.ndarray) -> pd.Index:
        return self.table.index[rows]

    def take_column(self, name: str, rows: np.ndarray) -> pd.Series:
        return self.table[name].iloc[rows].reset_index(drop=True)


class Labelled(KeptPosterior):
    """Cells of three types around CENTRES, of four batches; the last two dimensions carry no information."""

    def __init__(self, n: int, seed: int, types: tuple[int, ...] = (0, 1, 2)) -> None:
        random = np.random.default_rng(seed)
        self.kinds = random.choice(types, n)
        qzm = CENTRES[self.kinds] + random.standard_normal((n, 4)) * [1, 1, 0.02, 0.02]
        qzv = np.tile([0.01, 0.01, 1, 1], (n, 1))
        obs = pd.DataFrame({"type": TYPES[self.kinds], "donor": random.choice(list("abcd"), n)})
        obs.index = [f"cell{seed}_{k}" for k in range(n)]
        latents = qzm.astype(np.float32), qzv.astype(np.float32)
        super().__init__("labelled", n, Obs(obs), pd.DataFrame(), latents, 4)

    @property
    def setup(self) -> Setup:
        return Setup(keys=SetupKeys(batch_key="donor"))


def label(reference: Labelled, new: Labelled, **options: Any) -> pd.DataFrame:
    annotator = Annotator(MinifiedCells(reference), "type", AnnotationOptions(**options))
    return pd.concat(list(annotator.slice_labels(NewCells(MinifiedCells(new), None), ["donor"])))  # type: ignore[arg-type]


@pytest.mark.parametrize("n_draws", [0, 5])
def test_probabilities_are_those_of_the_types_where_they_overlap(n_draws: int):
    """log odds of two normals whose means are 2 apart: 2 (x - 1)."""
    reference, new = Labelled(4_000, 0), Labelled(2_000, 1, types=(0, 1))
    table = label(reference, new, n_draws=n_draws, k=50)
    right = (table["closest"] == TYPES[new.kinds]).to_numpy()
    assert right.mean() == pytest.approx(0.84, abs=0.03)  # that of the best possible rule
    assert measure_calibration(table["probability"].to_numpy(), right) < 0.04
    true = 1 / (1 + np.exp(-2 * (new.read_latent(0, 2_000)[0][:, 0] - 1)))
    of_b = np.where(table["closest"] == "B", table["probability"], 1 - table["probability"])
    assert np.abs(of_b - true).mean() < 0.07


def test_a_type_that_the_reference_lacks_is_unknown_and_others_seldom_are():
    reference, new = Labelled(3_000, 0, types=(0, 1)), Labelled(1_500, 1)
    table = label(reference, new)
    unknown = (table["label"] == "unknown").to_numpy()
    assert unknown[new.kinds == 2].all()
    assert unknown[new.kinds != 2].mean() < 0.03
    assert (table["typical"].to_numpy()[new.kinds == 2] < 0.01).all()
    assert (table["label"] == table["closest"])[~unknown].all()
    assert (label(reference, new, unknown=0)["label"] != "unknown").all()


def test_the_neighbours_explain_a_label():
    reference, new = Labelled(500, 0), Labelled(20, 1)
    table = label(reference, new, k=10)
    qzm, asked = reference.read_latent(0, 500)[0], new.read_latent(0, 20)[0]
    squared = ((asked[:, None] - qzm) ** 2).sum(2)
    near = np.argsort(squared, axis=1)[:, :10]
    assert table["nearest"].tolist() == reference.read_names()[near[:, 0]].tolist()
    np.testing.assert_allclose(table["distance"], np.sqrt(np.sort(squared, axis=1)[:, :10].mean(1)), rtol=1e-4)
    donors = reference.read_column("donor").to_numpy()[near]
    assert table["donor_values"].tolist() == [len(set(row)) for row in donors]
    assert all((row == most).sum() == pd.Series(row).value_counts().max() for row, most in zip(donors, table["donor"]))


def test_missing_values_of_the_neighbours_are_none_of_their_values():
    reference, new = Labelled(200, 0), Labelled(9, 1)
    donors = reference.obs.table["donor"].astype(object)
    reference.obs.table["donor"] = donors.where(np.arange(200) % 2 == 0)
    table = label(reference, new, k=10)
    assert set(table["donor"]) <= set(map(str, donors))
    reference.obs.table["donor"] = pd.Series([None] * 200, reference.obs.table.index, dtype=object)
    table = label(reference, new, k=10)
    assert table["donor"].isna().all()
    assert (table["donor_values"] == 0).all()


def test_the_first_cells_have_the_same_labels_whatever_follows_and_seeds_differ():
    reference, new = Labelled(500, 0), Labelled(60, 1)
    annotator = Annotator(MinifiedCells(reference), "type", AnnotationOptions())
    cells = NewCells(MinifiedCells(new), None)  # type: ignore[arg-type]
    all_cells, first = (pd.concat(list(annotator.slice_labels(cells, limit=limit))) for limit in (None, 10))
    pd.testing.assert_frame_equal(all_cells.iloc[:10], first)
    other = Annotator(MinifiedCells(reference), "type", AnnotationOptions(seed=1))
    assert not pd.concat(list(other.slice_labels(cells)))["probability"].equals(all_cells["probability"])


def test_cells_without_a_label_and_cells_that_are_not_chosen_are_no_neighbours():
    reference, new = Labelled(600, 0), Labelled(50, 1)
    reference.obs.table.loc[reference.obs.table.index[:300], "type"] = None
    chosen = np.arange(600) < 550
    annotator = Annotator(MinifiedCells(reference), "type", AnnotationOptions(k=5), chosen)
    table = pd.concat(list(annotator.slice_labels(NewCells(MinifiedCells(new), None))))  # type: ignore[arg-type]
    assert set(table["nearest"]) <= set(reference.read_names()[300:550])
    assert set(table["closest"]) <= set(TYPES)


def test_one_label_is_no_choice():
    with pytest.raises(QueryError, match="1 label in column 'type'"):
        label(Labelled(50, 0, types=(1,)), Labelled(5, 1))
    with pytest.raises(ColumnError, match="kind"):
        Annotator(MinifiedCells(Labelled(50, 0)), "kind", AnnotationOptions())


@pytest.mark.parametrize("options", [{"k": 0}, {"n_draws": -1}, {"unknown": 1}, {"seed": -1}])
def test_options_out_of_range_are_refused(options: dict):
    with pytest.raises(QueryError, match=next(iter(options))):
        AnnotationOptions(**options)


def test_counts_of_a_file_are_labelled_by_the_model_of_a_store(tmp_path: Path):
    make_forms(tmp_path)
    make_adata(15, seed=3, batches="xy").write_h5ad(tmp_path / "new.h5ad")
    table = annotate(tmp_path / "x.mini", tmp_path / "new.h5ad", "cell_type", k=5)
    assert len(table) == 15
    assert set(table["closest"]) <= {"B", "NK", "T"}
    assert table["probability"].between(0, 1).all()


def test_the_calibration_error_is_the_mean_difference_over_bins():
    probability = np.repeat([0.99, 0.7], [100, 50])
    right = np.concatenate([np.arange(100) < 90, np.arange(50) < 40])
    assert measure_calibration(probability, right) == pytest.approx((100 * 0.09 + 50 * 0.1) / 150)
