"""Is the wheel whole: does it install without extras, run the quickstart, and show its types?

Builds a wheel as `make dist` does (dist.py), which checks what it holds, and installs it, by pip, into a fresh
environment that holds what pyproject.toml requires and nothing else: no extra, no development tool. These packages are
not downloaded again but linked, file by file, from the environment that runs this script; pip gets no index and fails
if a required package is missing. There the quickstart runs, two commands read what it has made, and mypy shows the
signature of `train`, as an editor does. The quickstart runs as in a container: no compiler, no home, and site-packages
that can't be written (root still can).
"""

import os
import re
import subprocess
import sys
import tempfile
import zipfile
from importlib.metadata import Distribution, distributions
from pathlib import Path

from dist import build
from packaging.requirements import Requirement
from packaging.utils import NormalizedName, canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
INSTALLED = {canonicalize_name(found.metadata["Name"]): found for found in distributions()}


def run(*command: object, **options: object) -> str:
    """What a command prints, which goes to our output, too; ends with its status if it fails."""
    print("$", " ".join(map(str, command)), flush=True)
    done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, text=True, **options)
    print(done.stdout, end="", flush=True)
    if done.returncode != 0:
        sys.exit(f"wheel: this ended with status {done.returncode}.")
    return done.stdout


def list_required(wheel: Path) -> dict[NormalizedName, Distribution]:
    """The installed packages that the wheel requires without extras, and those that they require in turn."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        text = archive.read(name).decode()
    waiting = [(line, "") for line in re.findall(r"^Requires-Dist: (.*)$", text, re.M)]
    required: dict[NormalizedName, Distribution] = {}
    seen = set()
    while waiting:
        line, extra = waiting.pop()
        requirement = Requirement(line)
        if (line, extra) in seen or (requirement.marker and not requirement.marker.evaluate({"extra": extra})):
            continue
        seen.add((line, extra))
        name = canonicalize_name(requirement.name)
        if name not in INSTALLED:
            continue  # pip fails below, and names it
        required[name] = INSTALLED[name]
        for wanted in ("", *requirement.extras):
            waiting += [(further, wanted) for further in INSTALLED[name].requires or []]
    return required


def link_packages(required: dict[NormalizedName, Distribution], site: Path) -> None:
    """Link every file of the packages into another environment's site-packages."""
    for package in required.values():
        for file in package.files or []:
            if file.parts[0] == "..":  # commands, in bin
                continue
            place = site / file
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(file.locate(), place)
            except FileNotFoundError:
                continue  # a byte-compiled file that was removed since
            except OSError:  # another file system
                os.symlink(file.locate(), place)


def protect(site: Path) -> list[Path]:
    """Take the right to write from all folders of site-packages; returns them."""
    folders = [site, *(path for path in site.rglob("*") if path.is_dir() and not path.is_symlink())]
    for folder in folders:
        folder.chmod(0o555)
    return folders


def show_types(python: Path, here: dict) -> None:
    """mypy of our environment over the wheel in the other one; what is promised must have a signature, not Any."""
    program = "from atlasvi.engine import SCVI, train\nfrom atlasvi.loaders import BatchLoader\n"
    program += "reveal_type(train)\nreveal_type(SCVI.train)\nreveal_type(BatchLoader.__init__)\n"
    (here["cwd"] / "mypy.ini").write_text("[mypy]\n[mypy-torch.*,numpy.*,pandas.*]\nfollow_imports = skip\n")  # minutes
    command = [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "--python-executable", python, "-c", program]
    shown = re.findall(r'Revealed type is "(.*)"', run(*command, **here))
    if len(shown) != 3 or not all(each.startswith("def (") for each in shown):
        sys.exit("wheel: mypy does not see the signatures of what is installed: is py.typed in the wheel?")


def main() -> None:
    """Build, install, run, show."""
    with tempfile.TemporaryDirectory(prefix="atlasvi-wheel-") as temporary:
        folder = Path(temporary)
        _, wheel = build(folder)
        run(sys.executable, "-m", "venv", "--without-pip", folder / "venv")
        commands = folder / "venv" / "bin"
        python = commands / "python"
        required = list_required(wheel)
        site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
        link_packages(required, site)
        print(f"{len(required)} of the {len(INSTALLED)} packages here are required: {', '.join(sorted(required))}")
        run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index", wheel)
        work = folder / "work"
        work.mkdir()
        clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
        here = {"cwd": work, "env": {**clean, "COLUMNS": "120"}}
        contained = {"PATH": str(commands), "HOME": "/nonexistent", "TMPDIR": str(work)}
        writable = protect(site)
        run(python, ROOT / "examples" / "quickstart.py", work, cwd=work, env=contained)
        for place in writable:
            place.chmod(0o755)
        run(commands / "atlasvi", "info", "atlas.store", **here)
        run(commands / "atlasvi", "query", "atlas.mini", "latent", "--out", "latent.npz", **here)
        show_types(python, here)
    print("wheel: it installs without extras, runs the quickstart and shows its types.")


if __name__ == "__main__":
    main()
