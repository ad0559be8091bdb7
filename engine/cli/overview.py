"""What `atlasvi` alone shows: the way from counts to answers, one example a step."""

from collections.abc import Iterator

WAY = (
    ("See what a file holds", "atlasvi info lung.h5ad"),
    ("Write files of counts as one store", "atlasvi ingest lung.h5ad blood.h5ad --out atlas.store"),
    ("Ask how long training will take", "atlasvi train atlas.store --out run --batch-key donor --dry-run"),
    ("Train the model", "atlasvi train atlas.store --out run --batch-key donor"),
    ("See how it went", "atlasvi plot run --out losses.png"),
    ("Keep the posterior, drop the counts", "atlasvi minify run atlas.store --out atlas.mini"),
    ("See what can be asked", "atlasvi query atlas.mini"),
    ("Ask", "atlasvi query atlas.mini markers --labels-key cell_type --top 20 --out markers.csv"),
    ("Place the cells in a picture", "atlasvi embed atlas.mini"),
    ("Look at them, and ask, in a browser", "atlasvi serve atlas.mini"),
    ("Show how good the model is: its card", "atlasvi card run atlas.store --labels-key cell_type --out card"),
)
"""Each step and an example of its command."""


def show_way(version: str) -> Iterator[str]:
    """Lines for somebody who typed `atlasvi` and no command."""
    yield f"atlasvi {version}: train scVI on atlases that do not fit in memory; keep the posterior, drop the counts."
    yield ""
    yield "The way from counts to answers:"
    for number, (step, example) in enumerate(WAY, 1):
        yield f"  {number}. {step}"
        yield f"       {example}"
    yield ""
    yield "Without counts of your own: atlasvi simulate lung.h5ad"
    yield "All commands: atlasvi --help. The options of one: atlasvi COMMAND --help"
    yield "Completion in your shell: atlasvi --install-completion"
