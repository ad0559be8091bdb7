"""Each benchmark runs to its end on small inputs (`--quick`) and prints what it is to measure."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.benchmark


def test_the_benchmark_of_a_gpu_runs_without_one(tmp_path: Path):
    """All parts but the tests and the peer, small; what it says of a device is for a machine that has one."""
    command = [sys.executable, ROOT / "benchmarks" / "gpu.py", "--out", tmp_path, "--quick"]
    command += ["--parts", "checks", "kernels", "training", "peers"]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for figure in ("largest error, float32", "decoder: ms", "from disk, 512 cells: cells/s", "minify: cells/s"):
        assert f"| {figure} |" in done.stdout


def test_the_job_from_an_atlas_to_answers_runs(tmp_path: Path):
    command = [sys.executable, str(ROOT / "benchmarks" / "atlas.py"), "--work", str(tmp_path), "--quick"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "GB of disk are needed" in done.stderr
    assert "right type of 15 neighbours" in done.stdout
    (figures,) = tmp_path.glob("*/atlas.json")
    steps = json.loads(figures.read_text())["figures"]["2000"]
    assert all(step["seconds"] > 0 and step["peak_mb"] > 100 for step in steps.values())
    assert steps["hold three covariates"]["found"]["cells"] == 2_000
    assert not any(figures.parent.joinpath("2000").iterdir())  # nothing is left when all is done


def test_the_benchmark_of_recipes_measures_what_each_reaches(tmp_path: Path):
    command = [sys.executable, ROOT / "benchmarks" / "recipes.py", "--quick", "--json", tmp_path / "recipes.json"]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    theirs, ours = json.loads((tmp_path / "recipes.json").read_text())["rows"]
    assert (theirs["recipe"], ours["recipe"]) == ("scvi-tools", "atlas")
    assert ours["elbo"] > theirs["elbo"]  # few large steps
    assert 0.2 < ours["right"] <= 1
    assert "| atlas | 512 | 1 |" in done.stdout


def test_the_benchmark_of_the_time_to_an_elbo_trains_until_it_is_reached(tmp_path: Path):
    command = [sys.executable, ROOT / "benchmarks" / "time_to_elbo.py", "--quick", "--json", tmp_path / "times.json"]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    theirs, ours = json.loads((tmp_path / "times.json").read_text())["rows"]
    assert (theirs["recipe"], ours["recipe"], ours["epochs"]) == ("scvi-tools", "atlas", 1)
    assert ours["elbo"] >= theirs["elbo"]
    assert "times less time: 1,000 cells x 500 genes" in done.stdout


def test_the_benchmark_of_the_kernels_measures_how_fast_counts_are_drawn(tmp_path: Path):
    command = [sys.executable, ROOT / "benchmarks" / "kernels.py", "--quick", "--only", "sample"]
    done = subprocess.run(
        [str(part) for part in [*command, "--json", tmp_path / "kernels.json"]], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "sample cpu" in done.stdout
    figures = json.loads((tmp_path / "kernels.json").read_text())
    assert set(figures["figures"]) == {"sample cpu", "sample torch"}
    assert figures["ratios"]["sample_vs_torch"] > 0


def test_the_benchmark_of_the_card_agrees_with_counts_in_memory(tmp_path: Path):
    command = [sys.executable, ROOT / "benchmarks" / "card.py", "--quick", "--json", tmp_path / "card.json"]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = json.loads((tmp_path / "card.json").read_text())["figures"]
    assert {line["figure"] for line in lines} >= {"all cells variation pearson", "all genes variation mae"}
    assert sum("lfc_mae" in line["figure"] for line in lines) == 3


def test_the_benchmark_of_neighbours_measures_the_index_beside_exact_search(tmp_path: Path):
    command = [sys.executable, ROOT / "benchmarks" / "neighbours.py", "--work", tmp_path, "--quick"]
    done = subprocess.run(
        [str(part) for part in [*command, "--json", tmp_path / "found.json"]], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert [(row["kind"], row["by"]) for row in rows] == [
        (kind, by) for kind in ("atlas", "cloud") for by in ("atlasvi", "exact")
    ]
    for row in rows:
        assert row["recall"] > 0.9
        assert row.get("bytes", 0) < 32 * row["cells"]
    assert "| cloud | exact | 20,000 |" in done.stdout
    assert [file.name for file in tmp_path.iterdir()] == ["found.json"]


def test_the_benchmark_of_annotation_labels_held_out_donors(tmp_path: Path):
    command = [sys.executable, ROOT / "benchmarks" / "annotation.py", "--quick", "--epochs", "10"]
    out = ["--json", tmp_path / "found.json", "--picture", tmp_path / "reliability.png"]
    done = subprocess.run([str(part) for part in [*command, *out]], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["all types"]["accuracy"] > 0.9
    assert found["all types"]["calibration_error"] < 0.1
    assert {"without a", "without b", "without c"} < set(found)
    assert (tmp_path / "reliability.png").read_bytes().startswith(b"\x89PNG")
    assert "expected calibration error" in done.stdout
