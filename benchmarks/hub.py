"""Does scvi-tools open the hub folder that we write, and do we pull and open what it saves and pushes?

    python benchmarks/hub.py --peers VENV [--cells 3000] [--model DIR MINIFIED] [--json FILE]

A model is trained on drawn counts, minified and written as a hub folder; or it is one of scvi-tools with its minified
data. `scvi.hub.HubModel` in the peers' environment (with huggingface_hub) opens it, answers, saves it, and pushes it to
a server on this machine that speaks as the hub does. Exits with 1 if its latents are not ours, bit by bit, if variances
or decoded proportions differ by more than a thousandth, or if what it saved or pushed does not answer the same when we
pull it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from atlasvi.engine import SCVI, minify, open_minified, read_expression, simulate, train
from atlasvi.engine.hub.hub_folder import HubData, write_hub_folder
from atlasvi.engine.hub.transfer import pull, push

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from tests.engine.hub.local_hub import LocalHub, serving  # noqa: E402


def write_pages(folder: Path, held: HubData) -> None:
    """A README with the front matter that the hub asks for."""
    (folder / "README.md").write_text(f"---\nlicense: mit\nlibrary_name: scvi-tools\n---\n\n{held.describe()}\n")


def make_folder(work: Path, n_cells: int, theirs: list[Path] | None) -> Path:
    """The hub folder of a model trained on drawn counts, or of one of scvi-tools with its minified data."""
    if theirs:
        write_hub_folder(work / "hub", theirs[1], write_pages, run=theirs[0])
        return work / "hub"
    simulate(work / "atlas.h5ad", n_cells, 200, 3, 4, 0)
    train(work / "atlas.h5ad", work / "run", batch_key="batch", epochs=2, settings={"n_hidden": 64})
    minify(work / "run", work / "atlas.h5ad", work / "cells.mini")
    write_hub_folder(work / "hub", work / "cells.mini", write_pages)
    return work / "hub"


def ask(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Latents, and the proportions of the first 20 genes decoded at their means, of all cells of a hub folder."""
    cells = open_minified(folder / "adata.h5ad")
    decoded = np.concatenate([part for _, part in read_expression(cells, cells.run.genes[:20])])
    return SCVI.load(folder, accelerator="cpu").get_latent_representation(), decoded


def main() -> int:
    """Write, open there, pull, compare; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", type=Path, required=True, help="the peers' virtual environment")
    parser.add_argument("--cells", type=int, default=3000)
    parser.add_argument("--model", type=Path, nargs=2, metavar=("DIR", "MINIFIED"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as scratch, serving(hub := LocalHub()) as endpoint:
        work = Path(scratch)
        folder = make_folder(work, options.cells, options.model)
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        settings = {"HF_ENDPOINT": endpoint, "HF_TOKEN": hub.token, "HF_HUB_DISABLE_XET": "1", "HF_HOME": scratch}
        os.environ.update(settings)
        command = [options.peers / "bin" / "python", HERE / "peers" / "hub.py", folder, work / "saved"]
        command += [work / "theirs.npz", "lab/theirs"]
        subprocess.run([str(part) for part in command], check=True)
        theirs, cells = np.load(work / "theirs.npz"), open_minified(folder / "adata.h5ad")
        mean, variance = cells.read_latent(0, cells.n_cells)
        found["cells"] = cells.n_cells
        found["opened as"] = str(theirs["minified"])
        found["cells equal"] = theirs["cells"].tolist() == list(cells.read_names())
        found["latents equal"] = bool(np.array_equal(mean, theirs["mean"]))
        found["variance, largest relative difference"] = relative(theirs["variance"], variance)  # the square of a root
        latents, decoded = ask(folder)
        found["latents equal"] = bool(found["latents equal"] and np.array_equal(latents, mean))
        found["proportions, largest relative difference"] = relative(decoded, theirs["proportions"])
        found["saved in place, files changed"] = sorted(
            path.name for path in folder.iterdir() if path.read_bytes() != before.get(path.name)
        )
        push(folder, "hf://lab/ours", create="public")
        for name, source in (
            ("saved by them", work / "saved"),
            ("pushed by them", "hf://lab/theirs"),
            ("pushed by us", "hf://lab/ours"),
        ):
            pull(source, work / name)
            latents, again = ask(work / name)
            found[f"{name}: latents equal"] = bool(np.array_equal(latents, mean))
            found[f"{name}: proportions, largest relative difference"] = relative(again, decoded)
    for name, value in found.items():
        print(f"{name}: {value}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    differences = [value for name, value in found.items() if "difference" in name]
    equal = [value for name, value in found.items() if "equal" in name]
    return int(not (all(equal) and max(map(float, differences)) < 1e-3))


def relative(one: np.ndarray, other: np.ndarray) -> float:
    """The largest difference of two tables, relative to the second."""
    return float((np.abs(one - other) / np.maximum(np.abs(other), 1e-6)).max())


if __name__ == "__main__":
    sys.exit(main())
