"""One measured training of ours: python training_runs.py STORE BATCH_SIZE EPOCHS -> a line of JSON.

Trains from the cell store to a temporary run directory, model-card settings; the first epoch warms up. Says the cells a
second of each further epoch, all of it counted: reading, step, optimizer; and the peak memory of the process.
"""

import json
import resource
import statistics
import sys
import tempfile
from pathlib import Path

from atlasvi.engine import train


def main(store: str, batch_size: str, epochs: str) -> None:
    """Train, and say how fast."""
    settings = {"validation_fraction": 0.0, "early_stopping": False, "keep": "last", "evaluation_cells": 1}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        train(
            store,
            out,
            batch_key="batch",
            epochs=int(epochs),
            batch_size=int(batch_size),
            device="cpu",
            settings=settings,
        )
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    rates = [line["cells_per_s"] for line in lines if line["kind"] == "epoch"][1:]
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    print(json.dumps({"cells_per_s": statistics.median(rates), "epochs": rates, "peak_mb": peak_mb}))


if __name__ == "__main__":
    main(*sys.argv[1:])
