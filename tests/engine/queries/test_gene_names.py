from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest

from atlasvi.engine.minified.minified_store import MinifiedStore
from atlasvi.engine.queries.gene_names import GeneNames
from atlasvi.engine.queries.minified_queries import read_expression
from atlasvi.engine.queries.opened_question import OpenedQuestion
from atlasvi.loaders.errors import ColumnError, GeneError
from tests.engine.cli.test_commands import SMALL, atlasvi

IDS = ["ENSG00000198851.10", "ENSG00000090382", "ENSG00000002586.20_PAR_Y", "ENSG00000000001", "ENSG00000000002", "LNC"]
SYMBOLS = ["CD3E", "LYZ", "CD99", "DUP", "DUP", None]


def names(**columns: Any) -> GeneNames:
    var = pd.DataFrame({"symbol": pd.Categorical(SYMBOLS), "biotype": ["protein"] * 6, "length": range(6), **columns})
    return GeneNames(IDS, var)


@pytest.mark.parametrize(
    ("asked", "place"),
    [
        ("ENSG00000198851.10", 0),
        ("ENSG00000198851", 0),
        ("ENSG00000198851.3", 0),
        ("ENSG00000090382.7", 1),
        ("ENSG00000002586_PAR_Y", 2),
        ("CD3E", 0),
        ("CD99", 2),
        ("LNC", 5),
    ],
)
def test_a_gene_is_found_by_its_id_with_or_without_a_version_and_by_its_symbol(asked: str, place: int):
    assert names().find([asked], "x").tolist() == [place]
    assert GeneNames(IDS).find(["ENSG00000198851", IDS[3]], "x").tolist() == [0, 3]


def test_ids_in_a_column_are_found_where_the_model_has_symbols():
    found = GeneNames(["CD3E", "LYZ"], pd.DataFrame({"id": IDS[:2]}))
    assert found.find(["ENSG00000198851", "LYZ", "ENSG00000090382.1"], "x").tolist() == [0, 1, 1]


def test_a_name_of_the_model_comes_before_one_of_a_column():
    found = GeneNames(["A", "B"], pd.DataFrame({"symbol": ["B", "A"]}))
    assert found.find(["A", "B"], "x").tolist() == [0, 1]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("DUP", "'DUP' is the name of 2 genes (ENSG00000000001, ENSG00000000002): name one of those"),
        ("cd3e", "no gene 'cd3e' in the model (similar: CD3E"),
        ("CD98", "similar: CD99"),
        ("protein", "it has 6: ENSG00000198851.10"),
    ],
)
def test_what_no_gene_or_several_are_called_is_said_with_near_names(asked: str, message: str):
    with pytest.raises(GeneError) as refused:
        names().find([asked], "x")
    assert message in str(refused.value)


def test_genes_are_renamed_by_a_column_where_it_names_one_gene():
    assert names().rename("symbol", "x") == ["CD3E", "LYZ", "CD99", IDS[3], IDS[4], "LNC"]
    assert GeneNames(["A", "B", "C"], pd.DataFrame({"s": ["B", None, "Z"]})).rename("s", "x") == ["A", "B", "Z"]
    with pytest.raises(ColumnError, match=r"no column 'symbols' \(there are: symbol, biotype, length\).*symbol"):
        names().rename("symbols", "x")


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        (None, IDS),
        ("cd", [IDS[0], IDS[2]]),
        ("cd?e", [IDS[0]]),
        ("*1", [IDS[3]]),
        ("lnc", ["LNC"]),
        ("[cl]", []),
    ],
)
def test_genes_are_listed_by_a_part_of_any_of_their_names(pattern: str | None, found: list[str]):
    table = names().table(pattern)
    assert table.index.tolist() == found
    assert table.columns.tolist() == ["symbol", "biotype", "length"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A minified store whose genes are Ensembl ids, with symbols beside them; its run, and its counts."""
    place = tmp_path_factory.mktemp("genes")
    counts = np.random.default_rng(0).poisson(3.0, (60, 6)).astype(np.float32)
    var = pd.DataFrame({"symbol": pd.Categorical(SYMBOLS)}, index=IDS)
    anndata.AnnData(counts, var=var).write_h5ad(place / "a.h5ad")
    atlasvi("train", place / "a.h5ad", "--out", place / "run", "--epochs", 1, *SMALL)
    atlasvi("minify", place / "run", place / "a.h5ad", "--out", place / "mini")
    return place


def test_questions_take_any_name_and_answer_by_the_one_that_was_typed(folder: Path):
    mini = MinifiedStore(folder / "mini")
    ((_, by_id),) = read_expression(mini, genes=[IDS[0], IDS[1]])
    ((_, by_symbol),) = read_expression(mini, genes=["CD3E", "ENSG00000090382.5"])
    assert np.array_equal(by_id, by_symbol)
    for places in ([folder / "mini"], [folder / "run", folder / "a.h5ad"], [folder / "mini", folder / "a.h5ad"]):
        said = atlasvi("query", *places, "expression", "--genes", "CD3E,LNC", "--limit", 1).stdout.splitlines()
        assert said[0] == "cell,CD3E,LNC"
        assert "similar: CD3E" in atlasvi("query", *places, "expression", "--genes", "CD3", ok=False).stderr


def test_a_column_names_the_genes_of_questions_and_answers(folder: Path):
    for places in ([folder / "mini"], [folder / "run", folder / "a.h5ad"]):
        said = atlasvi("query", *places, "expression", "--gene-column", "symbol", "--limit", 1).stdout.splitlines()
        assert said[0] == f"cell,CD3E,LYZ,CD99,{IDS[3]},{IDS[4]},LNC"
    opened = OpenedQuestion(folder / "mini", gene_column="symbol")
    assert opened.run.var is not None
    assert opened.run.var["var_names"].tolist() == IDS
    said = atlasvi("query", folder / "mini", "latent", "--gene-column", "symbol", "--limit", 1).stdout
    assert said.startswith("cell,z0")
    refused = atlasvi("query", folder / "mini", "expression", "--gene-column", "name", ok=False).stderr
    assert "var has no column 'name' (there are: symbol)" in refused


def test_the_genes_of_a_store_are_listed(folder: Path):
    said = atlasvi("query", folder / "mini", "genes", "cd*").stdout.splitlines()
    assert said == ["gene,symbol", f"{IDS[0]},CD3E", f"{IDS[2]},CD99"]
    assert len(atlasvi("query", folder / "mini", "genes").stdout.splitlines()) == 7
    assert (
        "None of the 6 genes has a name like 'xyz'"
        in atlasvi("query", folder / "mini", "genes", "xyz", ok=False).stderr
    )
