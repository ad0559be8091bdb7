"""Names as options give them."""

from pathlib import Path

import anndata
import pytest

from atlasvi.engine.cli.arguments import split_names, split_repeated
from atlasvi.engine.model.trained_run import load_run
from atlasvi.loaders.errors import SourceError
from tests.engine.api.small_models import make_adata
from tests.engine.distributed.rank_processes import run_command


def test_names_are_separated_by_commas_unless_they_are_quoted(tmp_path: Path):
    (tmp_path / "names").write_text("a, b\n\nc\n")
    assert split_names("a, b,c ") == ["a", "b", "c"]
    assert split_names('"a, b",c"d, "e""f"') == ["a, b", 'c"d', 'e"f']
    assert split_names("") == [""]
    assert split_names(f"@{tmp_path}/names") == ["a, b", "c"]
    assert split_names(None) is split_repeated(None) is None
    assert split_repeated(["a,b", '"c, d"']) == ["a", "b", "c, d"]
    assert split_names('" a ", b ,"", "unended, c') == [" a ", "b", "", "unended, c"]
    assert split_names('"a"b, "=1+1"') == ['"a"b', "=1+1"]
    assert split_names(f'"{" " * 100_000}"x') == [f'"{" " * 100_000}"x']  # in no more time than its length takes
    assert split_names("a\rb\nc,d\n") == ["a\rb\nc", "d"]
    with pytest.raises(SourceError, match="can't be read"):
        split_names(f"@{tmp_path}")


def test_a_column_whose_name_has_a_comma_can_be_a_covariate(tmp_path: Path):
    adata = make_adata(40)
    adata.obs = adata.obs.rename(columns={"donor": "donor, site", "percent_mito": "mito, percent"})
    adata.write_h5ad(tmp_path / "cells.h5ad")
    assert "donor, site" in anndata.read_h5ad(tmp_path / "cells.h5ad").obs
    keys = ["--categorical-covariate-keys", '"donor, site"', "--categorical-covariate-keys", "cell_type"]
    keys += ["--continuous-covariate-keys", '"mito, percent"', "--epochs", 1, "--set", "n_hidden=8"]
    done = run_command("train", tmp_path / "cells.h5ad", "--out", tmp_path / "run", *keys)
    assert done.returncode == 0, done.stderr
    kept = load_run(tmp_path / "run").setup.keys
    assert kept.categorical_covariate_keys == ("donor, site", "cell_type")
    assert kept.continuous_covariate_keys == ("mito, percent",)
