"""How fast and how well are the nearest cells found, in how many bytes: our index, faiss, usearch and pynndescent?

    python benchmarks/neighbours.py --work DIR [--cells 1000000 10000000] [--kinds atlas cloud onek1k]
                                    [--minified FILE.h5ad] [--peers VENV] [--json FILE]
    python benchmarks/neighbours.py --work DIR --quick

Latents are drawn (simulated_latents.py): an atlas of types and states between them, one Gaussian cloud, which is the
hardest case, and cells like real ones (--minified: scvi-tools' minified data). Asked: the 50 nearest cells of 1,000 new
cells. For each, in a process of its own: cells a second of the build (reading included), and of
its time on all cores, which a busy machine changes less, bytes a cell on disk, peak
memory above imports of the build and of the questions, seconds of the questions (the second time: warm), and the recall
against exact search. Peers get the latents as one array in memory, as their users do; ours reads a file by slices.
The peers' settings are in peers/neighbours.py; HNSW (usearch) and pynndescent are built of at most --graph-cells cells.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
from measured_process import read_status_mb, reset_peak
from processes import RunError, run_json
from simulated_latents import SimulatedLatents, read_real

HERE = Path(__file__).resolve().parent
K, N_QUERIES = 50, 1_000


def write_latents(kind: str, n_cells: int, real: tuple[np.ndarray, np.ndarray] | None, folder: Path) -> None:
    """Write qzm.npy of all cells, the queries, and their true neighbours by exact search."""
    from atlasvi.engine.neighbours.exact_search import ExactSearch

    folder.mkdir(parents=True)
    n_latent = 20 if real is None else real[0].shape[1]
    source = SimulatedLatents(kind, n_cells, n_latent, real=real)  # type: ignore[arg-type]
    queries = source.draw(N_QUERIES, (99, 0))[0]
    search, at = ExactSearch(queries, K), 0
    qzm = np.lib.format.open_memmap(folder / "qzm.npy", "w+", np.float32, (n_cells, n_latent))
    seconds = 0.0
    for part, _ in source.read_blocks():
        qzm[at : at + len(part)] = part
        start = time.perf_counter()
        search.add(part, np.arange(at, at + len(part)))
        seconds += time.perf_counter() - start
        at += len(part)
    qzm.flush()
    np.save(folder / "queries.npy", queries)
    np.save(folder / "nearest.npy", search.finish()[1])
    (folder / "exact.json").write_text(json.dumps({"query_s": seconds, "recall": 1.0}))


class StoredLatents:
    """The latents of a file, read by slices, as those of a minified store are."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "atlas")
        self._file = folder / "qzm.npy"
        self.n_cells, self.n_latent = np.load(self._file, mmap_mode="r").shape

    def read_latent(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """qzm of cells [start, stop), twice. Read, not mapped: pages of a map would count as memory."""
        row = 4 * self.n_latent
        offset = self._file.stat().st_size - self.n_cells * row + start * row
        values = np.fromfile(self._file, np.float32, (stop - start) * self.n_latent, offset=offset)
        qzm = values.reshape(-1, self.n_latent)
        return qzm, qzm**2


def measure_ours(folder: Path) -> dict[str, float]:
    """Build and search our index, first of few cells, so that what numba compiles is not timed."""
    from atlasvi.engine.neighbours.build_index import build_index
    from atlasvi.engine.neighbours.index_file import IndexFile, name_index
    from atlasvi.engine.neighbours.search_index import choose_probing, search_index
    from atlasvi.engine.queries.neighbours import RECALL

    store, few = StoredLatents(folder), StoredLatents(folder)
    few.path, few.n_cells = str(folder / "few"), min(store.n_cells, 20_000)
    build_index(few)
    imports_mb = reset_peak()
    start, cpu = time.perf_counter(), time.process_time()
    report = build_index(store)
    build_s, cpu_s, build_mb = (
        time.perf_counter() - start,
        time.process_time() - cpu,
        read_status_mb("VmHWM") - imports_mb,
    )
    queries = np.load(folder / "queries.npy")
    reset_peak()
    index = IndexFile(name_index(store.path), store)
    n_lists = choose_probing(index, K, RECALL).n_lists
    times = []
    for _ in range(3):
        start = time.perf_counter()
        found = search_index(index, queries, K, n_lists=n_lists)[1]
        times.append(time.perf_counter() - start)
    return {
        "cells": store.n_cells,
        "build_s": build_s,
        "cpu_s": cpu_s,
        "build_mb": build_mb,
        "bytes": report.n_bytes,
        "query_s": min(times[1:]),
        "query_mb": read_status_mb("VmHWM") - imports_mb,
        "recall": share_found(found, np.load(folder / "nearest.npy")),
        "lists": n_lists,
    }


def share_found(found: np.ndarray, nearest: np.ndarray) -> float:
    """Mean share of the true neighbours of a query, int64 [queries, K], that were found."""
    return float(np.mean([len(np.intersect1d(*pair)) / len(pair[1]) for pair in zip(found, nearest)]))


def run(command: list[object], quick: bool) -> dict[str, float]:
    """The figures that a process prints as JSON in its last line."""
    try:
        return run_json([str(part) for part in command], warm=quick)
    except RunError as error:
        raise SystemExit(f"{command}: {error}") from None


def main() -> int:
    """Measure, print the table, return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="a folder with 100 bytes of space for each cell")
    parser.add_argument("--cells", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--kinds", nargs="+", default=["atlas", "cloud"])
    parser.add_argument("--minified", type=Path, help="minified data of scvi-tools, for cells like onek1k's")
    parser.add_argument("--peers", type=Path, help="an environment with faiss-cpu, usearch and pynndescent")
    parser.add_argument("--only", nargs="+", default=["faiss", "usearch", "pynndescent"], help="of the peers")
    parser.add_argument("--graph-cells", type=int, default=200_000)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="20,000 cells, to see that it runs")
    parser.add_argument("--ours", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.ours:
        print(json.dumps(measure_ours(options.ours)))
        return 0
    if options.quick:
        options.cells, options.kinds = [20_000], ["atlas", "cloud"]
    real = None if options.minified is None else read_real(options.minified)
    rows = []
    for kind in options.kinds + ["onek1k"] * (real is not None):
        for n_cells in options.cells:
            folder = options.work / f"{kind}-{n_cells}"
            write_latents(kind, n_cells, real if kind == "onek1k" else None, folder)
            commands = {"atlasvi": [sys.executable, __file__, "--work", options.work, "--ours", folder]}
            for peer in options.only if options.peers else ():
                most = n_cells if peer == "faiss" else options.graph_cells
                script = [options.peers / "bin" / "python", HERE / "peers" / "neighbours.py", peer, folder]
                commands[peer] = [*script, min(n_cells, most)]
            for name, command in commands.items():
                rows.append({"kind": kind, "by": name, **run(command, options.quick)})
                print(rows[-1], file=sys.stderr, flush=True)
            exact = json.loads((folder / "exact.json").read_text())
            rows.append({"kind": kind, "by": "exact", "cells": n_cells, **exact})
            for file in sorted(folder.rglob("*"), reverse=True):
                file.unlink() if file.is_file() else file.rmdir()
            folder.rmdir()
    titles = "latents", "by", "cells", "cells/s", "cells/core-second", "bytes a cell", "build MB"
    print(f"| {' | '.join(titles)} | {N_QUERIES:,} queries s | query MB | recall |")
    print("| --- " * 10 + "|")
    for row in rows:
        n = row["cells"]
        figures = [
            f"{n / row['build_s']:,.0f}" if "build_s" in row else "",
            f"{n / row['cpu_s']:,.0f}" if "cpu_s" in row else "",
            f"{row['bytes'] / n:.1f}" if "bytes" in row else "",
            f"{row['build_mb']:,.0f}" if "build_mb" in row else "",
            f"{row['query_s']:.2f}",
            f"{row['query_mb']:,.0f}" if "query_mb" in row else "",
            f"{row['recall']:.3f}",
        ]
        print(f"| {row['kind']} | {row['by']} | {n:,} | {' | '.join(figures)} |")
    if options.json:
        options.json.write_text(json.dumps({"rows": rows}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
