"""Densities of cells under samples, slice by slice, against one mixture of all cells of a sample."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from atlasvi.engine import OpenedQuestion
from atlasvi.engine.queries import abundance
from atlasvi.engine.queries.abundance import differential_abundance, limit_members, slice_abundance
from atlasvi.engine.queries.latents import mix_posteriors, read_latents
from atlasvi.loaders.errors import AtlasviWarning


@pytest.fixture(scope="module")
def opened(forms: Path) -> OpenedQuestion:
    return OpenedQuestion(forms / "x.mini")


@pytest.mark.parametrize("dof", [None, 3.0])
def test_slices_are_the_densities_of_whole_mixtures(opened: OpenedQuestion, dof: float | None):
    model, cells = opened.run.model, opened.cells
    chosen, donors = np.arange(0, 60, 2), cells.read_column("donor")
    samples, slices = slice_abundance(
        model, cells, cells, opened.make_generator(0), "donor", chosen, dof=dof, batch_size=8
    )
    parts = list(slices)
    assert samples.tolist() == donors.unique().tolist()
    assert [name for names, _ in parts for name in names] == cells.read_names(chosen).tolist()
    found = np.concatenate([values for _, values in parts])
    qzm, qzv = (torch.from_numpy(part) for part in read_latents(model, cells, np.arange(60)))
    for k, sample in enumerate(samples):
        inside = (donors == sample).to_numpy(copy=True)  # torch warns of read-only arrays, which pandas 3 gives
        expected = mix_posteriors(qzm[inside], qzv[inside], dof).log_prob(qzm[chosen])
        np.testing.assert_allclose(found[:, k], expected, atol=1e-5)


def test_many_cells_are_compared_with_a_sample_of_each_sample(opened: OpenedQuestion, monkeypatch: pytest.MonkeyPatch):
    arguments = opened.run.model, opened.cells, opened.cells, opened.make_generator(0), "donor"
    whole = differential_abundance(*arguments)
    monkeypatch.setattr(abundance, "PAIRS", 60 * 20)  # 60 cells, with 20 cells of both donors together
    with pytest.warns(AtlasviWarning, match="at most 10 cells of each sample"):
        _, slices = slice_abundance(*arguments)
    found = np.concatenate([values for _, values in slices])
    assert not np.allclose(found, whole)
    assert abs(found - whole.to_numpy()).mean() < 0.5
    assert differential_abundance(*arguments).equals(whole)  # as scvi-tools: all cells unless the number is set


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=20), st.integers(1, 3000))
def test_a_limit_is_the_largest_that_keeps_the_total(sizes: list[int], n: int):
    limit = limit_members(np.array(sizes), n)

    def total(limit: int) -> int:
        return int(np.minimum(sizes, limit).sum())

    assert limit == 1 or total(limit) <= n
    assert limit == max(sizes) or total(limit + 1) > n


@pytest.mark.slow
def test_densities_are_those_of_scvi_tools(shared: Path):
    """`tests/golden/abundance.npz`: some rows of scvi-tools 1.5.1's `differential_abundance(sample_key="indiv")`."""
    with np.load(Path(__file__).parents[2] / "golden" / "abundance.npz") as file:
        theirs = dict(file)
    asked = OpenedQuestion(shared / "scvi_models" / "onek1k_seed" / "minified.h5ad")
    arguments = asked.run.model, asked.cells, asked.cells, asked.make_generator(0), "indiv"
    samples, slices = slice_abundance(*arguments, theirs["rows"])
    assert list(map(str, samples)) == theirs["samples"].tolist()
    np.testing.assert_allclose(np.concatenate([part for _, part in slices]), theirs["log_probs"], atol=2e-4)
