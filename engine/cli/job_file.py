"""`--config FILE`: the options of a command from a TOML file, or from the config.json of a run.

A file holds the options of one command, or a table of them for each of several commands ([ingest], [train], ...). What
is typed on the command line wins. Paths are those of the folder where the command runs, as on the command line.
"""

import csv
import difflib
import io
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from atlasvi.engine.model.run_files import CONFIG, RUN_FORMAT
from atlasvi.loaders.damage import reading
from atlasvi.loaders.errors import AtlasviError
from atlasvi.loaders.manifest import read_json
from atlasvi.loaders.sources.data_spec import DataSpec
from atlasvi.loaders.store_files import check_version

OF_A_RUN = (
    "batch_key",
    "labels_key",
    "size_factor_key",
    "categorical_covariate_keys",
    "continuous_covariate_keys",
    "seed",
    "split_column",
    "device",
)
"""What a run's config.json says of the options of `train`, besides its data and its settings."""


class JobError(AtlasviError, ValueError):
    """A job file that can't be read, or holds what its command does not have."""


@dataclass(frozen=True)
class Job:
    """What a job file holds for one command.

    options   values by the name of the parameter
    settings  for commands with --set: values by the name of the setting
    """

    options: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)


def take_job(context: typer.Context, path: Path | None) -> Path | None:
    """Make the options in the file the defaults of the command that is being parsed; called before other options."""
    if path is not None:
        group: Any = context.find_root().command
        words, at = [str(context.info_name)], context.parent
        while at is not None and at.parent is not None:  # `query`, for one of its questions
            words, at = [str(at.info_name), *words], at.parent
        job = read_job(path, context.command, words, group.list_commands(context))
        context.default_map = {**(context.default_map or {}), **job.options}
        context.meta["settings"] = job.settings
    return path


JobFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="Options from a TOML file (docs/job-files.md), or a run's config.json.",
        callback=take_job,
        is_eager=True,
    ),
]


def read_job(path: Path, command: Any, words: Sequence[str], commands: Sequence[str]) -> Job:
    """What the file holds for a command.

    command   as click has it
    words     what is typed for it: ['train'], ['query', 'markers']
    commands  names of all commands, for which a file may have tables
    Raises JobError, naming the file and the key.
    """
    content = _read(path)
    tables = [name for name in commands if isinstance(content.get(name), dict)]
    if tables:
        if outside := sorted(content.keys() - tables):
            raise JobError(
                f"{path}: {outside[0]!r} stands outside of the tables {', '.join(tables)}: move it into one."
            )
        for word in words:
            if not isinstance(content.get(word), dict):
                raise JobError(f"{path}: it has no table [{'.'.join(words)}] (it has: {', '.join(tables)}): add one.")
            content = content[word]
    known = {name: each for each in command.params for name in _list_names(each)}
    has_settings = "set" in known
    options, settings = dict[str, Any](), dict[str, Any]()
    if has_settings:
        for name in ("settings", "set"):
            if isinstance(content.get(name), dict):
                settings |= {key: value for key, value in content.pop(name).items() if value is not None}
    for key, value in content.items():
        name = key.replace("-", "_")
        if has_settings and (name in ("epochs", "batch_size") or name not in known):
            settings[name] = value  # so that --set and the options of these names win over the file
        elif name not in known or name in ("config", "help"):
            near = difflib.get_close_matches(name, known, 3)
            hint = f"did you mean {', '.join(near)}?" if near else f"there are: {', '.join(sorted(known))}."
            raise JobError(f"{path}: {' '.join(words)} has no option {key!r}; {hint}")
        elif value is not None:
            options[known[name].name] = _fit(path, key, value, known[name])
    return Job(options, settings)


def _list_names(parameter: Any) -> list[str]:
    """What a parameter may be called in a file: an option as it is typed, an argument as the help shows it."""
    shown = str(getattr(parameter, "metavar", None) or "").lower()
    is_argument = parameter.param_type_name == "argument"
    names = [parameter.name, *parameter.opts, *([shown] if is_argument and shown.isidentifier() else [])]
    return [name.lstrip("-").replace("-", "_") for name in names]


def _read(path: Path) -> dict[str, Any]:
    """The content of a file; that of a run's config.json as a job file has it."""
    try:
        text = path.read_bytes().decode()
    except OSError as error:
        raise JobError(f"{path}: can't be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise JobError(f"{path}: not a TOML file ({error}).") from error
    if text.lstrip().startswith("{"):
        return _read_run(path)
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise JobError(f"{path}: not a TOML file ({error}).") from error


def _read_run(path: Path) -> dict[str, Any]:
    """The options of `train` that started a run, from its config.json."""
    saved = read_json(path)
    check_version(str(path), "run", saved, RUN_FORMAT)
    if not isinstance(saved.get("settings"), dict) or "data" not in saved:
        raise JobError(f"{path}: this JSON is no {CONFIG} of a run: give that, or a TOML file.")
    if saved.get("genes"):
        raise JobError(
            f"{path}: this run was started from another one (--start), which its {CONFIG} does not name: write the "
            "options into a TOML file."
        )
    with reading(str(path)):
        data = str(DataSpec.from_record(saved["data"]))
    return {"data": data, **{name: saved.get(name) for name in OF_A_RUN}, "settings": saved["settings"]}


def _fit(path: Path, key: str, value: Any, parameter: Any) -> Any:
    """A value of TOML as click takes it for an option. Raises JobError for one that can't be."""
    is_list = parameter.multiple if hasattr(parameter, "multiple") else False
    is_list = is_list or parameter.nargs == -1
    is_flag = getattr(parameter, "is_flag", False)
    if isinstance(value, Mapping) or (isinstance(value, bool) != is_flag):
        wanted = "true or false" if is_flag else "a number, text or a list"
        raise JobError(f"{path}: {key} = {json.dumps(value, default=str)}: it must be {wanted}.")
    if is_list:
        return [str(each) for each in value] if isinstance(value, list) else [str(value)]
    if isinstance(value, list):  # names separated by commas, those with a comma in double quotes
        line = io.StringIO()
        csv.writer(line, lineterminator="").writerow(value)
        return line.getvalue()
    return value
