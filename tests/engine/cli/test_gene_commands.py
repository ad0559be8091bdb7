"""`atlasvi query aggregate` and `similar-genes`: the numbers are those of the Python functions."""

from pathlib import Path

import numpy as np

from atlasvi.engine import OpenedQuestion, aggregate, similar_genes
from tests.engine.cli.test_query_commands import ask, refuse


def test_groups_are_those_of_python(forms: Path):
    opened = OpenedQuestion(forms / "x.mini")
    chosen = np.flatnonzero(opened.cells.read_column("batch") == "a")
    options = {"genes": ["g3", "g1"], "library_size": 1e4, "transform_batch": ["a", "b"]}
    words = ["--genes", "g3,g1", "--library-size", "1e4", "--transform-batch", "a,b", "--where", "batch=a"]
    expected = aggregate(opened, ["cell_type", "donor"], chosen=chosen, **options)
    found = ask(forms, "x.mini", "aggregate", "--by", "cell_type,donor", *words)
    assert found.columns.tolist() == ["cell_type", "donor", "n_cells", "g3", "g1"]
    assert found["n_cells"].tolist() == expected.groups["n_cells"].tolist()
    np.testing.assert_allclose(found[["g3", "g1"]], expected.mean, rtol=1e-5)
    expected = aggregate(opened, "donor", genes=["g3", "g1"], fraction_at="observed", max_cells=9, seed=4)
    words = ["--genes", "g3,g1", "--fraction-at", "observed", "--max-cells", 9, "--seed", 4]
    found = ask(forms, "x.mini", "aggregate", "--by", "donor", *words)
    assert expected.fraction is not None
    assert expected.standard_error is not None
    np.testing.assert_allclose(found["mean"], expected.mean.ravel(), rtol=1e-5)
    np.testing.assert_allclose(found["fraction"], expected.fraction.ravel(), rtol=1e-5)
    np.testing.assert_allclose(found["standard_error"], expected.standard_error.ravel(), rtol=1e-5)
    assert "'kind'" in refuse(forms, "x.mini", "aggregate", "--by", "kind")


def test_similar_genes_are_those_of_python(forms: Path):
    expected = similar_genes(forms / "x.mini", ["g5", "g2"], top=3, max_cells=40, seed=1)
    found = ask(forms, "x.mini", "similar-genes", "--genes", "g5,g2", "--top", 3, "--max-cells", 40, "--seed", 1)
    assert found.index.tolist() == ["g5"] * 3 + ["g2"] * 3
    assert found["similar_gene"].tolist() == expected["similar_gene"].tolist()
    np.testing.assert_allclose(found["correlation"], expected["correlation"], rtol=1e-5)
    assert "no gene 'CD3E'" in refuse(forms, "x.mini", "similar-genes", "--genes", "CD3E")
