"""Many comparisons of one group of cells with a mixture of others, from draws that all comparisons share.

Each group is compared with draws of its own. What it is compared with, usually all other cells, is a mixture: each
label takes part in proportion to its number of cells. The draws of all mixtures come from one pool, which holds as many
draws of a label as the mixture that needs most of it. So a draw is decoded once, and a comparison of 30 labels costs 31
decodings of `n_samples_overall` draws, not 60, and one pass over the cells.

The draws of a comparison have the distribution that scvi-tools' have: cells chosen uniformly from either group. Only
the numbers of draws of a label in a mixture vary less (systematic sampling), and comparisons are not independent of
each other.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from atlasvi.engine.model.vae import VAE
from atlasvi.engine.queries.differential import Comparison
from atlasvi.engine.queries.draw_comparison import Test, choose_pseudocounts, compare_draws
from atlasvi.engine.queries.expression import Drawn, draw_at_once
from atlasvi.engine.queries.labels import draw_members
from atlasvi.engine.queries.question_cells import BATCH_SIZE, QuestionCells

ROUND_BYTES = 2**27  # of hidden states of the groups that are compared in one round
BLOCK_ELEMENTS = 2**24  # draws x genes that are decoded at a time
Seen = Callable[[Comparison], tuple[np.ndarray, np.ndarray] | None]
Report = Callable[[str, int, int], None]


@dataclass
class Hidden:
    """Draws on their way through the decoder: hidden float32 [draws, hidden], normaliser float32 [draws]."""

    hidden: Tensor
    normaliser: Tensor

    def decode(self, model: VAE, genes: slice) -> np.ndarray:
        """Proportions float32 [genes, draws]."""
        return model.some_proportions(self.hidden, self.normaliser, genes).cpu().numpy()


def mix_labels(sizes: np.ndarray, chosen: np.ndarray, n: int, start: float) -> np.ndarray:
    """int64 [labels]: how many of n draws are of each label, by systematic sampling in proportion to their sizes.

    chosen  bool [labels]: the labels of the mixture; start: a random number from 0 to 1
    The expected numbers are n * size / total; each number is one of the two integers next to that.
    """
    edges = np.cumsum(np.where(chosen, sizes, 0).astype(np.float64))
    ends = np.ceil(edges / edges[-1] * n - start).clip(0, n)
    ends[edges == edges[-1]] = n  # n - start is rounded to n - 1 if start is next to 1
    return np.diff(ends.astype(np.int64), prepend=0)


@torch.inference_mode()
def compare_shared(
    model: VAE,
    cells: QuestionCells,
    generator: Generator,
    test: Test,
    labels: np.ndarray,
    sizes: np.ndarray,
    comparisons: Sequence[Comparison],
    find_hardly_seen: Seen,
    progress: Report = lambda stage, done, total: None,
) -> Iterator[tuple[Comparison, dict[str, np.ndarray]]]:
    """Each comparison with the columns of its table (see `compare_draws`), from draws that the comparisons share.

    test         with a delta; batches to decode as: those of batchid1 for both groups
    labels       unsigned integers [cells]; sizes int64 [labels]: how many cells each label has
    comparisons  the first group is one label with cells, the second any others with cells
    find_hardly_seen  as `compare_draws` needs it, for a comparison
    Memory is that of a round of comparisons (`ROUND_BYTES`) and of a block of genes (`BLOCK_ELEMENTS`).
    """
    batches: Sequence[int | None] = [None] if test.use_observed_batches else list(test.batchid1 or ())
    n = max(test.n_samples_overall // len(batches), 2)  # draws decoded as each batch
    starts = torch.rand(len(comparisons), len(batches), generator=generator, device=generator.device).tolist()
    pooled = np.zeros(len(sizes), np.int64)
    for comparison, here in zip(comparisons, starts):
        for start in here:
            np.maximum(pooled, mix_labels(sizes, comparison.second, n, start), out=pooled)
    pool: Hidden | None = None
    n_draws = n * len(batches)
    size = max(ROUND_BYTES // (4 * n_draws * model.settings.n_hidden), 1)
    for at in range(0, len(comparisons), size):
        some = comparisons[at : at + size]
        own = [(int(np.flatnonzero(each.first)[0]), n) for each in some]
        wanted = own if pool is not None else [*own, *enumerate(pooled.tolist())]
        progress("drawing", at, len(comparisons))
        chosen = [draw_members(labels, sizes, wanted, generator) for _ in batches]
        # one population after the other, and within each one batch after the other
        indices = np.concatenate([each[k] for k in range(len(wanted)) for each in chosen])
        drawn = draw_at_once(model, cells, generator, indices)
        as_batch = np.concatenate([np.repeat(np.arange(len(batches)), count) for _, count in wanted])
        hidden = _hide(model, drawn, as_batch, batches)
        end = len(some) * n_draws
        groups = Hidden(hidden.hidden[:end], hidden.normaliser[:end])
        if pool is None:
            pool = Hidden(hidden.hidden[end:].clone(), hidden.normaliser[end:].clone())
        mixtures = [
            _choose_pooled(sizes, each.second, n, starts[at + k], pooled, generator) for k, each in enumerate(some)
        ]
        seen = [find_hardly_seen(each) for each in some]

        def report(done: int, at: int = at, some: Sequence[Comparison] = some) -> None:
            progress(
                "comparing", at * model.settings.n_genes + done * len(some), len(comparisons) * model.settings.n_genes
            )

        yield from zip(some, _compare_round(model, generator, test, groups, pool, mixtures, seen, report))


def _choose_pooled(
    sizes: np.ndarray, second: np.ndarray, n: int, starts: Sequence[float], pooled: np.ndarray, generator: Generator
) -> np.ndarray:
    """int64 [batches * n]: the draws of the pool that make up a mixture, in a random order within each batch."""
    before = np.cumsum(pooled) - pooled
    found = []
    for batch, start in enumerate(starts):
        counts = mix_labels(sizes, second, n, start)
        within = np.arange(n) - np.repeat(np.cumsum(counts) - counts, counts)
        here = len(starts) * np.repeat(before, counts) + batch * np.repeat(pooled, counts) + within
        found.append(here[torch.randperm(n, generator=generator, device=generator.device).cpu().numpy()])
    return np.concatenate(found)


def _hide(model: VAE, drawn: Drawn, as_batch: np.ndarray, batches: Sequence[int | None]) -> Hidden:
    """The hidden states of all draws; as_batch int [draws]: which of `batches` each is decoded as."""
    device = model.encoder.mean.weight.device
    hidden = torch.empty(len(drawn), model.settings.n_hidden, dtype=model.dtype, device=device)
    normaliser = torch.empty(len(drawn), dtype=model.dtype, device=device)
    for number, batch in enumerate(batches):
        rows = torch.from_numpy(np.flatnonzero(as_batch == number))
        for here in rows.split(BATCH_SIZE):
            part = drawn.take(here)
            codes = {name: values.to(device) for name, values in part.codes.items()}
            states = model.hide(part.z.to(device), codes, transform_batch=batch)
            hidden[here.to(device)], normaliser[here.to(device)] = states, model.normaliser(states)
    return Hidden(hidden, normaliser)


def _compare_round(
    model: VAE,
    generator: Generator,
    test: Test,
    groups: Hidden,
    pool: Hidden,
    mixtures: Sequence[np.ndarray],
    seen: Sequence[tuple[np.ndarray, np.ndarray] | None],
    report: Callable[[int], None],
) -> list[dict[str, Any]]:
    """The columns of the table of each comparison of a round, computed for one block of genes after the other."""
    n_genes, n_draws = model.settings.n_genes, len(mixtures[0])
    size = max(BLOCK_ELEMENTS // (len(groups.hidden) + len(pool.hidden)), 1)
    blocks = [slice(at, min(at + size, n_genes)) for at in range(0, n_genes, size)]
    own = [slice(k * n_draws, (k + 1) * n_draws) for k in range(len(mixtures))]
    tests = [test] * len(mixtures)
    if test.mode == "change" and test.pseudocounts is None:
        largest = np.empty((len(mixtures), 2, n_genes), np.float32)
        for block in blocks:
            proportions, pooled = groups.decode(model, block), pool.decode(model, block)
            for found, here, mixture in zip(largest, own, mixtures):
                found[0, block], found[1, block] = proportions[:, here].max(1), pooled[:, mixture].max(1)
        for k, (found, unseen) in enumerate(zip(largest, seen)):
            assert unseen is not None
            tests[k] = replace(test, pseudocounts=choose_pseudocounts(found[0], found[1], unseen[0], unseen[1]))
    as_paired = np.full(n_draws, np.nan)  # draws are paired by batch already
    parts: list[list[dict[str, Any]]] = []
    with ThreadPoolExecutor(max(torch.get_num_threads(), 1)) as threads:
        for block in blocks:
            proportions, pooled = groups.decode(model, block), pool.decode(model, block)

            def compare(k: int, proportions: np.ndarray = proportions, pooled: np.ndarray = pooled) -> dict[str, Any]:
                # Views [draws, genes] of arrays [genes, draws]: statistics are much faster over contiguous draws.
                first, second = proportions[:, own[k]].T, pooled[:, mixtures[k]].T
                return compare_draws(first, as_paired, second, as_paired, tests[k], None, generator)

            parts.append(list(threads.map(compare, range(len(mixtures)))))
            report(block.stop)
    return [
        {name: np.concatenate([part[name] for part in each]) if np.ndim(one) else one for name, one in each[0].items()}
        for each in zip(*parts)
    ]
