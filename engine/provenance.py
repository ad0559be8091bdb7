"""Where runs, models, minified stores and cards come from: what was typed, on what machine, with which code and data.

`Provenance` is kept as plain values under the key 'provenance' of config.json, of model.pt and of a minified store's
attributes, and shown by `atlasvi info`. It does not record the names of the machine and of its user, because models and
stores are given away; paths that were typed are kept, and may hold them. Passwords in addresses are left out.
"""

import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Self

LIBRARIES = ("torch", "numpy", "scipy", "numba", "anndata", "zarr")
GIT_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where something comes from. What is not known is None.

    command   as it was typed, with the launch before it; in Python the script, if there is one
    created   date and time, UTC, ISO 8601
    machine   processor or GPU, number of cores, operating system
    versions  of atlasvi, python and the libraries that compute
    commit    of the git repository of the folder where it was started, '-dirty' where files were changed since
    note      what the user says of it
    counts    a hash of all counts, from the checksums of a cell store; None for other data
    genes     a hash of the names of the genes, in their order
    split     how cells were held out
    seed      of the random draws
    of        where the model that was used comes from
    """

    command: str
    created: str
    machine: str
    versions: dict[str, str]
    commit: str | None = None
    note: str | None = None
    counts: str | None = None
    genes: str | None = None
    split: str | None = None
    seed: int | None = None
    of: "Provenance | None" = field(default=None)

    def to_record(self) -> dict[str, Any]:
        """Plain values, without those that are None."""
        return _drop_missing(asdict(self))

    @classmethod
    def from_record(cls, record: Any) -> Self | None:
        """From what `to_record` made; None if there is nothing, as in files of older versions.

        Names that a newer version may have added are ignored. Raises ValueError for anything else.
        """
        if record is None:
            return None
        if not isinstance(record, Mapping) or not isinstance(record.get("versions", {}), Mapping):
            raise ValueError("its provenance is not what atlasvi writes")
        known = {each.name: record[each.name] for each in fields(cls) if each.name in record}
        empty = {"command": "", "created": "", "machine": "", "versions": {}}
        return cls(**{**empty, **known, "of": cls.from_record(record.get("of"))})

    def describe(self, what: str) -> Iterator[str]:
        """Lines for a person; what: how it was made, such as 'trained'."""
        yield f"{what} {self.created} by: {self.command}"
        known = ", ".join(f"{name} {number}" for name, number in self.versions.items())
        yield f"{what} on {self.machine}, with {known}"
        for name, value in (
            ("note", self.note),
            ("git commit", self.commit),
            ("counts", self.counts),
            ("genes", self.genes),
            ("split", self.split),
            ("seed", self.seed),
        ):
            if value is not None:
                yield f"{name}: {value}"


def make_provenance(launched: str, **known: Any) -> Provenance:
    """The provenance of what is being made by this process.

    launched  the words that start atlasvi here: see `launch_prefix`
    known     further fields of Provenance
    """
    return Provenance(
        command=name_command(launched),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=f"{describe_hardware()}, {platform.system()} {platform.release()}",
        versions=list_versions(),
        commit=find_commit(Path.cwd()),
        **known,
    )


def name_command(launched: str) -> str:
    """What was typed to start this process, without passwords in addresses."""
    program, words = Path(sys.argv[0] or "-"), sys.argv[1:]
    if program.name in ("atlasvi", "atlasvi.exe") or program.parts[-2:] == ("cli", "commands.py"):
        typed = f"{launched} {shlex.join(words)}"
    else:
        typed = shlex.join(["python", str(program), *words]) if program.suffix == ".py" else "python"
    return re.sub(r"(\w://)[^/\s'\"]*@", r"\1", typed)


def find_commit(folder: Path) -> str | None:
    """The commit that is checked out in a folder, with '-dirty' if files differ from it; None without git."""
    command = ["git", "-C", str(folder), "-c", "core.fsmonitor=false", "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        done = subprocess.run([*command, "--exclude=*"], capture_output=True, text=True, timeout=GIT_SECONDS)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def describe_hardware() -> str:
    """The GPU, if torch is loaded and finds one, or the processor; and the number of cores."""
    cores = f"{os.cpu_count()} cores"
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, {cores}"
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as file:
            name = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), name)
    except OSError:
        pass
    return f"{name}, {cores}"


def list_versions() -> dict[str, str]:
    """The versions of atlasvi, Python and the libraries that compute."""
    return {
        "atlasvi": find_version("atlasvi"),
        "python": platform.python_version(),
        **{name: find_version(name) for name in LIBRARIES},
    }


def find_version(package: str) -> str:
    """The version of an installed package, or 'unknown'."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def _drop_missing(record: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _drop_missing(value) if isinstance(value, dict) else value
        for name, value in record.items()
        if value is not None
    }
