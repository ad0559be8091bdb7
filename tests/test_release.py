"""What a release says of itself is the same everywhere, and its wheel has every package."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_the_version_is_the_same_in_the_package_the_citation_and_the_changelog():
    version = PROJECT["project"]["version"]
    assert re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.M).group(1) == version
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert version in headings[:2], "the release, or the one before what is 'Unreleased'"


def test_every_folder_of_modules_is_a_package_of_the_wheel():
    folders = PROJECT["tool"]["setuptools"]["package-dir"]
    there = {
        ".".join([name, *path.parent.relative_to(ROOT / folder).parts])
        for name, folder in folders.items()
        for path in (ROOT / folder).rglob("*.py")
    }
    assert there == set(PROJECT["tool"]["setuptools"]["packages"])


def test_the_readme_lists_each_extra():
    listed = (ROOT / "README.md").read_text().partition("| extra | for |")[2].partition("\n\n")[0]
    extras = PROJECT["project"]["optional-dependencies"].keys() - {"all", "dev"}
    assert extras == set(
        re.findall(r"`(\w+)`", " ".join(line.split("|")[1] for line in listed.splitlines() if "|" in line))
    )
