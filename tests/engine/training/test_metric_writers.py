import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from atlasvi.engine.training import metric_writers
from atlasvi.engine.training.metric_writers import OPEN_METRICS, check_writers, open_writers
from atlasvi.engine.training.progress import RunLog
from atlasvi.engine.training.settings import SettingError
from tests.engine.training.test_progress import line

CONFIG = {
    "seed": 3,
    "settings": {"n_latent": 5},
    "data": {"path": "/home/me/patients.h5ad"},
    "setup": {"categories": {"tissue (UBERON)": ["lung"]}},
    "genes": ["g0", "g1"],
    "provenance": {"command": "atlasvi train /home/me/patients.h5ad"},
}


def log_epochs(out: Path, names: list[str] | None, epochs: range) -> list[str]:
    """Log the lines of some epochs of a run, as a process that starts or resumes it does; returns what was said."""
    out.mkdir(exist_ok=True)
    said: list[str] = []
    history = [line(epoch) for epoch in range(epochs.start)]
    with RunLog(out / "metrics.jsonl", 9, 10, history, writers=open_writers(names, out, CONFIG, said.append)) as log:
        for epoch in epochs:
            log.epoch(line(epoch))
    return said


def test_tensorboard_gets_the_same_numbers_unless_told_otherwise(tmp_path: Path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert log_epochs(tmp_path, None, range(2)) == []
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("validation_elbo")] == [(10, -322.5), (20, -323.5)]


def test_it_is_said_that_tensorboard_is_missing(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(metric_writers, "is_installed", lambda name: False)
    assert "pip install 'atlasvi[tensorboard]'" in log_epochs(tmp_path, None, range(1))[0]
    assert log_epochs(tmp_path, [], range(1)) == []  # nobody asked for it


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("comet", "no metrics for 'comet'; there are: tensorboard, mlflow, wandb, openmetrics"),
        ("wandb", "need the package wandb: pip install 'atlasvi\\[wandb\\]'"),
    ],
)
def test_a_place_that_can_not_be_had_is_refused_before_training(monkeypatch, name: str, message: str):
    monkeypatch.setattr(metric_writers, "is_installed", lambda name: name != "wandb")
    with pytest.raises(SettingError, match=message):
        check_writers(["openmetrics", name])


class Kept:
    """A place that keeps what it gets."""

    name = "kept"

    def __init__(self, out: Path, config) -> None:
        self.config, self.failed = config, []
        Kept.last = self

    def write(self, metrics, step: int) -> None: ...

    def close(self, failed: bool) -> None:
        self.failed.append(failed)


def test_services_get_settings_and_no_paths_names_or_genes(tmp_path: Path, monkeypatch):
    monkeypatch.setitem(metric_writers.WRITERS, "kept", Kept)
    log_epochs(tmp_path, ["kept"], range(1))
    assert Kept.last.config == {"seed": 3, "settings": {"n_latent": 5}}


def test_services_are_told_whether_a_run_failed(tmp_path: Path, monkeypatch):
    monkeypatch.setitem(metric_writers.WRITERS, "kept", Kept)
    log_epochs(tmp_path, ["kept"], range(1))
    assert Kept.last.failed == [False]
    with (
        pytest.raises(RuntimeError),
        RunLog(tmp_path / "m", 9, 10, [], writers=open_writers(["kept"], tmp_path, CONFIG, print)),
    ):
        raise RuntimeError
    assert Kept.last.failed == [True]


def test_a_service_that_can_not_be_reached_at_the_start_is_said_and_left_out(tmp_path: Path, monkeypatch):
    def refuse(out, config):
        raise ConnectionError("no route to host")

    monkeypatch.setitem(metric_writers.WRITERS, "mlflow", refuse)
    said = log_epochs(tmp_path, ["mlflow", "openmetrics"], range(1))
    assert said == ["Warning: mlflow gets no metrics (ConnectionError: no route to host); training goes on."]
    assert (tmp_path / OPEN_METRICS).is_file()


def test_a_scraper_finds_the_newest_numbers_as_open_metrics(tmp_path: Path):
    out = tmp_path / 'my "run"\\1'
    log_epochs(out, ["openmetrics"], range(3))
    lines = (out / OPEN_METRICS).read_text().splitlines()
    assert lines[-1] == "# EOF"
    assert "# TYPE atlasvi_train_elbo gauge" in lines
    assert r'atlasvi_train_elbo{run="my \"run\"\\1"} -323.5' in lines
    assert sum(line.startswith("atlasvi_step{") for line in lines) == 1


def test_mlflow_gets_settings_and_numbers_and_a_resumed_run_goes_on_in_the_same_run(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")  # it is read when mlflow is imported
    pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "atlases")
    assert log_epochs(tmp_path / "run", ["mlflow"], range(2)) == []
    assert log_epochs(tmp_path / "run", ["mlflow"], range(2, 3)) == []
    client = MlflowClient()
    experiment = client.get_experiment_by_name("atlases").experiment_id
    (run,) = client.search_runs([experiment])
    assert run.info.run_name == "run"
    assert run.info.status == "FINISHED"
    assert run.data.params == {"seed": "3", "settings.n_latent": "5"}
    history = client.get_metric_history(run.info.run_id, "train_elbo")
    assert [(metric.step, metric.value) for metric in history] == [(10, -321.5), (20, -322.5), (30, -323.5)]


def test_weights_and_biases_works_without_a_network(tmp_path: Path):
    pytest.importorskip("wandb")
    script = (
        "from pathlib import Path; from tests.engine.training.test_metric_writers import log_epochs; "
        f"print(log_epochs(Path({str(tmp_path / 'run')!r}), ['wandb'], range(2)))"
    )
    # in a process of its own, because wandb leaves threads and a service behind
    environment = {**os.environ, "WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=300)
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stderr
    known = json.loads((tmp_path / "run" / "tracking.json").read_text())
    (kept,) = (tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb")
    assert known["wandb"] in kept.name
    assert b"validation_elbo" in kept.read_bytes()
