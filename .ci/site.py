"""Build the documentation as a site in build/site: the pages of the repository, and a reference from the docstrings.

Started by `make docs`. The pages are copied as they lie in the repository, so that their links to each other hold in
both places; mkdocs stops at a link that leads nowhere (--strict). Reference pages are made here: of every command from
its options, of every public name by mkdocstrings. Notebooks become pages, with the outputs that they hold; of a picture
for light and for dark pages each theme shows its own.
"""

import base64
import importlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.main import get_command

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "build" / "pages"
COPIED = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "docs", "examples", "benchmarks")
PACKAGES = ("loaders", "kernels", "engine")
PICTURE = re.compile(
    r'<picture>\n<source media="\(prefers-color-scheme: dark\)" srcset="(.+)">\n<img alt="(.+)" src="(.+)">\n</picture>'
)
TO_NOTEBOOK = re.compile(r"(\]\([^)]*)\.ipynb\b")


def copy_pages() -> None:
    """The pages and what they link to, without what mkdocs would take for pages of its own."""
    shutil.rmtree(PAGES, ignore_errors=True)
    PAGES.mkdir(parents=True)
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc", ".ipynb_checkpoints")
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, PAGES / name, ignore=ignored)
        elif (ROOT / name).is_file():
            shutil.copy(ROOT / name, PAGES / name)
    for page in PAGES.rglob("*.md"):
        text = PICTURE.sub(r"![\2](\3#only-light)\n![\2](\1#only-dark)", page.read_text())
        page.write_text(TO_NOTEBOOK.sub(r"\1.md", text))
    for notebook in PAGES.rglob("*.ipynb"):
        notebook.with_suffix(".md").write_text(
            write_notebook(json.loads(notebook.read_text()), notebook.with_suffix(""))
        )


def write_notebook(notebook: dict[str, Any], pictures: Path) -> str:
    """A notebook as a page: its text, its code, and what the code printed and drew, with the pictures in a folder."""
    pictures.mkdir()
    parts = []
    for number, cell in enumerate(notebook["cells"]):
        source = "".join(cell["source"])
        if cell["cell_type"] != "code":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for at, output in enumerate(cell["outputs"]):
            data = output.get("data", {"text/plain": output.get("text", "")})
            if "image/png" in data:
                picture = pictures / f"{number}-{at}.png"
                picture.write_bytes(base64.b64decode(data["image/png"]))
                parts.append(f"![What the code above draws]({pictures.name}/{picture.name})")
            elif said := "".join(data["text/plain"]).strip("\n"):
                parts.append(f"```text\n{said}\n```")
    return "\n\n".join(parts) + "\n"


def list_public(package: str) -> Iterator[str]:
    """The public names of a package, with the modules that hold them, in the order of its table of contents."""
    module = importlib.import_module(f"atlasvi.{package}")
    places = getattr(module, "_PLACES", None)
    for name in places or module.__all__:
        held = getattr(module, name)
        where = places[name] if places else getattr(held, "__module__", module.__name__)
        if callable(held) and getattr(held, "__name__", None) == name:  # not another name of something, or a type alias
            yield f"{where}.{name}"


def write_reference(package: str) -> str:
    """The reference page of a package."""
    parts = [f"# atlasvi.{package}\n\nWhat `atlasvi.{package}` promises; all else may change.\n"]
    parts += [f"::: {name}\n" for name in list_public(package)]
    return "\n".join(parts)


def write_commands() -> str:
    """The reference page of the command line."""
    from atlasvi.engine.cli.commands import app

    parts = ["# Commands\n\nEvery command and its options, as `atlasvi COMMAND --help` shows them.\n"]
    parts += describe_command(get_command(app), "atlasvi", 2)
    return "\n".join(parts)


def describe_command(command: Any, name: str, level: int) -> Iterator[str]:
    """A section for each command of a group, and of the groups in it."""
    for word, each in sorted(getattr(command, "commands", {}).items()):
        path = f"{name} {word}"
        arguments = [param for param in each.params if param.param_type_name == "argument"]
        usage = " ".join([path, "[OPTIONS]", *(param.metavar or param.name.upper() for param in arguments)])
        yield f"{'#' * level} {path}\n\n{each.help or ''}\n\n    {usage}\n"
        rows = [describe_parameter(param) for param in each.params if not getattr(param, "hidden", False)]
        if rows:
            yield "| | | default |\n| --- | --- | --- |\n" + "\n".join(rows) + "\n"
        yield from describe_command(each, path, level + 1)


def describe_parameter(param: Any) -> str:
    """A row of a table."""
    names = (
        ", ".join(f"`{opt}`" for opt in param.opts)
        if param.param_type_name == "option"
        else f"`{param.metavar or param.name.upper()}`"
    )
    shown = "" if param.default in (None, False, ()) or callable(param.default) else f"`{param.default}`"
    default = "required" if param.required else shown
    return f"| {names} | {(getattr(param, 'help', '') or '').replace('|', chr(92) + '|')} | {default} |"


def main() -> None:
    """Copy, write, build."""
    copy_pages()
    reference = PAGES / "reference"
    reference.mkdir()
    for package in PACKAGES:
        (reference / f"{package}.md").write_text(write_reference(package))
    (reference / "commands.md").write_text(write_commands())
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--clean", *sys.argv[1:]]
    if (status := subprocess.run(command, cwd=ROOT).returncode) != 0:
        sys.exit(status)
    print(f"docs: {sum(1 for _ in (ROOT / 'build' / 'site').rglob('*.html'))} pages in build/site, without a warning.")


if __name__ == "__main__":
    main()
