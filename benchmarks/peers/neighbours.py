"""The peers' side of benchmarks/neighbours.py: an index of latents in memory, and questions to it.

    python benchmarks/peers/neighbours.py faiss|usearch|pynndescent FOLDER CELLS

Prints the figures as JSON. Of faiss, the index that comes closest to ours in bytes: IVF with 8-bit codes, its lists for
about 1,200 cells each at ten million. usearch (HNSW) has 8-bit numbers too; pynndescent is what scanpy uses. Each is
asked with growing effort (probes, expansion, epsilon) until it finds 95% of the neighbours.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from measured_process import read_status_mb, reset_peak

K, TARGET = 50, 0.95


def share_found(found: np.ndarray, nearest: np.ndarray) -> float:
    """Mean share of the true neighbours that were found."""
    return float(np.mean([len(np.intersect1d(*pair)) / K for pair in zip(found, nearest)]))


def build_faiss(points: np.ndarray, file: Path):
    """An IVF index with 8-bit codes, and a search with a growing number of probes."""
    import faiss

    index = faiss.index_factory(points.shape[1], f"IVF{round(8 * len(points) ** 0.5 / 3)},SQ8")
    index.train(points[np.random.default_rng(0).choice(len(points), min(len(points), 250_000), replace=False)])
    index.add(points)
    faiss.write_index(index, str(file))

    def search(queries: np.ndarray, effort: int) -> np.ndarray:
        index.nprobe = effort
        return index.search(queries, K)[1]

    return search


def build_usearch(points: np.ndarray, file: Path):
    """HNSW of 8-bit numbers."""
    from usearch.index import Index

    scale = 100 / np.abs(points).max()
    index = Index(ndim=points.shape[1], metric="l2sq", dtype="i8", connectivity=16)
    index.add(np.arange(len(points)), np.rint(points * scale).astype(np.int8))
    index.save(str(file))

    def search(queries: np.ndarray, effort: int) -> np.ndarray:
        index.expansion_search = 64 * effort
        coded = np.rint(np.clip(queries * scale, -127, 127)).astype(np.int8)
        return index.search(coded, K).keys.astype(np.int64)

    return search


def build_pynndescent(points: np.ndarray, file: Path):
    """The graph that scanpy's neighbours are found with."""
    import pickle

    from pynndescent import NNDescent

    index = NNDescent(points, n_neighbors=30, random_state=0)
    index.prepare()
    file.write_bytes(pickle.dumps(index))

    def search(queries: np.ndarray, effort: int) -> np.ndarray:
        return index.query(queries, K, epsilon=0.05 * effort)[0]

    return search


def main() -> None:
    """Build, search with the least effort that reaches the recall, print."""
    peer, folder, n_cells = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    stored = np.load(folder / "qzm.npy", mmap_mode="r")
    queries = np.load(folder / "queries.npy")
    build = {"faiss": build_faiss, "usearch": build_usearch, "pynndescent": build_pynndescent}[peer]
    build(np.ascontiguousarray(stored[:5_000]), folder / f"{peer}.few")(queries[:10], 1)  # imports and compiles
    imports_mb = reset_peak()
    start, cpu = time.perf_counter(), time.process_time()
    points = np.array(stored[:n_cells])
    search = build(points, folder / peer)
    build_s, cpu_s, build_mb = (
        time.perf_counter() - start,
        time.process_time() - cpu,
        read_status_mb("VmHWM") - imports_mb,
    )
    nearest = np.load(folder / "nearest.npy")
    if n_cells < len(stored):
        squared = [((points - query) ** 2).sum(1) for query in queries[:200]]
        queries, nearest = queries[:200], np.array([np.argpartition(row, K)[:K] for row in squared])
    effort, recall = 1, 0.0
    while recall < TARGET and effort <= 512:
        found = search(queries, effort)
        start = time.perf_counter()
        found = search(queries, effort)
        query_s = time.perf_counter() - start
        recall = share_found(found, nearest)
        effort *= 2
    figures = {
        "cells": n_cells,
        "build_s": build_s,
        "cpu_s": cpu_s,
        "build_mb": build_mb,
        "bytes": (folder / peer).stat().st_size,
        "query_s": query_s * 1_000 / len(queries),
        "query_mb": read_status_mb("VmRSS") - imports_mb,
        "recall": recall,
        "effort": effort // 2,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
