from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlasvi.loaders.batches.cell_mask import CellMask
from atlasvi.loaders.batches.cell_selection import Draws, choose_cells
from atlasvi.loaders.batches.loader import BatchLoader
from atlasvi.loaders.cells.open_cells import CellData, open_cells
from atlasvi.loaders.errors import ColumnError
from atlasvi.loaders.ingestion.ingest import ingest
from tests.loaders.conftest import make_counts, write_counts

N = 300
OBS = pd.DataFrame(
    {
        "cell type": pd.Categorical(np.where(np.arange(N) < 10, "rare", "common")),
        "kind": pd.Categorical(np.array(["a", "b", "c"])[np.arange(N) % 3]),
        "depth": np.arange(N, dtype=float),
        "maybe": pd.Categorical([None, *["x"] * (N - 1)]),
    },
    index=[f"c{k}" for k in range(N)],
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    ingest(write_counts(folder, "a", make_counts(N, 20), obs=OBS), folder / "store")
    return folder


@pytest.fixture(params=["store", "a.h5ad"])
def data(request, folder: Path) -> CellData:
    return open_cells(folder / request.param)


@pytest.mark.parametrize(
    ("expression", "rows"),
    [
        ("kind == 'b' and depth > 100", [k for k in range(101, N) if k % 3 == 1]),
        ("`cell type` == 'rare'", list(range(10))),
        ("depth < 5 or kind in ['a']", sorted({*range(5), *range(0, N, 3)})),
        ("maybe != 'x'", [0]),
        ("not (depth >= 3)", [0, 1, 2]),
        ("depth.between(3, 5) | kind.str.startswith('z')", [3, 4, 5]),
        ("maybe.isna()", [0]),
        ("depth.isin([7, -8])", [7]),
    ],
)
def test_an_expression_over_obs_chooses_cells(data: CellData, expression: str, rows: list[int]):
    chosen = choose_cells(data, expression)
    assert sorted(data.read_column("source_row")[chosen]) == rows
    loader = BatchLoader(data, 16, seed=0, cells=expression)
    assert loader.n_cells == len(rows) == sum(len(batch) for batch in loader)


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("knd == 'b'", r"no obs column 'knd'|knd"),
        ("depth >", r"is not an expression"),
        ("depth + 1", r"no truth value for each cell"),
        ("depth > 1000", r"is true for no cell"),
        ("depth > @limit", r"@name variables"),
        ("__import__('os').system('true')", r"__import__"),
        ("kind > 3", r"fails on its obs"),
    ],
)
def test_an_expression_that_makes_no_sense_is_explained(data: CellData, expression: str, message: str):
    with pytest.raises(ColumnError, match=message):
        choose_cells(data, expression)


def test_classes_in_balance_are_drawn_equally_often(data: CellData):
    loader = BatchLoader(data, 30, seed=0, codes=["cell type"], balance="cell type")
    for _ in range(2):
        codes = np.concatenate([batch.codes["cell type"].numpy() for batch in loader])
        assert len(codes) == N
        assert np.bincount(codes).tolist() == [N // 2, N // 2]


def test_over_epochs_the_common_take_turns(data: CellData):
    loader = BatchLoader(data, 64, seed=0, balance="cell type")
    first, second = ({*np.concatenate([batch.rows.numpy() for batch in loader]).tolist()} for _ in range(2))
    assert first != second


def test_a_missing_class_is_refused_where_cells_are_balanced(data: CellData):
    with pytest.raises(ColumnError, match=r"'maybe' has missing values"):
        BatchLoader(data, 30, seed=0, balance="maybe")
    BatchLoader(data, 30, seed=0, balance="maybe", cells="maybe == 'x'")


def test_cells_of_weight_zero_are_never_drawn_and_the_state_resumes(data: CellData):
    weights = (np.arange(N) % 2).astype(float)
    loader = BatchLoader(data, 32, seed=4, weights=weights)
    whole = [batch.rows.tolist() for batch in loader]
    assert {row % 2 for rows in whole for row in rows} == {1}
    again = BatchLoader(data, 32, seed=4, weights=weights)
    again.set_epoch(0, 5)
    assert [batch.rows.tolist() for batch in again] == whole[5:]


@given(
    weights=st.lists(st.floats(0, 1e6), min_size=1, max_size=50).filter(lambda weights: sum(weights) > 1e-3),
    seed=st.integers(0, 99),
)
def test_each_cell_is_drawn_as_often_as_expected_rounded_up_or_down(weights, seed):
    draws = Draws(np.array(weights), None)
    counts = draws.count(0, len(weights), seed, 0)
    assert counts.sum() == len(weights)
    assert (np.abs(counts - np.array(weights) / sum(weights) * len(weights)) < 1 + 1e-6).all()
    middle = len(weights) // 2
    assert np.array_equal(
        counts, np.concatenate([draws.count(0, middle, seed, 0), draws.count(middle, len(weights), seed, 0)])
    )


@pytest.mark.parametrize("weights", [[0.0, 0.0], [1.0, -1.0], [1.0, np.nan], [np.inf, 1.0]])
def test_weights_that_make_no_sense_are_refused(weights: list[float]):
    with pytest.raises(ValueError, match="weights must be finite"):
        Draws(np.array(weights), None)


@pytest.mark.parametrize(
    "expression",
    [
        "kind.to_csv('{}') == 1",
        "kind.str.cat() == 'a'",
        "kind.values == 'a'",
        "kind.isin(kind.to_list())",
        "[x for x in kind]",
        "kind.__class__ == 1",
        "f'{{kind}}' == kind",
    ],
)
def test_an_expression_only_compares_and_calls_what_is_listed(data, tmp_path, expression: str):
    written = tmp_path / "written"
    with pytest.raises(ColumnError, match=r"holds .*: an expression compares columns with values"):
        choose_cells(data, expression.format(written))
    assert not written.exists()


@pytest.mark.parametrize("make", [np.array, list, pd.Series, lambda mask: CellMask.from_bools(np.array(mask))])
def test_a_mask_may_be_any_list_of_truth_values(data: CellData, make):
    mask = [k % 7 == 3 for k in range(N)]
    rows = np.concatenate([batch.rows.numpy() for batch in BatchLoader(data, 16, seed=0, cells=make(mask))])
    assert sorted(rows) == list(range(3, N, 7))
