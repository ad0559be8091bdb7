"""`atlasvi query`: each question by its command, and that the command line and SCVI's methods answer alike.

The file is long because each question has forms and options of its own; it holds nothing else.
"""

import io
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest

from atlasvi.engine import SCVI, minify
from tests.engine.api.small_models import make_adata, make_model
from tests.engine.distributed.rank_processes import run_command
from tests.engine.queries.forms_of_cells import make_forms


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("forms")
    make_forms(place)
    return place


def ask(folder: Path, *words: object) -> pd.DataFrame:
    """The table that a question prints; words that are files of the folder stand for their paths."""
    done = run_command("query", *_find(folder, words))
    assert done.returncode == 0, done.stderr
    return pd.read_csv(io.StringIO(done.stdout), index_col=0)


def refuse(folder: Path, *words: object) -> str:
    done = run_command("query", *_find(folder, words))
    assert done.returncode == 1, done.stdout
    assert done.stdout == ""
    assert done.stderr.startswith("atlasvi: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


def _find(folder: Path, words: Sequence[object]) -> list[object]:
    return [folder / str(word) if (folder / str(word)).exists() else word for word in words]


MODEL_AND_DATA = [
    ["x.mini"],
    ["x.h5ad", "--model", "model"],
    ["model", "x.h5ad"],
    ["model", "x.mini"],
    ["model", "cells.h5ad"],
    ["x.mini", "cells.h5ad"],
]


@pytest.mark.parametrize("places", MODEL_AND_DATA, ids=" ".join)
def test_without_a_question_it_shows_what_is_held_and_what_can_be_asked(folder: Path, places: list[str]):
    done = run_command("query", *_find(folder, places))
    assert done.returncode == 0, done.stderr
    held, asked = done.stdout.split("It can be asked:\n")
    assert "latent dimension" in held or "a model of scvi-tools" in held
    assert held.strip() == run_command("query", *_find(folder, [*places, "info"])).stdout.strip()
    questions = [line.split()[0] for line in asked.splitlines() if line.startswith("  ")]
    assert {"latent", "expression", "markers", "neighbours", "annotate"} <= set(questions)
    assert "latent --limit 5" in asked


def test_a_run_alone_says_that_it_must_be_minified_first(folder: Path):
    assert "make some with atlasvi minify RUN DATA --out MINI" in refuse(folder, "model")


def test_what_a_minified_store_holds_is_shown_without_loading_torch(folder: Path):
    for words in ([folder / "x.mini"], [folder / "x.mini", "info"]):
        script = (
            f"import sys; sys.argv = ['atlasvi', 'query', *{list(map(str, words))!r}]; "
            "from atlasvi.engine.cli.commands import app; app(standalone_mode=False); "
            "print('torch' in sys.modules, file=sys.stderr)"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        assert done.stderr.strip() == "False"


@pytest.mark.parametrize("places", MODEL_AND_DATA, ids=" ".join)
def test_latents_expression_and_library_are_those_of_scvi(folder: Path, places: list[str]):
    model = SCVI.load(folder / "model", folder / "cells.h5ad")
    latent = ask(folder, *places, "latent", "--where", "cell_type=B", "--variance")
    mean, variance = model.get_latent_representation(indices="cell_type=B", return_dist=True)
    np.testing.assert_allclose(latent, np.concatenate([mean, variance], axis=1), rtol=1e-4, atol=1e-5)
    shares = ask(folder, *places, "expression", "--genes", "g3,g1", "--limit", 4, "--n-samples", 400)
    theirs = model.get_normalized_expression(gene_list=["g3", "g1"], indices=range(4), n_samples=400)
    assert shares.columns.tolist() == ["g3", "g1"]
    np.testing.assert_allclose(shares[["g1", "g3"]], theirs, rtol=0.05)
    library = ask(folder, *places, "library")["library"]
    assert library.tolist() == model.get_latent_library_size(give_mean=False)[:, 0].tolist()
    minified = SCVI.load(folder / "x.mini")
    assert minified.get_latent_library_size(give_mean=False)[:, 0].tolist() == library.tolist()
    counts = ask(folder, *places, "expression", "--library-size", "observed")
    np.testing.assert_allclose(counts.sum(axis=1), library, rtol=1e-4)


def test_draws_are_those_of_scvi_from_the_same_seed(folder: Path):
    model = SCVI.load(folder / "model", folder / "cells.h5ad", seed=5)
    places = "model", "cells.h5ad"
    words = ["expression", "--n-samples", 2, "--transform-batch", "b,a", "--library-size", "latent", "--seed", 5]
    theirs = model.get_normalized_expression(n_samples=2, transform_batch=["b", "a"], library_size="latent")
    np.testing.assert_allclose(ask(folder, *places, *words), theirs, rtol=1e-5)
    model.generator.manual_seed(6)
    words = ["expression", "--n-samples-overall", 7, "--weights", "importance", "--seed", 6, "--limit", 20]
    theirs = model.get_normalized_expression(n_samples_overall=7, weights="importance", indices=range(20))
    np.testing.assert_allclose(ask(folder, *places, *words), theirs, rtol=1e-5)
    model.generator.manual_seed(7)
    words = ["differential", "--groupby", "cell_type", "--mode", "change", "--n-samples", 100, "--seed", 7]
    table = ask(folder, *places, *words)
    theirs = model.differential_expression(groupby="cell_type", mode="change", n_samples_overall=100)
    assert table.index.tolist() == theirs.index.tolist()
    assert table.columns.tolist() == theirs.columns.tolist()
    assert table["comparison"].tolist() == theirs["comparison"].tolist()
    assert (table["is_de_fdr_0.05"] == theirs["is_de_fdr_0.05"]).all()
    np.testing.assert_allclose(table.select_dtypes("float"), theirs[table.select_dtypes("float").columns], rtol=1e-5)
    model.generator.manual_seed(8)
    fit = ask(folder, *places, "elbo", "--seed", 8)
    np.testing.assert_allclose(fit["elbo"], model.get_elbo(return_mean=False), rtol=1e-5)
    model.generator.manual_seed(8)
    error = model.get_reconstruction_error()["reconstruction_loss"]
    mean = ask(folder, *places, "elbo", "--seed", 8, "--mean")
    assert mean.loc["mean", "reconstruction_loss"] == pytest.approx(float(error), rel=1e-5)
    model.generator.manual_seed(9)
    words = ["correlation", "--method", "pearson", "--n-samples", 3, "--seed", 9]
    theirs = model.get_feature_correlation_matrix(n_samples=3, correlation_type="pearson")
    table = ask(folder, *places, *words)
    assert table.columns.tolist() == table.index.tolist() == model.run.genes
    np.testing.assert_allclose(table, theirs, rtol=1e-4, atol=1e-5)
    model.generator.manual_seed(10)
    theirs = model.differential_abundance(sample_key="donor", num_cells_posterior=9)
    table = ask(folder, *places, "abundance", "--sample-key", "donor", "--max-cells", 9, "--seed", 10)
    assert table.columns.tolist() == [str(name) for name in theirs]
    np.testing.assert_allclose(table, theirs, rtol=1e-4)


def test_the_marginal_likelihood_is_above_the_elbo(folder: Path):
    fit = ask(folder, "x.mini", "cells.h5ad", "elbo", "--marginal", 50, "--where", "batch == 'a'")
    assert fit.columns.tolist() == ["elbo", "reconstruction_loss", "kl", "marginal_ll"]
    np.testing.assert_allclose(fit["elbo"], -(fit["reconstruction_loss"] + fit["kl"]), rtol=1e-4)
    assert fit["marginal_ll"].mean() > fit["elbo"].mean()


def test_counts_are_drawn_a_row_for_each_draw(folder: Path, tmp_path: Path):
    one = ask(folder, "x.mini", "sample", "--genes", "g2,g0", "--seed", 1)
    assert one.shape == (60, 2)
    assert (one == one.round()).all(axis=None)
    several = ask(folder, "x.mini", "sample", "--n-samples", 200, "--cells", "c0_4,c0_2", "--transform-batch", "a")
    assert several.index.tolist() == ["c0_2"] * 200 + ["c0_4"] * 200
    assert several["sample"].tolist() == list(range(200)) * 2
    mean = ask(
        folder, "x.mini", "expression", "--library-size", "observed", "--cells", "c0_4,c0_2", "--transform-batch", "a"
    )
    drawn = several.drop(columns="sample").groupby(level=0).mean()
    assert drawn.to_numpy().sum() == pytest.approx(mean.to_numpy().sum(), rel=0.2)
    assert not ask(folder, "x.mini", "sample", "--genes", "g2,g0", "--seed", 2).equals(one)
    done = run_command("query", folder / "x.mini", "sample", "--n-samples", 2, "--out", tmp_path / "s.npz")
    assert done.stdout == f"{tmp_path}/s.npz: 120 rows.\n"
    with np.load(tmp_path / "s.npz") as file:
        assert file["cells"][:3].tolist() == ["c0_0", "c0_0", "c0_1"]
        assert file["values"].shape == (120, 41)


def test_groups_are_compared_by_expressions_and_without_counts(folder: Path, tmp_path: Path):
    words = ["differential", "--idx1", "cell_type == 'B'", "--idx2", "cell_type=T,NK", "--n-samples", 50]
    table = ask(folder, "x.mini", *words, "--batch-correction")
    assert table.columns.tolist() == ["proba_m1", "proba_m2", "bayes_factor", "scale1", "scale2"]
    assert "raw_mean1" in ask(folder, "model", "cells.h5ad", *words)
    table = ask(folder, "x.mini", "differential", "--groupby", "cell_type", "--group1", "B,T", "--group2", "NK")
    assert table["comparison"].unique().tolist() == ["B vs NK", "T vs NK"]
    out = tmp_path / "de.npz"
    words = ["--groupby", "cell_type", "--mode", "change", "--out", out, "--n-samples", 50]
    run_command("query", folder / "x.mini", "differential", *words)
    with np.load(out) as file:
        assert file["gene"].shape == file["lfc_mean"].shape == (120,)
        assert file["is_de_fdr_0.05"].dtype == bool
        assert set(file["group1"]) == {"B", "NK", "T"}


def test_groups_and_batches_are_found_by_text_whatever_they_are(folder: Path, tmp_path: Path):
    table = ask(folder, "x.mini", "differential", "--groupby", "donor", "--group1", "1", "--n-samples", 50)
    assert table["comparison"].unique().tolist() == ["1 vs Rest"]  # numbers in obs
    adata = make_adata(60)
    adata.obs["batch"] = adata.obs["batch"].cat.rename_categories({"a": "one, two"})
    adata.obs["kind"] = pd.Categorical(["T, naive", "B"] * 30)
    make_model(adata, epochs=1).save(tmp_path / "model")
    adata.write_h5ad(tmp_path / "commas.h5ad")
    places = tmp_path / "model", tmp_path / "commas.h5ad"
    as_one = ask(folder, *places, "expression", "--transform-batch", "one, two", "--limit", 3)
    over_both = ask(folder, *places, "expression", "--transform-batch", 'b,"one, two"', "--limit", 3)
    as_b = ask(folder, *places, "expression", "--transform-batch", "b", "--limit", 3)
    np.testing.assert_allclose(over_both, (as_one + as_b) / 2, rtol=1e-4)
    assert "There is no batch 'one'" in refuse(folder, *places, "expression", "--transform-batch", "b,one, two")
    model = SCVI.load(*places)
    theirs = model.get_normalized_expression(indices=range(3), transform_batch="one, two", n_samples=400)
    np.testing.assert_allclose(as_one, theirs, rtol=0.1)
    table = ask(folder, *places, "differential", "--groupby", "kind", "--group1", "T, naive", "--n-samples", 50)
    assert table["comparison"].unique().tolist() == ["T, naive vs Rest"]


def test_names_of_groups_and_genes_are_no_formulas_for_a_spreadsheet(folder: Path, tmp_path: Path):
    adata = anndata.read_h5ad(folder / "cells.h5ad")
    adata.obs["kind"] = pd.Categorical(["=1+1", "other"] * 30)
    adata.write_h5ad(tmp_path / "kinds.h5ad")
    words = ["differential", "--groupby", "kind", "--group1", "=1+1", "--n-samples", 50]
    table = ask(folder, "model", tmp_path / "kinds.h5ad", *words)
    assert set(table["group1"]) == {"'=1+1"}


def test_cells_of_any_name_are_found_by_it_and_written_as_it_is(folder: Path, tmp_path: Path):
    names = [
        "=1+1",
        "a,b",
        'a"b',
        "a\nb",
        "a\r\nb",
        " blank ",
        "twice",
        "twice",
        "",
        "NA",
        "007",
        "@x",
        '"q"',
        "-5",
        "\tx",
    ]
    adata = make_adata(len(names))
    adata.obs_names, adata.var_names = names, [f"=g{k}" for k in range(39)] + ["a, b"]
    model = make_model(adata, epochs=1)
    model.save(tmp_path / "model")
    adata.write_h5ad(tmp_path / "cells.h5ad")
    minify(tmp_path / "model", tmp_path / "cells.h5ad", tmp_path / "x.mini")
    latents = model.get_latent_representation()
    for ending in ("parquet", "h5ad", "csv"):
        out = tmp_path / f"x.{ending}"
        assert run_command("query", tmp_path / "x.mini", "latent", "--out", out).returncode == 0
    table = pd.read_parquet(tmp_path / "x.parquet")
    assert table["cell"].tolist() == anndata.read_h5ad(tmp_path / "x.h5ad").obs_names.tolist() == names
    np.testing.assert_array_equal(table[["z0", "z1"]], latents[:, :2])
    text = pd.read_csv(tmp_path / "x.csv", dtype={"cell": str}, keep_default_na=False)["cell"]
    guarded = {"=1+1": "'=1+1", "@x": "'@x", "\tx": "'\tx"}
    assert text.tolist() == [guarded.get(name, name) for name in names]
    for name in set(names):
        quoted = '"' + name.replace('"', '""') + '"'
        done = run_command("query", tmp_path / "x.mini", "count", "--cells", quoted)
        assert (done.stdout, done.stderr) == (f"{names.count(name)}\n", "")
    shares = ask(tmp_path, "x.mini", "expression", "--genes", '"a, b",=g3', "--limit", 1)
    assert shares.columns.tolist() == ["a, b", "'=g3"]


def test_parameters_of_the_likelihood_are_those_that_it_has(folder: Path, tmp_path: Path):
    model = SCVI.load(folder / "model", folder / "cells.h5ad")
    table = ask(folder, "x.mini", "parameters", "--parameter", "dispersions", "--limit", 2, "--genes", "g5,g1")
    theirs = model.get_likelihood_parameters(indices=[0, 1])["dispersions"][:, [5, 1]]
    np.testing.assert_allclose(table, theirs, rtol=1e-5)
    assert "no parameter 'dropout'; it has: mean, dispersions" in refuse(
        folder, "x.mini", "parameters", "--parameter", "dropout"
    )
    make_forms(tmp_path, gene_likelihood="zinb", batch_representation="embedding", embedding_dim=3)
    dropout = ask(tmp_path, "x.mini", "parameters", "--parameter", "dropout")
    assert ((dropout > 0) & (dropout < 1)).all(axis=None)
    vectors = ask(tmp_path, "x.mini", "batch-vectors", "--limit", 9)
    embedded = SCVI.load(tmp_path / "x.mini").get_batch_representation(indices=range(9))
    np.testing.assert_allclose(vectors, embedded, rtol=1e-5)
    assert "no vectors of batches" in refuse(folder, "x.mini", "batch-vectors")


def test_data_is_opened_as_that_of_the_model_was_unless_its_path_says_otherwise(tmp_path: Path):
    """Or else X would be encoded where a layer was trained on, without a word."""
    adata = make_adata(60)
    adata.layers["counts"], adata.X = adata.X.copy(), adata.X[::-1].copy()
    SCVI.setup_anndata(adata, layer="counts", batch_key="batch")
    model = SCVI(adata, n_hidden=8, n_latent=3)
    model.train(max_epochs=1)
    model.save(tmp_path / "model")
    adata.write_h5ad(tmp_path / "cells.h5ad")
    expected = model.get_latent_representation()
    np.testing.assert_allclose(ask(tmp_path, "model", "cells.h5ad", "latent"), expected, rtol=1e-4, atol=1e-5)
    other = ask(tmp_path, "model", f"{tmp_path}/cells.h5ad::layer=X", "latent")
    assert not np.allclose(other, expected, rtol=1e-4, atol=1e-5)


def test_info_says_what_both_are(folder: Path):
    said = run_command("query", folder / "x.mini", "info").stdout
    assert "60 cells x 40 genes, 4 latent dimensions" in said
    both = run_command("query", folder / "model", folder / "cells.h5ad", "info").stdout
    assert "a model" in both
    assert "60 cells x 40 genes" in both


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            "x.mini elbo",
            r"x.mini: the ELBO needs the counts, and minified data has none: use the full data (atlasvi query",
        ),
        ("x.mini expression --n-samples-overall 3 --weights importance", "weights='importance' needs the counts"),
        ("model latent", "name a model and cells to use it with: atlasvi query RUN DATA"),
        ("cells.h5ad latent", "cells.h5ad is not minified data: if it holds counts, name a model before it (atlasvi"),
        (
            "cells.h5ad x.mini latent",
            "x.mini is a minified store: name the minified store first, then the data",
        ),
        ("cells.h5ad model latent", "model is a model: name the model first, then the data"),
        ("cells.h5ad cells.h5ad latent", "cells.h5ad is not a run directory. Name the run first, then the data"),
        ("nothing cells.h5ad latent", "nothing is not a run directory: it does not exist"),
        ("model none.h5ad latent", "none.h5ad: there is no such file"),
        ("x.mini expression --transform-batch c", "There is no batch 'c': the model's batches are a, b"),
        ("x.mini sample --genes g99", "no gene 'g99' in the model"),
        ("x.mini differential", "No cells to compare"),
        # options of which one would have no effect
        ("x.mini --model model latent", "x.mini is a minified store, which has a model: leave --model"),
        ("model x.h5ad --model model latent", "model is a model, which has a model: leave --model"),
        ("x.mini expression --weights importance", "--weights would have no effect: it chooses among draws"),
        ("x.mini expression --n-samples 2 --n-samples-overall 3", "--n-samples would have no effect"),
        ("x.mini differential --groupby cell_type --delta 0.5", "--delta would have no effect: only --mode change"),
        ("x.mini differential --groupby cell_type --fdr 0.1", "--fdr would have no effect: only --mode change"),
        ("x.mini differential --groupby cell_type --idx1 donor=1", "--groupby would have no effect: --idx1 chooses"),
        (
            "x.mini differential --groupby cell_type --idx2 donor=1",
            "--idx2 would have no effect: it is compared",
        ),
        ("x.mini differential --group1 B --idx1 donor=1", "--group1 would have no effect"),
        ("x.mini differential --idx2 donor=1", "--idx2 would have no effect"),
        ("x.mini differential --group1 B --group2 T", "No cells to compare: pass groupby"),
        ("x.mini differential --groupby cell_type --group1 B,T --group2 T", "cell_type = 'T' is group1 and group2"),
        # what would be infinite, zero or NaN
        ("x.mini expression --library-size 1e40", "library size '1e40': use a number from 1e-12 to 1e+30"),
        ("x.mini expression --library-size 1e-50", "library size '1e-50'"),
        ("x.mini correlation --limit 1 --n-samples 1", "one draw of one cell has no correlations"),
        ("x.mini differential --groupby cell_type --group1 C", "no cell has cell_type = 'C' (there are: B, NK, T)"),
        (
            "x.mini cells.h5ad elbo --mean --where cell_type=B --where cell_type=T",
            "no cell meets 'cell_type=B' and 'cell_type=T'",
        ),
        ("x.mini abundance --sample-key none", "obs has no column 'none'"),
        ("x.mini correlation --where n_counts>1e9", "is true for no cell"),
        ("x.mini latent --where n_counts>", "is not an expression over obs columns"),
    ],
)
def test_a_question_that_can_not_be_answered_is_refused_in_a_sentence(folder: Path, command: str, message: str):
    assert message in refuse(folder, *command.split())


def test_every_group_is_compared_with_the_second_but_not_with_itself(folder: Path):
    table = ask(folder, "x.mini", "differential", "--groupby", "cell_type", "--group2", "B", "--n-samples", 50)
    assert table["comparison"].unique().tolist() == ["NK vs B", "T vs B"]


def test_what_must_be_known_of_an_answer_is_printed_beside_it(folder: Path):
    words = ["differential", "--idx1", "cell_type=B,T", "--idx2", "cell_type=T", "--n-samples", 50]
    done = run_command("query", *_find(folder, ["x.mini", *words]))
    assert done.returncode == 0
    assert done.stdout.startswith("gene,")
    said = done.stderr.splitlines()
    assert len(said) == 1
    assert said[0].startswith("atlasvi: ")
    assert "cells are in idx1 and in idx2" in said[0]


def test_a_poisson_model_has_no_correlations(tmp_path: Path):
    make_forms(tmp_path, gene_likelihood="poisson")
    assert "The likelihood 'poisson' has no dispersion" in refuse(tmp_path, "x.mini", "correlation")


def test_a_matrix_stored_by_genes_leaves_no_sorted_copy_behind(folder: Path, tmp_path: Path, monkeypatch):
    import tempfile

    adata = anndata.read_h5ad(folder / "cells.h5ad")
    adata.X = adata.X.tocsc()
    adata.write_h5ad(tmp_path / "by-gene.h5ad")
    adata[:, 1:].copy().write_h5ad(tmp_path / "fewer.h5ad")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    assert len(ask(folder, "model", tmp_path / "by-gene.h5ad", "latent")) == 60
    assert "genes of the model are not there" in refuse(folder, "model", tmp_path / "fewer.h5ad", "latent")
    assert not list((tmp_path / "temporary").iterdir())


def test_cells_are_counted_and_drawn_at_random(folder: Path):
    counted = run_command("query", folder / "x.mini", "count", "--where", "cell_type=B", "--where", "n_counts > 100")
    obs = anndata.read_h5ad(folder / "cells.h5ad").obs
    assert int(counted.stdout) == ((obs["cell_type"] == "B") & (obs["n_counts"] > 100)).sum()
    assert run_command("query", folder / "x.mini", "count", "--where", "n_counts > 1e9").stdout == "0\n"
    drawn = ["latent", "--where", "cell_type=B", "--sample", 3, "--seed"]
    first, again, other = (ask(folder, "x.mini", *drawn, seed) for seed in (1, 1, 2))
    pd.testing.assert_frame_equal(first, again)
    assert len(first) == 3
    assert set(first.index) <= set(obs.index[obs["cell_type"] == "B"])
    assert set(first.index) != set(other.index)
    from_counts = ask(folder, "model", "cells.h5ad", *drawn, 1)
    assert from_counts.index.tolist() == first.index.tolist()
    assert "--seed would have no effect: only --sample uses it" in refuse(folder, "x.mini", "latent", "--seed", 1)
    assert "use one of the two" in refuse(folder, "x.mini", "latent", "--sample", 1, "--limit", 1)


def test_options_of_the_group_are_taken_wherever_they_stand(folder: Path):
    orders = [
        ["--device", "cpu", "model", "x.h5ad", "latent"],
        ["model", "--device=cpu", "x.h5ad", "latent"],
        ["model", "x.h5ad", "latent", "--device", "cpu"],
    ]
    first, *others = [ask(folder, *words) for words in orders]
    assert all(other.equals(first) for other in others)


def test_a_question_to_a_minified_store_imports_only_what_it_needs(folder: Path):
    code = "import sys\nfrom atlasvi.engine.cli.commands import main\ntry: main()\nfinally: print(*sys.modules)"
    words = ["query", folder / "x.mini", "expression", "--genes", "g1", "--limit", 1]
    done = subprocess.run([sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    imported = set(done.stdout.splitlines()[-1].split())
    assert {"torch", "zarr", "pandas"} <= imported
    slow = {"anndata", "dask", "matplotlib", "scanpy", "sklearn", "sympy", "torch._dynamo"}  # 0.3 to 1 s each
    assert imported & slow == set()
