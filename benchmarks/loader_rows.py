"""What benchmarks/loaders.py compares: its rows, and the process that measures each."""

import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
BUILT = {"fast": "fast.store", "small": "small.store", "annbatch": "annbatch.zarr", "soma": "soma"}


@dataclass(frozen=True)
class Row:
    """One line of the comparison.

    command      the words of the process that measures it, {names} standing for places (`Bench.places`)
    kind         epochs; ingest; order (which cells the minibatches hold); large; script (peers/plain_loaders.py)
    every_round  or in the first round only
    """

    title: str
    command: str
    kind: str = "epochs"
    every_round: bool = True

    @property
    def needs(self) -> list[str]:
        """What must have been built: keys of BUILT."""
        return [name for name in BUILT if f"{{{name}}}" in self.command]


ROWS = {
    "fast": Row("atlasvi, fast store", "ours epochs {fast} {seconds}"),
    "annbatch": Row("annbatch, chunk 256 x 32", "peer annbatch {annbatch} {seconds} 256 32"),
    "small": Row("atlasvi, small store", "ours epochs {small} {seconds}"),
    "annbatch_default": Row("annbatch, chunk 512 x 32 (its default)", "peer annbatch {annbatch} {seconds} 512 32"),
    "collection": Row("atlasvi, annbatch's collection", "ours epochs {annbatch} {seconds}"),
    "h5ad": Row("atlasvi, h5ad", "ours epochs {h5ad} {seconds}"),
    "scdataset": Row("scDataset, h5ad, block 64", "peer scdataset {h5ad} {seconds} 64"),
    "soma": Row("atlasvi, SOMA", "ours epochs {soma} {seconds}"),
    "tiledbsoma_ml": Row("tiledbsoma-ml, SOMA", "peer tiledbsoma-ml {soma} {seconds}"),
    "ingest": Row("atlasvi, fast", "ours ingest {out} fast {sources}", "ingest"),
    "ingest_annbatch": Row("annbatch", "peer annbatch-ingest {out} {sources}", "ingest"),
    "ingest_small": Row("atlasvi, small", "ours ingest {out} small {sources}", "ingest", every_round=False),
    "uncached": Row("atlasvi, fast store, uncached", "ours uncached {fast}"),
    "uncached_annbatch": Row("annbatch, chunk 256 x 32, uncached", "peer annbatch-uncached {annbatch} 256 32"),
    "order_fast": Row("atlasvi, fast store", "ours order {fast} {order}", "order", every_round=False),
    "order_annbatch": Row(
        "annbatch, chunk 256 x 32", "peer annbatch-order {annbatch} {order} 256 32", "order", every_round=False
    ),
    "order_annbatch_default": Row(
        "annbatch, chunk 512 x 32", "peer annbatch-order {annbatch} {order} 512 32", "order", every_round=False
    ),
    "order_collection": Row(
        "atlasvi, annbatch's collection", "ours order {annbatch} {order}", "order", every_round=False
    ),
    "order_h5ad": Row("atlasvi, h5ad", "ours order {h5ad} {order}", "order", every_round=False),
    "order_soma": Row("atlasvi, SOMA", "ours order {soma} {order}", "order", every_round=False),
    "annbatch_script": Row(
        "annbatch, chunk 256 x 32, by the peers' script", "script annbatch {atlas}", "script", every_round=False
    ),
    "large": Row("atlasvi, fast store, 10 times the cells", "ours epochs {out} {seconds}", "large", every_round=False),
}
SIZE_TITLES = {
    "bytes_fast": "atlasvi, fast store",
    "bytes_small": "atlasvi, small store",
    "bytes_annbatch": "annbatch's collection",
    "bytes_soma": "SOMA experiment",
}
TITLES = {name: row.title for name, row in ROWS.items()} | SIZE_TITLES


class Bench:
    """Where things are, and which process measures a row.

    atlas    folder of atlas*.h5ad, where BUILT goes; `work` a folder for what is deleted again
    peers    the peers' virtual environment
    seconds  that a process measures epochs for, at least
    warm     how processes of ours are started: see `processes.Child`
    """

    def __init__(self, atlas: Path, work: Path, peers: Path, seconds: float, warm: bool = False) -> None:
        self.warm = warm
        self.sources = sorted(atlas.glob("atlas*.h5ad"))
        self.work, self.out, self.order = work, work / "out", work / "order.npz"
        self.places = {name: str(atlas / place) for name, place in BUILT.items()}
        self.places |= {"atlas": str(atlas), "h5ad": str(self.sources[0]), "seconds": str(seconds)}
        self.places |= {"out": str(self.out), "order": str(self.order)}
        peers_python = str(peers / "bin" / "python")
        self._programs = {
            "ours": [sys.executable, str(HERE / "loader_runs.py")],
            "peer": [peers_python, str(HERE / "peers" / "loaders.py")],
            "script": [peers_python, str(HERE / "peers" / "plain_loaders.py")],
        }

    def command(self, words: str, sources: list[Path] | None = None) -> list[str]:
        """The process of a row's `command`; {sources} stands for the h5ad files, or those that are given."""
        program, *rest = words.split()
        command = list(self._programs[program])
        for word in rest:
            if word == "{sources}":
                command += [str(source) for source in sources or self.sources]
            else:
                command.append(word.format_map(self.places))
        return command
