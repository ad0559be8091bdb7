import json
import re
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest

from atlasvi.engine.model.covariates import KEYS, KINDS, Setup, SetupKeys, find_categories, learn_setup, to_category
from atlasvi.loaders.cells.open_cells import CellData, open_cells
from atlasvi.loaders.errors import ColumnError

OBS = pd.DataFrame(
    {
        "donor": pd.Categorical(["x", "y", "x", "y"], categories=["unused", "y", "x"]),
        "sex": [1, 2, 1, 1],
        "sick": [True, False, False, True],
        "age": [30.0, 4.5, 61.0, 30.0],
        "factor": [0.5, 1.0, 2.0, 1.0],
        "zero": [1.0, 0.0, 1.0, 1.0],
        "endless": [1.0, np.inf, 1.0, 1.0],
        "gaps": [1.0, np.nan, 1.0, 1.0],
    },
    index=list("abcd"),
)


def open_obs(folder: Path, obs: pd.DataFrame = OBS) -> CellData:
    path = folder / f"{len(list(folder.iterdir()))}.h5ad"
    anndata.AnnData(np.ones((len(obs), 2), np.float32), obs, pd.DataFrame(index=["g", "h"])).write_h5ad(path)
    return open_cells(path)


def test_a_setup_is_learned_from_the_columns_and_reads_their_codes(tmp_path: Path):
    data = open_obs(tmp_path)
    keys = SetupKeys(
        batch_key="donor",
        labels_key="sick",
        size_factor_key="factor",
        categorical_covariate_keys=("sex", "sick"),
        continuous_covariate_keys=("age", "sex"),
    )
    setup = learn_setup(data, keys)
    assert setup.batch_categories == ["y", "x"]  # unused ones left out, the order kept
    assert setup.categorical_covariates == {"sex": [1, 2], "sick": [False, True]}
    assert setup.category_dtypes == {"sex": "int64", "sick": "bool"}
    assert setup.sizes == {
        "n_batches": 2,
        "n_labels": 2,
        "n_categories": (2, 2),
        "n_continuous": 2,
        "use_size_factor": True,
    }
    codes = setup.read_codes(data, labels=True)
    assert codes["batch"].tolist() == [1, 0, 1, 0]
    assert codes["labels"].tolist() == [1, 0, 0, 1]
    assert codes["categories"].tolist() == [[0, 1], [1, 0], [0, 0], [0, 1]]
    assert codes["continuous"].tolist() == [[30, 1], [4.5, 2], [61, 1], [30, 1]]
    assert codes["size_factor"].tolist() == [0.5, 1, 2, 1]
    assert "labels" not in setup.read_codes(data)


def test_codes_of_other_data_are_those_of_the_model(tmp_path: Path):
    setup = learn_setup(open_obs(tmp_path), SetupKeys(batch_key="donor", categorical_covariate_keys=("sex",)))
    fewer = OBS.assign(donor=["x"] * 4, sex=pd.Categorical([2, 2, 1, 1]))
    codes = setup.read_codes(open_obs(tmp_path, fewer))
    assert codes["batch"].tolist() == [1] * 4
    assert codes["categories"].tolist() == [[1], [1], [0], [0]]
    with pytest.raises(ColumnError, match=r"'sex' holds '3', which is not among the categories .*\(1, 2\)"):
        setup.read_codes(open_obs(tmp_path, OBS.assign(sex=[1, 3, 1, 1])))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"size_factor_key": "zero"}, r"'zero' holds 0 \(cell 1\): a size factor must be above 0"),
        ({"continuous_covariate_keys": ["donor"]}, "'donor' is not numeric"),
        ({"continuous_covariate_keys": ["gaps"]}, r"'gaps' has missing values \(1 cells, first: cell 1\)"),
        ({"continuous_covariate_keys": ["endless"]}, r"'endless' holds inf \(cell 1\)"),
        ({"categorical_covariate_keys": ["nowhere"]}, "no column 'nowhere'"),
    ],
)
def test_columns_that_do_not_do_are_named(tmp_path: Path, keys: dict, message: str):
    data = open_obs(tmp_path)
    with pytest.raises(ColumnError, match=message):
        learn_setup(data, SetupKeys.from_arguments(keys)).read_codes(data)


def test_a_model_without_covariates_asks_for_nothing(tmp_path: Path):
    assert Setup().read_codes(open_obs(tmp_path)) == {}


@pytest.mark.parametrize(
    ("known", "asked", "places"),
    [
        ([1, 2], [1.0, np.int8(2), np.float32(3)], [0, 1, None]),
        ([0.5, 3.0], [3, "3", "3.0", "0.5"], [1, 1, None, 0]),
        (["1", "b"], [1, 1.0, "b", True], [0, 0, 1, None]),
        ([False, True], ["True", True, "unassigned"], [1, 1, None]),
        ([2**60 + 1], [2**60, float(2**60)], [None, None]),
        ([float(np.float32(0.1))], [np.float32(0.1), 0.1], [0, None]),
        ([1, "1"], ["1", 1], [1, 0]),
    ],
)
def test_categories_are_found_by_value(known, asked, places):
    assert find_categories(known, [to_category(value) for value in asked]) == places


@pytest.mark.parametrize(
    ("values", "categories", "dtype"),
    [
        (pd.array([1, 2, 1, 2], "Int64"), [1, 2], "int64"),
        (pd.array([True, False, True, True], "boolean"), [False, True], "bool"),
        (pd.Categorical(np.array([0.1, 0.5, 0.1, 0.5], np.float32)), [float(np.float32(0.1)), 0.5], "float32"),
    ],
)
def test_categories_keep_their_values_in_files(tmp_path: Path, values, categories, dtype):
    setup = learn_setup(open_obs(tmp_path, OBS.assign(x=values)), SetupKeys(batch_key="x"))
    assert (setup.batch_categories, setup.category_dtypes) == (categories, {"x": dtype})
    assert Setup.from_saved(json.loads(json.dumps(setup.to_saved()))) == setup


def test_setups_of_the_first_files_which_wrote_numbers_as_text_are_read():
    old = {
        "batch_key": "donor",
        "batch_categories": ["1", "2"],
        "labels_key": "type",
        "labels_categories": ["1", "T"],
        "categorical_covariates": {"sick": ["False", "True"], "dose": ["0.1", "3.0"]},
        "category_dtypes": {"donor": "int64", "sick": "bool", "dose": "float32"},
    }
    setup = Setup.from_saved(old)
    assert (setup.batch_categories, setup.labels_categories) == ([1, 2], ["1", "T"])
    assert setup.categorical_covariates == {"sick": [False, True], "dose": [float(np.float32(0.1)), 3.0]}
    assert Setup.from_saved({"batch_key": None, "batch_categories": None, "labels_key": None}) == Setup()


def test_a_query_adds_what_is_new_and_a_mixed_key_has_no_type_of_its_own(tmp_path: Path):
    keys = SetupKeys(batch_key="sex", categorical_covariate_keys=("sick",))
    setup = learn_setup(open_obs(tmp_path), keys)
    more = OBS.assign(sex=[2.0, 1.5, 3.0, 1.0], sick=["True", "no", "no", "maybe"])
    extended = setup.extend(learn_setup(open_obs(tmp_path, more), keys))
    assert extended.batch_categories == [1, 2, 1.5, 3.0]
    assert extended.categorical_covariates == {"sick": [False, True, "maybe", "no"]}
    assert extended.category_dtypes == {"sex": "int64"}


def test_each_kind_has_a_key_of_its_own_and_goes_into_files_and_back(tmp_path: Path):
    assert sorted(kind.key for kind in KINDS) == sorted(KEYS)
    for kind, column in zip(KINDS, ("donor", "sick", "sex", "age", "factor"), strict=True):
        keys = SetupKeys.from_arguments({kind.key: [column] if kind.several else column})
        setup = learn_setup(open_obs(tmp_path), keys)
        assert setup.columns(kind) == (column,)
        assert Setup.from_saved(json.loads(json.dumps(setup.to_saved()))) == setup
        assert SetupKeys.from_arguments(json.loads(json.dumps(keys.as_arguments()))) == keys


def test_categories_without_the_name_of_their_column_are_refused():
    with pytest.raises(ValueError, match="batches but does not name their column"):
        Setup.from_saved({"batch_key": None, "batch_categories": ["a", "b"]})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"size_factor_key": [1, "a"]}, "size_factor_key names a column by [1, 'a']"),
        ({"categorical_covariate_keys": [["a"]]}, "categorical_covariate_keys names a column by ['a']"),
        ({"batch_key": 5}, "batch_key names a column by 5"),
        ({"layer": 1}, "its layer or its n_cells is of another type: {'layer': 1}"),
        ({"n_cells": "many"}, "its layer or its n_cells is of another type: {'n_cells': 'many'}"),
        ({"category_dtypes": {"batch": 3}}, "its category_dtypes are {'batch': 3}"),
        ({"batch_key": "b", "batch_categories": ["x", ["y"]]}, "it holds a category ['y']"),
    ],
)
def test_a_setup_of_other_types_is_refused(content: dict, message: str):
    with pytest.raises(ValueError, match=re.escape(message)):
        Setup.from_saved(content)


def test_a_categorical_covariate_that_is_named_twice_is_one(tmp_path: Path):
    data = open_obs(tmp_path)
    setup = learn_setup(data, SetupKeys(categorical_covariate_keys=("sex", "sex")))
    assert setup.sizes["n_categories"] == (2,)
    assert setup.read_codes(data)["categories"].shape == (4, 1)
