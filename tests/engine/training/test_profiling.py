import json
from pathlib import Path

from atlasvi.engine import simulate, train
from atlasvi.engine.training.profiling import PARTS, PROFILED_STEPS, format_parts


def test_a_profiled_run_leaves_a_trace_and_says_where_the_time_went(tmp_path: Path, capsys):
    simulate(tmp_path / "atlas.h5ad", n_cells=600, n_genes=40, n_batches=2, n_types=2, seed=0)
    run = train(tmp_path / "atlas.h5ad", tmp_path / "run", batch_key="batch", epochs=2, batch_size=32, profile=True)
    said = capsys.readouterr().err
    for part in ("load wait", "encoder", "decoder + loss", "backward", "optimizer"):
        assert part in said
    trace = json.loads((tmp_path / "run" / "profile" / "trace.json").read_text())
    assert {"encoder", "optimizer"} <= {event.get("name") for event in trace["traceEvents"]}
    plain = train(tmp_path / "atlas.h5ad", tmp_path / "plain", batch_key="batch", epochs=2, batch_size=32)
    assert run.result["validation"] == plain.result["validation"]


def test_the_parts_of_a_step_add_up():
    times = dict.fromkeys(PARTS, 2.0 * PROFILED_STEPS) | {"ProfilerStep*": 20.0 * PROFILED_STEPS, "aten::mm": 1.0}
    lines = list(format_parts(times))
    assert lines[-2].split() == ["idle", "and", "all", "else", "8.00", "40.0%"]
    assert lines[-1].split() == ["step", "20.00"]


def test_on_a_gpu_what_the_device_did_stands_beside_what_the_host_did():
    times = dict.fromkeys(PARTS, 2.0 * PROFILED_STEPS) | {"ProfilerStep*": 20.0 * PROFILED_STEPS}
    device = dict.fromkeys(PARTS, 3.0 * PROFILED_STEPS) | {"device": 18.0 * PROFILED_STEPS}
    lines = list(format_parts(times, device))
    assert lines[1].split() == ["load", "wait", "2.00", "10.0%", "3.00"]
    assert lines[-2].split() == ["idle", "and", "all", "else", "8.00", "40.0%", "2.00"]
