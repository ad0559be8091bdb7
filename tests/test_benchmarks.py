"""What benchmarks make of recorded figures, and that what they compare is what they say."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import entropy

from tests.test_quick_benchmarks import LEFT_OUT

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module", autouse=True)
def _modules():
    """The benchmarks import each other as scripts do; their folder is on the path for these tests alone."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    yield
    sys.path.remove(str(ROOT / "benchmarks"))


@pytest.fixture
def report():
    import loader_report

    return loader_report


def epochs(cells_per_s: list[float], peak_mb: float = 350.0) -> dict:
    """What one process says of its epochs of 1,000 cells."""
    timed = [{"cells": 1000, "wall_s": 1000 / rate, "cpu_s": 0.01} for rate in cells_per_s]
    return {"epochs": timed, "first_batch_s": 0.2, "imports_mb": 250.0, "peak_mb": peak_mb}


@pytest.fixture
def figures(report) -> dict:
    """Two rounds of a few rows."""
    return {
        "fast": report.summarise_epochs([epochs([500.0, 700.0, 600.0]), epochs([700.0, 800.0, 900.0])]),
        "annbatch": report.summarise_epochs([epochs([100.0, 100.0]), epochs([200.0, 200.0])]),
        "collection": {"error": "it has no obs"},
        "ingest": report.summarise_ingests([{"wall_s": 1.0, "tree_peak_mb": 900.0}], cells=3000),
        "ingest_annbatch": report.summarise_ingests([{"wall_s": 4.0, "tree_peak_mb": 9000.0}], cells=3000),
        "bytes_fast": {"bytes_per_cell": 6.0, "bytes_per_cell_of_x": 5.0},
        "bytes_annbatch": {"bytes_per_cell": 10.0, "bytes_per_cell_of_x": 9.0},
        "order_fast": {"entropies": {name: {"mean": 0.95, "uniform": 1.0, "ratio": 0.95} for name in report.LABELS}},
    }


def test_the_entropy_of_each_full_minibatch_is_that_of_scipy(report):
    labels = np.random.default_rng(0).integers(0, 7, 4 * 256 + 100)
    expected = [entropy(np.bincount(labels[at : at + 256]), base=2) for at in range(0, 4 * 256, 256)]
    np.testing.assert_allclose(report.batch_entropies(labels, 256), expected)


def test_a_minibatch_of_one_label_has_no_entropy(report):
    assert report.batch_entropies(np.full(64, 3), 32).tolist() == [0.0, 0.0]


def test_the_uniform_draw_is_reproducible_and_below_the_entropy_of_all_cells(report):
    labels = np.random.default_rng(0).integers(0, 30, 5000)
    drawn = report.uniform_entropy(labels, 128, seed=3)
    assert drawn == report.uniform_entropy(labels, 128, seed=3)
    assert drawn != report.uniform_entropy(labels, 128, seed=4)
    assert entropy(np.bincount(labels), base=2) - 0.3 < drawn < entropy(np.bincount(labels), base=2)


def test_shuffled_minibatches_are_as_mixed_as_a_uniform_draw_and_ordered_ones_are_not(report):
    order, blocks = np.random.default_rng(0).permutation(20_000), np.arange(20_000) // 1000
    shuffled = report.compare_entropies({"source_block": blocks}, order, 500)["source_block"]
    ordered = report.compare_entropies({"source_block": blocks}, np.arange(20_000), 500)["source_block"]
    assert shuffled["ratio"] == pytest.approx(1, abs=0.005)
    assert ordered["ratio"] == 0


def test_a_row_is_the_median_of_its_processes(figures):
    assert figures["fast"]["cells_per_s_by_process"] == pytest.approx([600, 800])
    assert figures["fast"]["cells_per_s"] == pytest.approx(700)
    assert figures["fast"]["cells_per_s_range"] == pytest.approx([500, 900])
    assert figures["fast"]["loader_mb"] == pytest.approx(100)
    assert figures["fast"]["cpu_s_per_100k_cells"] == pytest.approx(1)


def test_ratios_are_of_medians_and_their_range_is_round_by_round(report, figures):
    ratios = report.compute_ratios(figures)
    assert ratios["cells_per_s_vs_annbatch"] == pytest.approx(700 / 150)
    assert ratios["bytes_fast_vs_annbatch"] == pytest.approx(0.6)
    assert ratios["ingest_vs_annbatch"] == pytest.approx(4)
    assert ratios["entropy_batch_vs_uniform"] == pytest.approx(0.95)
    (ratio,) = [ratio for ratio in report.RATIOS if ratio.name == "cells_per_s_vs_annbatch"]
    assert report.range_ratio(ratio, figures) == pytest.approx([4, 6])


def test_a_failed_row_gives_null_and_is_listed_and_one_not_run_gives_null_alone(report, figures):
    ratios, failed = report.compute_ratios(figures), report.list_failures(figures)
    assert ratios["collection_vs_annbatch"] is None
    assert ratios["h5ad_vs_scdataset"] is None
    assert failed == {"collection": "it has no obs", "collection_vs_annbatch": "collection: it has no obs"}


def test_targets_are_met_missed_or_open(report, figures):
    limits = {limit["name"]: limit for limit in report.check_limits(figures)}
    assert limits["cells_per_s_vs_annbatch"] | {"value": None} == {
        "name": "cells_per_s_vs_annbatch", "value": None, "target": ">= 5", "met": False,
    }  # fmt: skip
    assert limits["bytes_fast_vs_annbatch"]["met"] is True
    assert limits["entropy_cell_type_vs_uniform"]["met"] is False
    assert limits["ingest_peak_mb"]["met"] is True
    assert limits["collection_vs_annbatch"]["met"] is None
    assert "cells_per_s_vs_annbatch_default" not in limits


def test_the_tables_say_what_was_measured_missed_and_failed(report, figures):
    from loader_rows import TITLES

    whole = {
        "figures": figures,
        "ratios": report.compute_ratios(figures),
        "ratio_ranges": {"cells_per_s_vs_annbatch": [4.0, 6.0]},
        "limits": report.check_limits(figures),
        "failed": report.list_failures(figures),
    }
    said = report.format_report(whole, TITLES)
    (line,) = [line for line in said.splitlines() if line.startswith("| cells_per_s_vs_annbatch ")]
    assert [cell.strip() for cell in line.split("|")[1:-1]] == [
        "cells_per_s_vs_annbatch", "4.667", "4.00 to 6.00", ">= 5", "NOT MET",
    ]  # fmt: skip
    assert "- collection: it has no obs" in said
    tables = [table.splitlines() for table in said.split("\n\n") if table.startswith("|")]
    assert all(len({len(line) for line in table}) == 1 for table in tables)


def test_every_ratio_is_of_rows_that_there_are(report):
    from loader_rows import ROWS, SIZE_TITLES, Bench

    names = {*ROWS, *SIZE_TITLES}
    assert {ratio.row for ratio in report.RATIOS} | {ratio.other for ratio in report.RATIOS} <= names
    assert {row for _, row, _, _ in report.ABSOLUTE} <= names
    assert ROWS["annbatch"].needs == ["annbatch"]
    assert ROWS["h5ad"].needs == []
    assert Bench.__doc__


def test_the_peers_side_imports_nothing_of_ours():
    peers = [file for file in (ROOT / "benchmarks" / "peers").glob("*.py") if file.name != "gpu.py"]  # trains both
    assert len(peers) >= 5
    for file in [*peers, ROOT / "benchmarks" / "measured_process.py"]:
        assert "import atlasvi" not in (text := file.read_text())
        assert "from atlasvi" not in text


def test_a_folder_without_an_atlas_is_refused_in_a_sentence(tmp_path: Path):
    command = [sys.executable, str(ROOT / "benchmarks" / "loaders.py"), "--atlas", tmp_path, "--peers", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "holds no atlas*.h5ad" in done.stderr


def test_memory_that_grows_beyond_what_is_stated_is_named_from_ten_million_cells_on():
    import atlas_report

    def figures(few: int, more: float, held: float = 3.0) -> dict:
        peaks = {few: 500.0, 10 * few: more}
        return {
            str(cells): {
                "train": {"peak_mb": peak},
                atlas_report.HOLD: {"peak_mb": 1.0, "found": {"peak_bytes": 1e6 + 3 * held * cells}},
            }
            for cells, peak in peaks.items()
        }

    stated = {"train": 4, atlas_report.HOLD: 12}
    assert atlas_report.find_growth(figures(1_000_000, 585.0), stated) == []  # 550 and 36 MB
    (line,) = atlas_report.find_growth(figures(1_000_000, 587.0), stated)
    assert line.startswith("train: 587 MB with 10,000,000 cells; with 500 MB for a tenth of them, 586 are allowed")
    assert atlas_report.find_growth(figures(100_000, 900.0), stated) == []  # too few cells to judge
    (line,) = atlas_report.find_growth(figures(1_000_000, 500.0, held=4.5), stated)
    assert "4.50 bytes per cell and covariate" in line


def test_a_forecast_has_a_constant_part_and_one_for_each_cell():
    import atlas_report

    known = {"100": {"a": {"seconds": 5}, "b": {"seconds": 10}}, "1000": {"a": {"seconds": 14}}}
    assert atlas_report.forecast(known, ["a", "b"], [100, 1000, 10_000], 1000, "b") == (100, 100 + 104 + 1000)
    assert atlas_report.forecast({}, ["a", "b"], [100], 100, "a") == (None, None)


def test_the_job_goes_on_with_the_step_in_which_it_was_stopped(tmp_path: Path, monkeypatch):
    import atlas

    taken, stopped_in = [], ["train, one epoch"]

    def take_step(step, at: Path, options) -> dict:
        taken.append((at.name, step.name))
        if step.makes:
            (at / step.makes).mkdir()
        if step.name in stopped_in:
            raise KeyboardInterrupt
        found = {"cells": 1, "held_bytes": 1, "peak_bytes": 1, "right": 1.0, "asked": 1, "reference": 1, "elbo": 1.0}
        return {
            **dict.fromkeys(("seconds", "peak_mb", "all_mb", "disk_gb", "made_gb", "cores_busy"), 1),
            "found": found,
        }

    monkeypatch.setattr(atlas, "take_step", take_step)
    monkeypatch.setattr(atlas.signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["atlas.py", "--work", str(tmp_path), "--quick"])
    with pytest.raises(KeyboardInterrupt):
        atlas.main()
    (at,) = tmp_path.glob("*/2000")
    assert {path.name for path in at.iterdir()} == {"store", "run"}  # the atlas is not needed once it is ingested
    before, stopped_in[:] = taken.copy(), []
    assert atlas.main() == 0
    assert [name for _, name in before[:-1] + taken[len(before) :]] == [step.name for step in atlas.STEPS]
    assert atlas.main() == 0
    assert len(taken) == len(atlas.STEPS) + 1  # nothing is done again


def test_neighbours_tell_types_and_mix_batches():
    import type_neighbours

    draw = np.random.default_rng(0)
    types = np.repeat([0, 1, 2], 100)
    latents = np.eye(3)[types] * 20 + draw.normal(size=(300, 3))
    near = type_neighbours.find_neighbours(latents[::2], latents[1::2])
    assert type_neighbours.measure_right(types[1::2][near], types[::2]) == 1
    apart, mixed = np.zeros((4, 16), int), np.tile([0, 1], (4, 8))
    assert type_neighbours.measure_mixing(apart, 2) == 0
    assert type_neighbours.measure_mixing(mixed, 2) == pytest.approx(1)


def test_a_failure_of_scvi_tools_tests_has_a_known_reason_or_is_shown_as_one_without(tmp_path: Path):
    import scvi_tests

    def case(name: str, error: str) -> str:
        return f'<testcase name="{name}"><failure>{scvi_tests.TESTS}:12: in {name}\nE   {error}</failure></testcase>'

    cases = [
        '<testcase name="test_fine"/>',
        '<testcase name="test_left_out"><skipped/></testcase>',
        case("test_parts", "AttributeError: 'SCVI' object has no attribute 'z_encoder'"),
        case("test_wrong", "AssertionError: 3 != 4"),
    ]
    (tmp_path / "report.xml").write_text(f"<testsuites><testsuite>{''.join(cases)}</testsuite></testsuites>")
    counts, failed = scvi_tests.read_report(tmp_path / "report.xml")
    assert counts == {"passed": 1, "failed": 2, "skipped": 1}
    assert [each["line"] for each in failed] == ["12", "12"]
    assert failed[0]["reason"].startswith("internals")
    assert failed[1]["reason"] is None
    said = scvi_tests.describe(counts, failed)
    assert said.index("test_parts") < said.index("NO KNOWN REASON") < said.index("test_wrong")


def test_scvi_tools_tests_are_copied_with_our_scvi_in_place_of_theirs(tmp_path: Path):
    import scvi_tests

    (tmp_path / "checkout" / scvi_tests.TESTS).parent.mkdir(parents=True)
    with pytest.raises(SystemExit, match=r"holds no tests/model/test_scvi\.py"):
        scvi_tests.prepare(tmp_path / "checkout", tmp_path / "work")
    (tmp_path / "checkout" / scvi_tests.TESTS).write_text("import scvi\nfrom scvi.model import SCVI\n")
    scvi_tests.prepare(tmp_path / "checkout", tmp_path / "work")
    assert (tmp_path / "work" / scvi_tests.TESTS).read_text() == "import scvi\nfrom atlasvi.engine import SCVI\n"


def list_scripts() -> dict[str, str]:
    """The text of each file in benchmarks/ that is run by itself, by its name."""
    texts = {file.stem: file.read_text() for file in (ROOT / "benchmarks").glob("*.py")}
    return {name: text for name, text in texts.items() if '\nif __name__ == "__main__":\n' in text}


def test_each_benchmark_is_run_on_small_inputs_or_is_listed_with_the_reason():
    tree = ast.parse((ROOT / "tests" / "test_quick_benchmarks.py").read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    run = {str(ast.literal_eval(call.args[0])) for call in calls if call.func.id == "quick"}  # type: ignore[attr-defined]
    scripts = list_scripts()
    assert len(run) >= 16
    assert sorted(set(scripts) - run - set(LEFT_OUT)) == [], "run these in test_quick_benchmarks.py, or list them there"
    assert sorted(set(LEFT_OUT) & run | set(LEFT_OUT) - set(scripts)) == [], "these are run, or gone: take them away"
    for name in run:  # what the tests call is all that a user's command does
        assert scripts[name].rstrip().splitlines()[-1].strip() in ("main()", "sys.exit(main())")
    for name, reason in LEFT_OUT.items():
        if reason.endswith(".py"):  # it is started by another one
            assert f"{name}.py" in scripts[reason.split()[-1].removesuffix(".py")]


def test_a_measured_process_says_how_it_ended_and_what_it_used(tmp_path: Path):
    import processes

    code = "import sys; print([0] * 10**6 == 1); sys.exit(3)"
    with open(tmp_path / "said", "wb") as out:
        child = processes.Child([sys.executable, "-c", code], out.fileno())
        assert child.wait(60)
    assert child.status == 3
    assert (tmp_path / "said").read_text() == "False\n"
    assert child.usage["peak_mb"] > 8  # a million pointers
    assert child.usage["cpu_s"] > 0
    child = processes.Child([sys.executable, "-c", "import time; time.sleep(60)"])
    assert not child.wait(0.01)
    child.kill()
    assert child.status == -9
    assert processes.run_json([sys.executable, "-c", "print('{\"peak_mb\": 1}')"], watch_memory=True)["peak_mb"] == 1
    with pytest.raises(processes.RunError, match=r"^wrong$"):
        processes.run([sys.executable, "-c", "import sys; print('a'); sys.exit('it went\\nwrong')"])


def test_a_folder_that_goes_while_the_disk_is_measured_counts_nothing(tmp_path: Path, monkeypatch):
    """As ingest and minify rename and remove theirs."""
    import atlas

    (tmp_path / "at" / "goes" / "in it").mkdir(parents=True)
    (tmp_path / "at" / "stays").write_bytes(b"12345")
    list_folder = os.scandir

    class Listed:
        """What os.scandir returns, all of it listed already."""

        def __init__(self, path: str) -> None:
            self._found = iter(list(list_folder(path)))

        def __enter__(self) -> "Listed":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def __iter__(self) -> "Listed":
            return self

        def __next__(self) -> os.DirEntry[str]:
            return next(self._found)

    def list_and_move(path: str) -> Listed:
        found = Listed(path)
        if Path(path).name == "at":
            os.rename(tmp_path / "at" / "goes", tmp_path / "gone")
        return found

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", list_and_move)
        assert atlas.disk_bytes(tmp_path / "at") == 5
