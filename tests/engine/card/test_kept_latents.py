from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import torch

from atlasvi.engine.card import card_parts
from atlasvi.engine.card.kept_latents import LATENTS_FILE, CardPosterior, LatentsWriter
from atlasvi.engine.hub.card_folder import write_card_folder
from atlasvi.engine.minified.kept_posterior import LIBRARY
from atlasvi.engine.minified.minify import minify
from atlasvi.engine.model.trained_run import load_run
from atlasvi.engine.queries.opened_data import open_question_cells
from atlasvi.engine.queries.question_cells import Posterior
from atlasvi.loaders.errors import ColumnError
from tests.engine.card.small_atlas import N_CELLS, make_adata


def test_the_posterior_of_the_draws_is_what_minify_keeps(folder: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(card_parts, "FEWEST_PARTS", 3)
    monkeypatch.setattr(card_parts, "LEAST_PART_CELLS", 1)
    run = load_run(folder / "run")
    in_no_part = np.arange(N_CELLS) % 7 == 0
    run.split = {"train": np.flatnonzero(~in_no_part)}
    minify(run, folder / "data.h5ad", tmp_path / "mini")
    card = write_card_folder(run, folder / "data.h5ad", tmp_path / "one", n_draws=2)
    write_card_folder(run, folder / "data.h5ad", tmp_path / "two", n_draws=2, minified=tmp_path / "mini")
    assert card.parts["all"].n_cells == N_CELLS - in_no_part.sum()
    one, two = (anndata.read_h5ad(tmp_path / name / "adata.h5ad") for name in ("one", "two"))
    pd.testing.assert_frame_equal(one.obs, two.obs, check_like=True)
    pd.testing.assert_frame_equal(one.var, two.var)
    for name in two.obsm:
        np.testing.assert_allclose(one.obsm[name], two.obsm[name], rtol=1e-5, atol=1e-6)


def test_slices_cross_the_ends_of_parts_and_cells_may_come_in_any_runs(folder: Path, tmp_path: Path):
    run = load_run(folder / "run")
    adata = make_adata()
    adata.obs[LIBRARY] = -1.0  # a column of this name gives way to the library sizes
    cells, n_latent, part_cells = open_question_cells(adata, run), run.model.n_latent, 50
    values = np.random.default_rng(0).normal(size=(N_CELLS, 2 * n_latent + 1)).astype(np.float32)
    for part, start in enumerate(range(0, N_CELLS, part_cells)):
        with open(tmp_path / LATENTS_FILE.format(part), "wb") as file:
            writer, here = LatentsWriter(file, start), np.arange(start, min(start + part_cells, N_CELLS))
            for chosen in (here[here % 5 != 0], here[here % 5 == 0]):
                qzm, qzv, library = np.split(values[chosen], [n_latent, 2 * n_latent], axis=1)
                writer.write(chosen, Posterior(*map(torch.from_numpy, (qzm, qzv, library[:, 0])), codes={}))
    kept = CardPosterior(tmp_path, part_cells, cells, run)
    qzm, qzv = kept.read_latent(30, 110)
    np.testing.assert_array_equal(np.hstack([qzm, qzv]), values[30:110, :-1])
    np.testing.assert_array_equal(kept.read_column(LIBRARY, 45, 55), values[45:55, -1])
    assert kept.read_column("type").tolist() == adata.obs["type"].tolist()
    assert kept.read_names(7, 9).tolist() == ["cell7", "cell8"]
    some = np.array([3, 49, 50, 110])
    np.testing.assert_array_equal(np.hstack(kept.take_latent(some)), values[some, :-1])
    np.testing.assert_array_equal(kept.take_column(LIBRARY, some), values[some, -1])
    assert kept.take_column("type", some).tolist() == adata.obs["type"].iloc[some].tolist()
    assert kept.take_names(some).tolist() == [f"cell{cell}" for cell in some]
    assert kept.run is run
    with pytest.raises(ColumnError, match="nothing"):
        kept.read_column("nothing")
