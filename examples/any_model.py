"""Train a classifier of cell types from a cell store or any file of counts, in an ordinary PyTorch loop.

usage: python examples/any_model.py DATA LABELS       e.g. atlas.store cell_type
"""

import sys

import torch
from torch.nn.functional import cross_entropy

from atlasvi.loaders import BatchLoader


def main(data: str, labels: str) -> None:
    """Train for three epochs and print the accuracy of each."""
    loader = BatchLoader(data, batch_size=1024, seed=0, codes=[labels])
    torch.manual_seed(0)
    model = torch.nn.Linear(len(loader.data.genes), len(loader.categories[labels]))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for epoch in range(3):
        right = 0
        for batch in loader:
            guess = model(batch.to_dense().log1p())
            loss = cross_entropy(guess, batch.codes[labels])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            right += int((guess.argmax(1) == batch.codes[labels]).sum())
        print(f"epoch {epoch + 1}: {right / loader.n_cells:.0%} of {loader.n_cells:,} cells right")


if __name__ == "__main__":
    main(*sys.argv[1:])
