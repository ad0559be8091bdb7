"""From counts on disk to a small file that answers questions without them, in a dozen lines of Python.

usage: python examples/quickstart.py [FOLDER]
"""

import sys
from pathlib import Path

from atlasvi.engine import MinifiedStore, choose_cells, ingest, minify, read_expression, simulate, train


def main(folder: Path) -> None:
    """Simulate a small atlas in `folder`, train on it, minify it, and read two genes in one cell type."""
    folder.mkdir(parents=True, exist_ok=True)
    simulate(folder / "atlas.h5ad", n_cells=2_000, n_genes=300, n_batches=2, n_types=4, seed=0)
    ingest([folder / "atlas.h5ad"], folder / "atlas.store")
    run = train(folder / "atlas.store", folder / "run", batch_key="batch", epochs=20, seed=0)
    print("held-out ELBO, nats per cell:", run.result["validation"]["elbo"])
    minify(run, folder / "atlas.store", folder / "atlas.mini", source_order=True)

    mini = MinifiedStore(folder / "atlas.mini")
    cells = choose_cells(mini, where=["cell_type=type_00"])
    for names, values in read_expression(mini, genes=list(mini.genes[:2]), cells=cells, library_size=10_000):
        print(f"{len(names)} cells, mean expression of two genes: {values.mean(axis=0)}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
