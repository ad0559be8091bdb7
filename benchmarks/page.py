"""Is the whole atlas on the page in two seconds, and does it move at thirty frames a second?

    python benchmarks/page.py --work /a/disk/with/1/GB [--cells 10000000] [--store atlas.mini]

Points of an atlas (simulated clouds, or the embedding of a minified store) become tiles in a process of their own,
which is timed and whose memory is watched; then the page, as a static folder, is opened in a headless Chromium that
computes WebGL without a graphics card, and dragged about. Needs playwright and a Chromium (its path in CHROMIUM, or
installed); without them, the tiles alone are measured.

First picture: from the start of the navigation until points are on the canvas. A frame counts when all its points are
drawn: after each one the script waits for the graphics (readPixels). --quick: few cells.
"""

import argparse
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from measured_process import read_status_mb, reset_peak
from memory import processor_name
from processes import run_json

from atlasvi.engine.minified.minified_store import MinifiedStore
from atlasvi.engine.model.covariates import Setup
from atlasvi.engine.service.static_page import write_static_page
from atlasvi.engine.service.tiles import Tiles, build_tiles

N_TYPES, SIZE = 30, (1280, 800)
ARGUMENTS = ["--no-sandbox", "--no-zygote", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
NOTICE_FIRST = """new MutationObserver((_, observer) => {
  if (Number(document.getElementById("canvas")?.dataset.points)) {
    window.firstPicture = performance.now();
    observer.disconnect();
  }
}).observe(document, { attributes: true, subtree: true, attributeFilter: ["data-points"] })"""
DRAG = """seconds => new Promise(resolve => {
  const stage = document.getElementById("stage");
  const canvas = document.getElementById("canvas");
  const gl = canvas.getContext("webgl2");
  const pixel = new Uint8Array(4);
  const begun = performance.now();
  const times = [];
  let last = canvas.dataset.frames;
  let [drawn, n] = [0, 0];
  const step = (now) => {
    gl.readPixels(0, 0, 1, 1, gl.RGBA, gl.UNSIGNED_BYTE, pixel);
    if (canvas.dataset.frames !== last) {
      last = canvas.dataset.frames;
      times.push(performance.now());
      drawn += Number(canvas.dataset.points);
      n += 1;
    }
    const angle = (now - begun) / 400;
    const place = { clientX: 500 + 150 * Math.cos(angle), clientY: 400 + 120 * Math.sin(angle) };
    stage.dispatchEvent(new PointerEvent("pointermove", { pointerId: 1, ...place }));
    if (now - begun < 1000 * seconds) return requestAnimationFrame(step);
    const gaps = times.slice(1).map((time, k) => time - times[k]).sort((a, b) => a - b);
    resolve({ frames: n / seconds, points: drawn / n, slow_ms: gaps[Math.floor(0.95 * gaps.length)] });
  };
  requestAnimationFrame(step);
})"""


class SimulatedAtlas:
    """Coordinates and types of cells, in clouds of unequal size; read as a minified store's are."""

    obs_columns = ("type",)
    setup = Setup()

    def __init__(self, folder: Path, n_cells: int) -> None:
        self.path, self.n_cells = str(folder / f"simulated {n_cells}"), n_cells
        random = np.random.default_rng(0)
        self._centres = random.normal(size=(N_TYPES, 2)) * 12
        self._edges = np.cumsum(1 / np.arange(1, N_TYPES + 1)) / (1 / np.arange(1, N_TYPES + 1)).sum()

    def read_embedding(self, rows: slice) -> np.ndarray:
        """float32 [cells, 2]."""
        types = self._draw_types(rows)
        noise = np.stack([self._draw(rows, seed) for seed in (1, 2)], 1)
        radius, angle = np.sqrt(-2 * np.log(1 - noise[:, :1])), 2 * np.pi * noise[:, 1:]
        return (self._centres[types] + radius * np.concatenate([np.cos(angle), np.sin(angle)], 1)).astype(np.float32)

    def read_column(self, name: str, start: int = 0, stop: int | None = None) -> pd.Series:
        """The types of cells."""
        types = self._draw_types(slice(start, self.n_cells if stop is None else stop))
        return pd.Series(pd.Categorical.from_codes(types, [f"type {k:02}" for k in range(N_TYPES)]))

    def _draw_types(self, rows: slice) -> np.ndarray:
        return np.searchsorted(self._edges, self._draw(rows, 0)).clip(max=N_TYPES - 1)

    def _draw(self, rows: slice, seed: int) -> np.ndarray:
        """A number in [0, 1) for each cell, the same in whatever slices they are read."""
        cells = np.arange(rows.start, rows.stop, dtype=np.uint64) + np.uint64((seed + 1) << 40)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
            cells = (cells ^ (cells >> np.uint64(shift))) * np.uint64(factor)
        return (cells >> np.uint64(11)) / 2.0**53


def main() -> int:
    """Measure, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, help="where the atlas is written (default: a temporary folder)")
    parser.add_argument("--cells", type=int, default=10_000_000)
    parser.add_argument("--store", help="a minified store with an embedding, instead of simulated cells")
    parser.add_argument("--seconds", type=float, default=5, help="how long the page is dragged about")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--build", type=Path, help=argparse.SUPPRESS)  # in a process of its own
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.cells, arguments.seconds = 200_000, 1
    if arguments.build is not None:
        print(json.dumps(build(arguments)))
        return 0
    with tempfile.TemporaryDirectory(dir=arguments.work) as folder:
        report = measure(arguments, Path(folder))
    print_report(report)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1))
    return 0


def open_atlas(arguments: argparse.Namespace, folder: Path) -> Any:
    """What is shown: a store, or simulated cells."""
    return SimulatedAtlas(folder, arguments.cells) if arguments.store is None else MinifiedStore(arguments.store)


def build(arguments: argparse.Namespace) -> dict[str, float]:
    """Build the tiles: seconds, after compiled code is there."""
    atlas = open_atlas(arguments, arguments.build)
    build_tiles(SimulatedAtlas(arguments.build, 1_000), arguments.build / "few.tiles")
    imports, begun = reset_peak(), time.perf_counter()
    build_tiles(atlas, arguments.build / "atlas.tiles")
    seconds = time.perf_counter() - begun
    return {"build_s": seconds, "imports_mb": imports, "peak_mb": read_status_mb("VmHWM")}


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All figures."""
    command = [sys.executable, __file__, "--build", str(folder), "--cells", str(arguments.cells)]
    command += ["--store", arguments.store] if arguments.store else []
    built = run_json(command, watch_memory=True, warm=arguments.quick)
    atlas = open_atlas(arguments, folder)
    tiles = Tiles(folder / "atlas.tiles", atlas)
    begun = time.perf_counter()
    write_static_page(atlas, tiles, folder / "page", list(atlas.obs_columns)[:1], names=False)
    written = {
        "static_s": time.perf_counter() - begun,
        "tiles_mb": sum(file.stat().st_size for file in tiles.folder.rglob("*") if file.is_file()) / 1e6,
    }
    return {
        "machine": f"{processor_name()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "date": date.today().isoformat(),
        "cells": atlas.n_cells,
        "tiles": {**built, **written, "n_tiles": tiles.n_tiles},
        "page": measure_page(folder / "page", arguments.seconds),
    }


@contextmanager
def hosting(folder: Path) -> Iterator[str]:
    """The address of a plain web server of a folder."""
    command = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", str(folder)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert server.stdout is not None
    try:
        yield f"http://127.0.0.1:{server.stdout.readline().split(' port ')[1].split()[0]}/"
    finally:
        server.kill()
        server.wait()


def measure_page(folder: Path, seconds: float) -> dict[str, Any] | None:
    """Milliseconds until there is a picture, and the whole; frames a second, wide and near. None without a browser."""
    if importlib.util.find_spec("playwright") is None:
        return None
    from playwright.sync_api import sync_playwright

    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    with sync_playwright() as running, hosting(folder) as address:
        path = path or running.chromium.executable_path
        if not Path(path).is_file():
            return None
        browser = running.chromium.launch(executable_path=path, args=ARGUMENTS)
        page = browser.new_page(viewport={"width": SIZE[0], "height": SIZE[1]})
        page.set_default_timeout(600_000)
        page.add_init_script(NOTICE_FIRST)
        page.goto(address)
        page.wait_for_selector("canvas[data-complete=true]")
        found = {
            "browser": browser.version,
            "renderer": page.evaluate(
                "(() => { const gl = document.getElementById('canvas').getContext('webgl2'); const info = "
                "gl.getExtension('WEBGL_debug_renderer_info'); "
                "return info ? gl.getParameter(info.UNMASKED_RENDERER_WEBGL) : gl.getParameter(gl.RENDERER) })()"
            ),
            "first_ms": page.evaluate("window.firstPicture"),
            "whole_ms": page.evaluate("performance.now()"),
            "whole_points": int(page.get_attribute("canvas", "data-points")),
        }
        for name, zooms in (("whole", 0), ("near", 6)):
            for _ in range(zooms):
                page.click("#zoom-in")
            page.wait_for_selector("canvas[data-complete=true]")
            page.mouse.move(500, 400)
            page.mouse.down()
            page.evaluate(DRAG, max(seconds, 1))  # how many points a frame may have is found meanwhile
            found[name] = page.evaluate(DRAG, seconds)
            page.mouse.up()
        browser.close()
    return found


def print_report(report: dict[str, Any]) -> None:
    """The tables."""
    tiles, page = report["tiles"], report["page"]
    print(f"{report['cells']:,} cells; {report['machine']}; {report['date']}\n")
    print("| tiles | |\n| --- | ---: |")
    print(f"| built, s | {tiles['build_s']:.1f} |")
    print(f"| memory above the imports, MB | {tiles['peak_mb'] - tiles['imports_mb']:.0f} |")
    print(f"| on disk, MB ({tiles['n_tiles']} tiles) | {tiles['tiles_mb']:.0f} |")
    print(f"| written as a static folder, s | {tiles['static_s']:.1f} |\n")
    if page is None:
        print("The page was not opened: there is no playwright, or no Chromium (name one in CHROMIUM).")
        return
    print(f"Chromium {page['browser']}, {page['renderer']}, {SIZE[0]} x {SIZE[1]}\n")
    print("| page | |\n| --- | ---: |")
    print(f"| first picture, s | {page['first_ms'] / 1000:.2f} |")
    print(f"| whole picture, s ({page['whole_points']:,} points) | {page['whole_ms'] / 1000:.2f} |")
    for name, said in (("whole", "the whole dragged"), ("near", "zoomed in 11 times, dragged")):
        found = page[name]
        slow = f"95 of 100 within {found['slow_ms']:.0f} ms" if found["slow_ms"] else "too few to tell"
        print(f"| {said}, frames/s (points of a frame; {slow}) | {found['frames']:.0f} ({found['points']:,.0f}) |")


if __name__ == "__main__":
    sys.exit(main())
