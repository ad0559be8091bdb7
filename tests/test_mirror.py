"""The tests as a map: a file's test is found by its name, a test's file too, and every test can fail."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# The test of files that have none of their name: they are parts of what is tested there.
TESTED_IN: dict[str, tuple[str, ...]] = {
    "engine/api/test_question_methods": (
        "engine/queries/correlation",
        "engine/queries/count_statistics",
        "engine/queries/differential",
        "engine/queries/draw_comparison",
        "engine/queries/importance_weights",
        "engine/queries/latents",
        "engine/queries/model_fit",
        "engine/queries/opened_data",
    ),
    "engine/api/test_scvi": (
        "engine/api/mapping_methods",
        "engine/api/model_and_data",
        "engine/api/training_arguments",
        "engine/api/training_methods",
    ),
    "engine/card/page/test_page": (
        "engine/card/page/elements",
        "engine/card/page/figures",
        "engine/card/page/sections",
    ),
    "engine/card/test_card_tables": ("engine/card/wording",),
    "engine/card/test_make_card": (
        "engine/card/card_parts",
        "engine/card/card_split",
        "engine/card/provenance",
    ),
    "engine/card/test_model_card": ("engine/card/plain_values",),
    "engine/cli/test_card_commands": ("engine/cli/describe_card",),
    "engine/cli/test_commands": ("engine/cli/data_options", "engine/cli/describe", "engine/cli/training_commands"),
    "engine/cli/test_dry_runs": (
        "engine/card/card_estimate",
        "engine/minified/minify_estimate",
        "engine/queries/embed_estimate",
    ),
    "engine/cli/test_query_commands": (
        "engine/cli/answers",
        "engine/queries/likelihood_parameters",
        "engine/queries/opened_question",
        "engine/queries/population",
    ),
    "engine/distributed/test_ranks": ("engine/distributed/batch_norm",),
    "engine/distributed/test_two_machines": ("engine/distributed/rendezvous",),
    "engine/hub/test_transfer": ("engine/hub/hub_files", "engine/hub/receiving"),
    "engine/minified/test_minified_by_scvi_tools": (
        "engine/minified/kept_posterior",
        "engine/minified/minified_anndata",
    ),
    "engine/minified/test_minify": ("engine/queries/minified_queries",),
    "engine/model/test_trained_run": ("engine/model/run_files",),
    "engine/model/test_vae": ("engine/model/decoder", "engine/model/encoder", "engine/model/layers"),
    "engine/neighbours/test_build_index": (
        "engine/neighbours/index_file",
        "engine/neighbours/scanning",
        "engine/neighbours/search_index",
    ),
    "engine/service/test_page_routes": ("engine/service/page_answers",),
    "engine/scvi_tools/test_model_directories": (
        "engine/scvi_tools/registry",
        "engine/scvi_tools/weights",
        "engine/torch_files",
    ),
    "engine/queries/test_similar_genes": ("engine/queries/cross_products",),
    "engine/queries/test_answer_tables": (
        "engine/queries/anndata_answers",
        "engine/queries/answer_rows",
        "engine/queries/array_answers",
        "engine/queries/text_answers",
    ),
    "engine/training/test_query_mapping": ("engine/training/freezing",),
    "engine/training/test_train": (
        "engine/training/evaluation",
        "engine/training/result",
        "engine/training/training_loop",
    ),
    "kernels/test_count_sampling": (
        "kernels/cpu_counts",
        "kernels/cpu_random",
        "kernels/plain_counts",
        "kernels/triton_counts",
    ),
    "kernels/test_decoder_loss": ("kernels/cpu_tile",),
    "kernels/test_hidden_layer": ("kernels/cpu_hidden",),
    "kernels/test_sparse_layer": ("kernels/cpu_sparse", "kernels/gene_order"),
    "kernels/test_strides": ("kernels/logits_loss",),
    "kernels/test_triton": (
        "kernels/backends",
        "kernels/triton_hidden",
        "kernels/triton_likelihood",
        "kernels/triton_math",
        "kernels/triton_project",
        "kernels/triton_slopes",
        "kernels/triton_sparse",
        "kernels/triton_tile",
    ),
    "loaders/arrays/test_array_checks": ("loaders/arrays/zarr_arrays",),
    "loaders/arrays/test_shards": ("loaders/arrays/shard_writing",),
    "loaders/cells/test_open_cells": (
        "loaders/arrays/hdf5_arrays",
        "loaders/arrays/matrices",
        "loaders/arrays/stored_arrays",
        "loaders/cells/memory_cells",
        "loaders/rows/buffers",
    ),
    "loaders/cells/test_cells_protocol": ("loaders/cells/cell_views", "loaders/cells/source_cells"),
    "loaders/batches/test_loader": (
        "loaders/cells/cell_store",
        "loaders/rows/chosen_genes",
        "loaders/rows/entries",
    ),
    "loaders/ingestion/test_ingest": (
        "loaders/ingestion/bucket_sorting",
        "loaders/ingestion/ingest_job",
        "loaders/ingestion/store_writer",
        "loaders/workers",
    ),
    "loaders/places/test_object_path": ("loaders/places/connections", "loaders/places/objects"),
    "loaders/places/test_streams": ("loaders/places/hdf5_files",),
    "loaders/sources/test_gene_lists": ("loaders/sources/line_lists",),
    "loaders/sources/test_open_source": ("loaders/sources/annbatch", "loaders/zarr_warnings"),
    "loaders/sources/test_source_protocol": ("loaders/sources/matrix_source",),
    "loaders/sources/test_tenx": ("loaders/sources/matrix_market",),
    "loaders/cells/test_added_columns": ("loaders/store_files",),
    "loaders/tables/test_store_tables": ("loaders/tables/anndata_tables",),
    "loaders/test_numba_cache": ("kernels/numba_cache",),
    "faults/test_files": ("loaders/errors",),
    "test_buckets": ("loaders/places/tiledb_options",),
    "engine/plots/test_embedding_plot": ("engine/plots/picture_file", "engine/plots/style"),
    "engine/service/test_agreement": ("engine/service/store_facts",),
    "engine/service/test_limits": (
        "engine/service/app",
        "engine/service/option_models",
        "engine/service/received",
        "engine/service/sizes",
        "engine/service/watched_cells",
    ),
    "engine/service/test_questions": (
        "engine/cli/question_command",
        "engine/cli/serve_command",
        "engine/queries/question",
    ),
}

# What a test is of that has no file of its name.
OF_MANY_FILES = {
    "engine/api/test_changed_anndata": "SCVI where the AnnData it was given has changed",
    "engine/card/page/test_page": "engine/card/page/__init__.py",
    "engine/card/page/test_rendering": "the page in a browser",
    "engine/card/test_golden_card": "the card's figures beside scvi-tools' report",
    "engine/card/test_seed_card": "every row of the hub's seed card",
    "engine/distributed/test_two_machines": "launch, rendezvous and heartbeat between two machines",
    "engine/service/test_agreement": "the same numbers from Python, the command line and HTTP",
    "engine/service/test_page": "the page of an atlas in a browser",
    "engine/service/test_questions": "each question's answer over HTTP and from the command",
    "engine/test_gpu": "what needs a CUDA device",
    "engine/training/test_failures": "ranks that fail: training, heartbeat, signals",
    "engine/training/test_normal_likelihood": "the normal likelihood from file to query",
    "engine/training/test_old_runs": "runs of earlier formats",
    "engine/training/test_training_plan": "the arguments of scvi-tools' training plan",
    "faults/test_every_input_has_a_test": "the inputs that once went wrong",
    "faults/test_files": "the same: files of counts",
    "faults/test_hostile": "the same: files made to mislead",
    "faults/test_model": "the same: runs and models",
    "fuzz/test_fuzz": "damaged inputs of every format",
    "kernels/test_strides": "every kernel, on tensors that are not contiguous",
    "kernels/test_triton": "every Triton kernel, in its interpreter",
    "test_buckets": "data of every kind in a bucket, beside the same on disk",
    "test_written_buckets": "what each command writes to a bucket, beside the same on disk",
    "test_benchmarks": "benchmarks/",
    "test_quick_benchmarks": "benchmarks/, each from its start to its end",
    "test_documented_commands": "README.md, CONTRIBUTING.md and docs/",
    "test_contents": "what __init__.py of the packages promises",
    "test_examples": "examples/",
    "test_mirror": "tests/",
    "test_pages": "pages of docs/ that are run, and .ci/run_pages.py",
    "test_release": "pyproject.toml, CITATION.cff, CHANGELOG.md",
}

TESTS = sorted(
    file.relative_to(ROOT / "tests").with_suffix("").as_posix() for file in (ROOT / "tests").rglob("test_*.py")
)
SOURCES = sorted(
    file.relative_to(ROOT).with_suffix("").as_posix()
    for part in ("loaders", "kernels", "engine")
    for file in (ROOT / part).rglob("*.py")
    if file.name != "__init__.py"
)


def name_test(source: str) -> str:
    """The test of a source file, both as paths without `.py`: that of loaders/rows/csr is loaders/rows/test_csr."""
    folder, _, name = source.rpartition("/")
    return f"{folder}/test_{name}"


def can_fail(test: ast.FunctionDef) -> bool:
    """Whether a test asserts, or calls what raises or warns otherwise, or a helper that is named for its assertions."""
    for node in ast.walk(test):
        if isinstance(node, ast.Assert):
            return True
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in ("raises", "warns") or name.startswith(("assert_", "check_")):
                return True
    return False


def test_each_source_file_has_a_test_of_its_name_or_is_listed_with_the_one_that_tests_it():
    listed = [source for sources in TESTED_IN.values() for source in sources]
    without = {source for source in SOURCES if name_test(source) not in TESTS}
    assert sorted(without - set(listed)) == [], "write tests of these names, or list them in TESTED_IN"
    assert sorted(set(listed) - without) == [], "these have a test of their name, or are gone: take them from TESTED_IN"
    assert len(listed) == len(set(listed))
    assert sorted(set(TESTED_IN) - set(TESTS)) == [], "TESTED_IN names tests that are gone"


def test_each_test_has_a_source_file_of_its_name_or_says_what_it_is_of():
    of_one_file = {name_test(source) for source in SOURCES}
    assert sorted(set(TESTS) - of_one_file - set(OF_MANY_FILES)) == [], "name these as a file, or list them"
    assert sorted(set(OF_MANY_FILES) - (set(TESTS) - of_one_file)) == [], "take these from OF_MANY_FILES"


def test_each_test_can_fail():
    helpless = []
    for name in TESTS:
        for node in ast.walk(ast.parse((ROOT / "tests" / f"{name}.py").read_text())):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_") and not can_fail(node):
                helpless.append(f"{name}: {node.name}")
    assert helpless == []


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("call()", False),
        ("assert call()", True),
        ("with pytest.raises(ValueError):\n        call()", True),
        ("for each in call():\n        assert_same(each)", True),
        ("np.testing.assert_allclose(call(), 1)", True),
        ("check(call())", False),
    ],
)
def test_a_test_that_only_calls_cannot_fail(body: str, expected: bool):
    (function,) = ast.parse(f"def test_it():\n    {body}\n").body
    assert isinstance(function, ast.FunctionDef)
    assert can_fail(function) is expected
