"""The main job from start to end, as a newcomer would type it: each command is printed before it runs.

usage: python examples/demo.py [--out FOLDER] [--data COUNTS --batch-key COLUMN --labels-key COLUMN]

Without --data it simulates an atlas of the shape in the Tabula Sapiens model card: 20,259 cells x 3,000 genes,
3 batches, 12 cell types.
"""

import argparse
import json
import shlex
import shutil
import sys
import time
from pathlib import Path

from atlasvi.engine import MinifiedStore
from atlasvi.engine.cli.commands import app, explain_errors
from atlasvi.engine.cli.describe import folder_bytes


def main() -> None:
    """Run the demo; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo"))
    parser.add_argument("--data", help="your own counts (h5ad, Zarr, SOMA, 10x)")
    parser.add_argument("--batch-key", help="obs column of the batches (with --data)")
    parser.add_argument("--labels-key", help="obs column of the cell types (with --data)")
    parser.add_argument("--cells", type=int, default=20_259)
    parser.add_argument("--genes", type=int, default=3_000)
    parser.add_argument(
        "--epochs", type=int, help="default: 40 for the simulated atlas; for yours, depends on the number of cells"
    )
    options = parser.parse_args()
    if options.data is None and (options.batch_key or options.labels_key):
        parser.error("--batch-key and --labels-key go with --data (make demo DATA=counts.h5ad BATCH=... LABELS=...)")
    with explain_errors():
        run_demo(options)


def run_demo(options: argparse.Namespace) -> None:
    """All steps, in `options.out`, which is made again each time."""
    began, out = time.perf_counter(), options.out
    if out.exists():
        if not (out / ".atlasvi-demo").exists():
            sys.exit(
                f"atlasvi: {out} exists and is not from an earlier demo: name another folder (make demo DEMO_OUT=...)."
            )
        shutil.rmtree(out)
    out.mkdir(parents=True)
    (out / ".atlasvi-demo").touch()
    data, batch, labels, epochs = options.data, options.batch_key, options.labels_key, options.epochs
    if data is None:
        data, batch, labels, epochs = str(out / "atlas.h5ad"), "batch", "cell_type", epochs or 40
        shape = f"--cells {options.cells} --genes {options.genes} --batches 3 --types 12"
        command(f"simulate {data} {shape} --seed 0")
    keys = (f" --batch-key {shlex.quote(batch)}" if batch else "") + (
        f" --labels-key {shlex.quote(labels)}" if labels else ""
    )
    store, run, mini = out / "atlas.store", out / "run", out / "atlas.mini"
    picture, markers = out / "latent.png", out / "markers.png"
    card = out / "card"
    command(f"ingest {shlex.quote(data)} --out {store}")
    command(f"train {store} --out {run}{keys}" + (f" --epochs {epochs}" if epochs else ""))
    command(f"minify {run} {store} --out {mini} --source-order")
    opened = MinifiedStore(mini)
    genes = ",".join(opened.genes[:3])
    command(f"query {mini} expression --genes {shlex.quote(genes)} --library-size 10000 --limit 3")
    command(f"embed {mini}")
    columns = "".join(f" --by {shlex.quote(quote_name(name))}" for name in (labels, batch) if name)
    command(f"query {mini} plot embedding{columns} --title 'Latent space' --out {picture}")
    if labels:
        command(f"query {mini} plot dots --labels-key {shlex.quote(labels)} --out {markers}")
    command(f"card {run} {store} --minified {mini} --out {card}")

    result = json.loads((run / "result.json").read_text())
    held_out = result["validation"]
    of_markers = f"Marker genes of each {labels}: {markers}\n" if labels else ""
    drawn = " and by ".join(name for name in (labels, batch) if name) or "nothing"
    print(
        f"\nDone in {time.perf_counter() - began:.0f} s.\n"
        f"The model of {opened.n_cells:,} cells x {len(opened.genes):,} genes is in {run}. On held-out cells its\n"
        f"reconstruction loss is {held_out['reconstruction_loss']:.1f} nats per cell, ELBO {held_out['elbo']:.1f}.\n"
        f"The counts take {folder_bytes(store) / 1e6:.1f} MB in {store}. The posterior of every cell and the model\n"
        f"take {folder_bytes(mini) / 1e6:.1f} MB in {mini}: anndata.read_zarr opens it, `atlasvi query` uses it,\n"
        f"and the counts are not needed any more.\n"
        f"The latent space, drawn by {drawn}: {picture}\n{of_markers}"
        f"The model's card, to open in a browser: {card / 'card.html'}"
    )


def command(line: str) -> None:
    """Print an atlasvi command and run it."""
    print(f"\n$ atlasvi {line}", flush=True)
    app(shlex.split(line), standalone_mode=False)


def quote_name(name: str) -> str:
    """A name as one of a list of names: in double quotes if it has a comma."""
    return f'"{name}"' if "," in name else name


if __name__ == "__main__":
    main()
