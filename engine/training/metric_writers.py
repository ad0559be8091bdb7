"""Where the metrics of a run go besides its own files: TensorBoard, MLflow, Weights & Biases, or a scraper's text file.

A new place needs a class with the three members of `MetricWriter`, and a line in WRITERS. Servers, projects and offline
modes are chosen by the variables of each package: MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME, WANDB_PROJECT and
WANDB_MODE.
"""

import importlib.util
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

from atlasvi.engine.training.settings import SettingError
from atlasvi.loaders.outputs import write_whole
from atlasvi.loaders.places.object_path import Place
from atlasvi.loaders.places.staging import write_local_folder

SHOWN = ("atlasvi", "seed", "device", "kernels", "settings")  # of a run's configuration: no paths, names or genes
TRACKED = "tracking.json"  # in a run's directory: under which ids services know it, so that a resumed run goes on there
MLFLOW_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
"""Instead of MLflow's 7 retries and 120 s: training waits meanwhile, and other ranks would take that for a hang."""
OPEN_METRICS = "metrics.prom"  # the ending that node_exporter's textfile collector looks for


class MetricWriter(Protocol):
    """Gets the numbers of each epoch, and of steps in long epochs."""

    name: str

    def write(self, metrics: Mapping[str, float], step: int) -> None:
        """Take the metrics after an optimizer step, by their names in metrics.jsonl."""

    def close(self, failed: bool) -> None:
        """Write what is kept back; nothing follows. failed: whether the run ended with an error or was interrupted."""


class TensorBoardWriter:
    """Event files in the run's folder tensorboard/."""

    name = "tensorboard"

    def __init__(self, out: Place, config: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._files = ExitStack()
        folder = self._files.enter_context(write_local_folder(out / "tensorboard"))  # sent to a bucket at the end
        self._writer: Any = SummaryWriter(str(folder))

    def write(self, metrics: Mapping[str, float], step: int) -> None:
        """See MetricWriter."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self, failed: bool) -> None:
        """See MetricWriter."""
        self._writer.close()
        self._files.close()


class MlflowWriter:
    """A run of MLflow, with the settings as its parameters."""

    name = "mlflow"

    def __init__(self, out: Place, config: Mapping[str, Any]) -> None:
        for name, value in MLFLOW_PATIENCE.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient
        from mlflow.entities import Metric

        self._client: Any = MlflowClient()
        self._metric = Metric
        self._run = read_id(out, self.name)
        if self._run is not None:
            self._client.update_run(self._run, status="RUNNING")
            return
        experiment = self._client.get_experiment_by_name(wanted := os.environ.get("MLFLOW_EXPERIMENT_NAME", "atlasvi"))
        found = experiment.experiment_id if experiment is not None else self._client.create_experiment(wanted)
        self._run = self._client.create_run(found, run_name=out.name).info.run_id
        keep_id(out, self.name, self._run)
        for key, value in flatten(config).items():
            self._client.log_param(self._run, key, value)

    def write(self, metrics: Mapping[str, float], step: int) -> None:
        """See MetricWriter."""
        now = int(time.time() * 1000)
        self._client.log_batch(self._run, metrics=[self._metric(k, v, now, step) for k, v in metrics.items()])

    def close(self, failed: bool) -> None:
        """See MetricWriter."""
        self._client.set_terminated(self._run, "FAILED" if failed else "FINISHED")


class WandbWriter:
    """A run of Weights & Biases, with the settings as its configuration; its files are in the run's folder wandb/.

    Those of a run in a bucket are where WANDB_DIR says: the service has their content.
    """

    name = "wandb"

    def __init__(self, out: Place, config: Mapping[str, Any]) -> None:
        import wandb

        known = read_id(out, self.name)
        self._run: Any = wandb.init(
            dir=str(out) if isinstance(out, Path) else None,
            name=out.name,
            id=known,
            resume=known and "allow",
            config=dict(flatten(config)),
        )
        keep_id(out, self.name, self._run.id)

    def write(self, metrics: Mapping[str, float], step: int) -> None:
        """See MetricWriter."""
        self._run.log(dict(metrics), step=step)

    def close(self, failed: bool) -> None:
        """See MetricWriter."""
        self._run.finish(exit_code=int(failed), quiet=True)


class OpenMetricsWriter:
    """The newest numbers as OpenMetrics text in the run's metrics.prom, replaced as a whole, for a scraper to read."""

    name = "openmetrics"

    def __init__(self, out: Place, config: Mapping[str, Any]) -> None:
        self._path, self._run = out / OPEN_METRICS, out.name
        self._known: dict[str, float] = {}

    def write(self, metrics: Mapping[str, float], step: int) -> None:
        """See MetricWriter."""
        self._known |= {"step": step, "written_seconds": time.time(), **metrics}
        write_whole(self._path, format_open_metrics(self._known, self._run).encode())

    def close(self, failed: bool) -> None:
        """See MetricWriter."""


WRITERS: dict[str, Callable[[Place, Mapping[str, Any]], MetricWriter]] = {
    each.name: each for each in (TensorBoardWriter, MlflowWriter, WandbWriter, OpenMetricsWriter)
}
NEEDS = {"tensorboard": "tensorboard", "mlflow": "mlflow", "wandb": "wandb"}  # packages, which are extras of this name


def check_writers(names: Iterable[str] | None) -> None:
    """Raises SettingError for a name that is not of WRITERS, or whose package is not installed."""
    for name in names or ():
        if name not in WRITERS:
            raise SettingError(f"There are no metrics for {name!r}; there are: {', '.join(WRITERS)}.")
        if not is_installed(name):
            raise SettingError(f"Metrics for {name} need the package {NEEDS[name]}: pip install 'atlasvi[{name}]'.")


def open_writers(
    names: Iterable[str] | None, out: Place, config: Mapping[str, Any], say: Callable[[str], None]
) -> list[MetricWriter]:
    """The writers of a run, by name. None: TensorBoard, if it is installed; if not, that is said.

    config  the run's configuration; services get its SHOWN parts
    A service that can't be reached is said too, and left out: training does not depend on it.
    """
    if names is None and not is_installed("tensorboard"):
        say("TensorBoard is not installed, so metrics are in metrics.jsonl alone: pip install 'atlasvi[tensorboard]'.")
        return []
    opened, shown = list[MetricWriter](), {name: config[name] for name in SHOWN if name in config}
    for name in dict.fromkeys(("tensorboard",) if names is None else names):
        try:
            opened.append(WRITERS[name](out, shown))
        except Exception as error:  # whatever a package for metrics raises
            say(f"Warning: {name} gets no metrics ({type(error).__name__}: {error}); training goes on.")
    return opened


def is_installed(name: str) -> bool:
    """Whether the package that a writer needs is there."""
    return name not in NEEDS or importlib.util.find_spec(NEEDS[name]) is not None


def format_open_metrics(metrics: Mapping[str, float], run: str) -> str:
    """Numbers as OpenMetrics text: gauges named atlasvi_NAME with the run as their label."""
    label = run.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    lines = [
        f'# TYPE atlasvi_{name} gauge\natlasvi_{name}{{run="{label}"}} {value!r}\n' for name, value in metrics.items()
    ]
    return "".join(lines) + "# EOF\n"


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values under names with dots."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def read_id(out: Place, name: str) -> str | None:
    """The id under which a service knows the run; None if it does not."""
    try:
        return json.loads((out / TRACKED).read_text()).get(name)
    except (OSError, ValueError):
        return None


def keep_id(out: Place, name: str, known_as: str) -> None:
    """Keep the id under which a service knows the run."""
    try:
        ids = json.loads((out / TRACKED).read_text())
    except (OSError, ValueError):
        ids = {}
    write_whole(out / TRACKED, json.dumps({**ids, name: known_as}).encode())
