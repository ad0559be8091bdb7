"""Build the sdist, and from it the wheel, into dist/, and check that they hold what they need and nothing else.

The sdist has every file that git knows, but for .ci, .github and the dot files; the wheel the files of the three
packages, and nothing of tests or benchmarks. Both are built from a copy of the files that git knows, because setuptools
leaves what it builds in the tree, and reads it; so what was not added to git is not in them.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = PROJECT["tool"]["setuptools"]["package-dir"]  # atlasvi.loaders: loaders
OURS = (".ci/", ".github/", ".dockerignore", ".gitignore", ".pre-commit-config.yaml")  # in no sdist
MADE = ("PKG-INFO", "setup.cfg", "atlasvi.egg-info/")  # by setuptools, in the sdist
HOOK = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"


def main() -> None:
    """Build and check; the files are in the folder that is named, or in dist/."""
    out = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "dist").resolve()
    for path in build(out):
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, complete and nothing else.")


def build(out: Path) -> tuple[Path, Path]:
    """The sdist and the wheel, copied into a folder. Ends with a sentence if one is wrong."""
    known = list_known()
    with tempfile.TemporaryDirectory(prefix="atlasvi-dist-") as temporary:
        folder = Path(temporary)
        for name in known:
            (folder / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / "tree" / name)
        python = make_environment(folder / "venv")
        sdist = run_hook(python, "build_sdist", folder / "tree", folder / "made")
        with tarfile.open(sdist) as archive:
            archive.extractall(folder, filter="data")
            found = {name.partition("/")[2] for name in archive.getnames()}
            files = {name for name in found if not archive.getmember(f"{sdist.name[:-7]}/{name}".rstrip("/")).isdir()}
        check(
            "sdist",
            {name for name in files if not name.startswith(MADE)},
            {name for name in known if not name.startswith(OURS)},
        )
        wheel = run_hook(python, "build_wheel", folder / sdist.name[:-7], folder / "made")
        with zipfile.ZipFile(wheel) as archive:
            held = {name for name in archive.namelist() if ".dist-info/" not in name}
        check(
            "wheel",
            held,
            {f"atlasvi/{name}" for name in known if name.startswith(tuple(f"{path}/" for path in PACKAGES.values()))},
        )
        out.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copy(sdist, out)), Path(shutil.copy(wheel, out))


def list_known() -> list[str]:
    """The files that git knows and that are there."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [name for name in listed.rstrip("\0").split("\0") if (ROOT / name).is_file()]


def make_environment(folder: Path) -> Path:
    """The Python of an environment that has what building needs, and nothing else."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*map(str, install), *PROJECT["build-system"]["requires"]], check=True)
    return python


def run_hook(python: Path, hook: str, tree: Path, out: Path) -> Path:
    """What one of setuptools' hooks builds of a tree."""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    out.mkdir(exist_ok=True)
    done = subprocess.run([python, "-c", HOOK, hook, out], cwd=tree, env=clean, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{done.stderr}dist: {hook} failed.")
    return out / done.stdout.splitlines()[-1]


def check(what: str, held: set[str], wanted: set[str]) -> None:
    """End with a sentence unless the files are those that are wanted."""
    for how, names in (("lacks", wanted - held), ("should not have", held - wanted)):
        if names:
            sys.exit(f"dist: the {what} {how} {len(names)} files: {', '.join(sorted(names)[:10])}.")


if __name__ == "__main__":
    main()
