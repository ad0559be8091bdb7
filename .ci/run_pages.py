"""Run what pages show, in order, in one folder: commands, Python, and the pictures that they draw.

    python .ci/run_pages.py                 does everything run? (few epochs; the tests do this)
    python .ci/run_pages.py --write         with all epochs; writes outputs and pictures into the pages

A block marked `console` has commands after `$`, and below each what it prints; a block marked `python` may have a block
marked `text` below it, for what it prints. A comment `<!-- not run: WHY -->` above a block leaves it out. Pictures are
those of docs/tutorial/: NAME.png is what a command of the page writes to NAME.png, NAME-dark.png the same with --dark;
pictures of pages in a browser are taken by Chromium (`.ci/beside playwright -- .ci/run_pages.py --write`, with its path
in CHROMIUM), or stay as they are.
"""

import argparse
import contextlib
import difflib
import functools
import http.server
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import anndata
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
PAGES = tuple(
    f"docs/{name}.md" for name in ("tutorial", "coming-from-scanpy", "coming-from-annbatch", "coming-from-census")
)
DATA = ("pbmc3k.h5ad", "pbmc3k_new.h5ad")  # of examples/, in the folder where the commands run
NAMED = ["LYZ", "MS4A1", "CD3E", "NKG7"]  # genes that pages ask for
PICTURES = ROOT / "docs" / "tutorial"
BLOCK = re.compile(r"(<!-- not run: [^>]+ -->\n)?```(console|python)\n(.*?)```\n(\n```text\n(.*?)```\n)?", re.S)
EPOCHS = re.compile(r"(--epochs |epochs=)\d+")
FEW = r"\g<1>2"
MOST_LINES = 16  # of what a command prints; of more, lines in the middle are left out
KEPT = 4, 9  # lines at the beginning and at the end
LEFT_OUT = "[...]"
Ask = Callable[[list[str]], str]


def main() -> None:
    """Run all pages; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write outputs and pictures into the pages")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.write:
            write_pages(Path(folder))
        else:
            print(f"{run_quickly(Path(folder))} commands and pieces of Python print what the pages show")


def run_quickly(folder: Path) -> int:
    """Run all pages with few epochs, in this process; returns the number of commands.

    Raises AssertionError if a page no longer shows what happens.
    """
    n_commands = 0
    prepare(folder, quick=True)
    for page in PAGES:
        written = (ROOT / page).read_text()
        found = rewrite(written, run_here, quick=True)
        for before, after in zip(list_answers(written), list_answers(found), strict=True):
            assert mask(before) == mask(after), f"{page} shows other output than there is:\n{compare(before, after)}"
            n_commands += 1
    for picture in list_pictures():
        assert (folder / picture).is_file(), f"no command wrote {picture}, which the tutorial shows"
    return n_commands


def write_pages(folder: Path) -> None:
    """Run all pages as they are, each command in a process of its own, and write what they print and draw."""
    prepare(folder, quick=False)
    for page in PAGES:
        written = (ROOT / page).read_text()
        (ROOT / page).write_text(rewrite(written, run_apart, quick=False))
        for words in list_commands(written):
            if "plot" in words:
                run_apart([*make_dark(words), "--replace", "--dark"])
        print(f"{page}: written")
    PICTURES.mkdir(exist_ok=True)
    for picture in list_pictures():
        shutil.copy(folder / picture, PICTURES)
        shutil.copy(folder / make_dark([picture])[0], PICTURES)
    photograph(folder)


def prepare(folder: Path, quick: bool) -> None:
    """The files with which the tutorial begins; commands run in this folder from now on.

    quick  a third of the cells and a fifth of the genes: what is printed differs in its numbers alone
    """
    for name in DATA:
        if quick:
            cells = anndata.read_h5ad(ROOT / "examples" / name)
            genes = (np.arange(cells.n_vars) % 5 == 0) | cells.var_names.isin(NAMED)
            cells[::3, genes].write_h5ad(folder / name)
        else:
            shutil.copy(ROOT / "examples" / name, folder)
    os.chdir(folder)


def rewrite(page: str, ask: Ask, quick: bool) -> str:
    """A page with what its blocks print now. Names of its Python blocks are shared."""
    names: dict[str, object] = {}

    def answer(found: re.Match[str]) -> str:
        why, kind, code, has_text, _ = found.groups()
        if why is not None:
            return found[0]
        if kind == "console":
            return f"```console\n{''.join(answer_console(code, ask, quick))}```\n"
        with contextlib.redirect_stdout(said := io.StringIO()):
            exec(compile(EPOCHS.sub(FEW, code) if quick else code, "page", "exec"), names)
        shown = "".join(f"{line.rstrip()}\n" for line in said.getvalue().splitlines())
        return f"```python\n{code}```\n" + (f"\n```text\n{shown}```\n" if has_text else "")

    return BLOCK.sub(answer, page)


def answer_console(block: str, ask: Ask, quick: bool) -> Iterator[str]:
    """The commands of a block, each with what it prints."""
    for line in block.splitlines():
        if line.startswith("$ "):
            said = ask(shlex.split(EPOCHS.sub(FEW, line[2:]) if quick else line[2:])).splitlines()
            if len(said) > MOST_LINES:
                said = [*said[: KEPT[0]], LEFT_OUT, *said[-KEPT[1] :]]
            yield "".join(f"{each.rstrip()}\n" for each in (line, *said))


def run_here(words: list[str]) -> str:
    """What a command prints, run in this process."""
    from atlasvi.engine.cli.commands import app

    assert words[0] == "atlasvi", words
    with contextlib.redirect_stdout(said := io.StringIO()), contextlib.redirect_stderr(said):
        app(words[1:], standalone_mode=False)
    return said.getvalue()


def run_apart(words: list[str]) -> str:
    """What a command prints, run as a user runs it."""
    assert words[0] == "atlasvi", words
    command = [sys.executable, "-m", "atlasvi.engine.cli.commands", *words[1:]]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, f"{shlex.join(words)}: {done.stdout}"
    return done.stdout


def list_commands(page: str) -> Iterator[list[str]]:
    """The commands of a page that are run."""
    for why, kind, code, *_ in BLOCK.findall(page):
        if not why and kind == "console":
            yield from (shlex.split(line[2:]) for line in code.splitlines() if line.startswith("$ "))


def list_answers(page: str) -> Iterator[str]:
    """The first line of what each command prints: what it is, whatever the model has learned."""
    for why, kind, code, *_ in BLOCK.findall(page):
        if not why and kind == "console":
            for part in re.split(r"^\$ ", code, flags=re.M)[1:]:
                command, _, said = part.partition("\n")
                yield f"$ {command}\n{said.partition(chr(10))[0]}"


def mask(text: str) -> str:
    """A text without its numbers, which differ between machines."""
    return re.sub(r"\d[\d,.]*", "0", text)


def compare(before: str, after: str) -> str:
    """What differs between two texts."""
    return "\n".join(difflib.unified_diff(before.splitlines(), after.splitlines(), "page", "now", lineterm=""))


def list_pictures() -> list[str]:
    """The pictures of the tutorial that commands draw."""
    text = "".join((ROOT / page).read_text() for page in PAGES)
    drawn = {word for page in PAGES for words in list_commands((ROOT / page).read_text()) for word in words}
    return sorted(name for name in set(re.findall(r"tutorial/([\w-]+\.png)", text)) if name in drawn)


def make_dark(words: list[str]) -> list[str]:
    """A command with another name for its picture."""
    return [word.replace(".png", "-dark.png") for word in words]


def photograph(folder: Path) -> None:
    """Pictures of the page and of the card in a browser, light and dark, if there is one."""
    if "CHROMIUM" not in os.environ:
        print("pictures of the page and of the card stay as they are: CHROMIUM names no browser")
        return
    from playwright.sync_api import sync_playwright

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            """Nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    flags = ["--no-sandbox", "--no-zygote", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=os.environ["CHROMIUM"], args=flags)
        for name, address, height in (("page", "page/index.html", 700), ("card", "card/card.html", 900)):
            for theme, ending in (("light", ""), ("dark", "-dark")):
                shown = browser.new_context(viewport={"width": 1200, "height": height}, color_scheme=theme).new_page()
                shown.goto(f"http://127.0.0.1:{server.server_port}/{address}")
                shown.wait_for_timeout(8_000)
                shown.screenshot(path=str(PICTURES / f"{name}{ending}.png"))
        browser.close()
    server.shutdown()


if __name__ == "__main__":
    main()
