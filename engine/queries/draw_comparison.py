"""Compare two populations' draws of expression gene by gene: probabilities, effect sizes, significant genes."""

import inspect
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import torch
from torch import Generator

from atlasvi.engine.queries.question_cells import QueryError, need_at_least
from atlasvi.loaders.errors import AtlasviWarning, MissingDependencyError

EPSILON = 1e-8
OF_CHANGE = (
    "delta",
    "change_fn",
    "m1_domain_fn",
    "pseudocounts",
    "threshold_counts",
    "test_mode",
    "cred_interval_lvls",
)
"""Fields of `Test` that have no effect in mode 'vanilla'."""


@dataclass(frozen=True)
class Test:
    """How two populations are compared; see scvi-tools' `get_bayes_factors`.

    delta         log2 fold changes up to this size are no change; None: estimated (needs scikit-learn)
    pseudocounts  added to the proportions; None: estimated from the genes with hardly any counts
    threshold_counts  genes with a mean count below this have hardly any counts
    test_mode     'three': increase and decrease are tested separately; 'two': together
    batchid1, batchid2  codes of the batches that each population is decoded as, if not as the observed ones
    """

    mode: Literal["vanilla", "change"] = "vanilla"
    delta: float | None = 0.25
    use_observed_batches: bool = True
    batchid1: Sequence[int] | None = None
    batchid2: Sequence[int] | None = None
    n_samples_overall: int = 5000
    use_permutation: bool = False
    m_permutation: int = 10_000
    change_fn: str | Callable | None = None
    m1_domain_fn: Callable | None = None
    pseudocounts: float | None = None
    threshold_counts: float = 0.01
    test_mode: Literal["two", "three"] = "three"
    cred_interval_lvls: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if self.mode not in ("vanilla", "change"):
            raise NotImplementedError(f"mode {self.mode!r}: use 'vanilla' or 'change'")
        if self.test_mode not in ("two", "three"):
            raise QueryError(f"test_mode {self.test_mode!r}: use 'two' or 'three'.")
        if self.delta is not None and not 0 <= self.delta < np.inf:
            raise QueryError(f"delta is {self.delta}: it must be a number from 0 up, or None to estimate it.")
        need_at_least(1, n_samples_overall=self.n_samples_overall, m_permutation=self.m_permutation)
        if any(batches is not None and not len(batches) for batches in (self.batchid1, self.batchid2)):
            raise QueryError("batchid1 or batchid2 is an empty list: leave it out to decode as all batches.")
        if self.use_observed_batches and (self.batchid1 is not None or self.batchid2 is not None):
            raise ValueError("batchid1 and batchid2 are batches to decode as: they need batch_correction=True")

    def list_unused(self) -> list[str]:
        """The fields that have no effect in this mode, although they differ from their defaults."""
        if self.mode == "change":
            return []
        defaults = {field.name: field.default for field in fields(self)}
        given = {name: value for name in OF_CHANGE if (value := getattr(self, name)) is not None}
        return [name for name, value in given.items() if defaults[name] is None or value != defaults[name]]


def compare_draws(
    proportions1: np.ndarray,
    batches1: np.ndarray,
    proportions2: np.ndarray,
    batches2: np.ndarray,
    test: Test,
    hardly_seen: tuple[np.ndarray, np.ndarray] | None,
    generator: Generator,
) -> dict[str, Any]:
    """Probabilities and effect sizes of each gene from draws of two populations' expression.

    proportions1, proportions2  float [draws, genes]
    batches1, batches2  float [draws]: batch that each draw was decoded as; NaN: its own
    hardly_seen         bool [genes] each: genes with a mean count below threshold_counts in either population; needed
                        for mode 'change' without pseudocounts
    """
    mean1, mean2 = proportions1.mean(0), proportions2.mean(0)
    first, second = _pair(proportions1, batches1, proportions2, batches2, test, generator)
    if test.mode == "vanilla":
        proba_m1 = np.mean(first > second, 0)
        proba_m2 = 1.0 - proba_m1
        return {
            "proba_m1": proba_m1,
            "proba_m2": proba_m2,
            "bayes_factor": np.log(proba_m1 + EPSILON) - np.log(proba_m2 + EPSILON),
            "scale1": mean1,
            "scale2": mean2,
        }
    pseudocounts = test.pseudocounts
    if pseudocounts is None:
        assert hardly_seen is not None
        pseudocounts = estimate_pseudocounts(first, second, *hardly_seen)
    change = _change_function(test.change_fn)
    effects = change(first, second, pseudocounts)
    delta = estimate_delta(effects.mean(0)) if test.delta is None else test.delta
    up, down = (effects >= delta, effects < -delta) if test.m1_domain_fn is None else test.m1_domain_fn(effects)
    proba_up, proba_down = np.mean(up, 0), np.mean(down, 0)
    proba_de = proba_up + proba_down if test.test_mode == "two" else np.maximum(proba_up, proba_down)
    # add less here than below, so that the fold changes themselves do not shrink
    effects = change(first, second, 1e-3 * pseudocounts)
    return {
        "proba_de": proba_de,
        "proba_not_de": 1.0 - proba_de,
        "bayes_factor": np.log(proba_de + EPSILON) - np.log(1.0 - proba_de + EPSILON),
        "scale1": mean1,
        "scale2": mean2,
        "pseudocounts": pseudocounts,
        "delta": delta,
        **{f"lfc_{name}": values for name, values in describe_draws(effects, test.cred_interval_lvls or ()).items()},
    }


def _pair(
    proportions1: np.ndarray,
    batches1: np.ndarray,
    proportions2: np.ndarray,
    batches2: np.ndarray,
    test: Test,
    generator: Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of draws of both populations; from the same batch, if both were decoded as the same batches."""
    known1, known2 = (np.unique(batches[~np.isnan(batches)]) for batches in (batches1, batches2))
    if len(known1) and np.array_equal(known1, known2):
        parts = [(proportions1[batches1 == batch], proportions2[batches2 == batch]) for batch in known1]
    else:
        if np.intersect1d(known1, known2).size:
            warnings.warn(
                "batchid1 and batchid2 differ but have batches in common: draws are paired whatever their batches, so "
                "batch effects are not corrected for",
                AtlasviWarning,
                stacklevel=4,
            )
        parts = [(proportions1, proportions2)]
    if test.use_permutation:
        n = test.m_permutation // len(parts)
        parts = [(a[draw_integers(len(a), n, generator)], b[draw_integers(len(b), n, generator)]) for a, b in parts]
    if len(parts) == 1:
        return parts[0]
    return np.concatenate([a for a, _ in parts]), np.concatenate([b for _, b in parts])


def _change_function(change_fn: str | Callable | None) -> Callable[[np.ndarray, np.ndarray, float], np.ndarray]:
    if change_fn is None or change_fn == "log-fold":
        return lambda x, y, pseudocounts: np.log2(x + pseudocounts) - np.log2(y + pseudocounts)
    if not callable(change_fn) or len(inspect.getfullargspec(change_fn).args) != 3:
        raise ValueError("change_fn must be 'log-fold' or a function of (proportions1, proportions2, pseudocounts)")
    return change_fn


def estimate_pseudocounts(
    first: np.ndarray, second: np.ndarray, unseen1: np.ndarray, unseen2: np.ndarray, quantile: float = 0.9
) -> float:
    """What to add to proportions to shrink fold changes of genes with hardly any counts to zero; at least 1e-10."""
    return choose_pseudocounts(first.max(0), second.max(0), unseen1, unseen2, quantile)


def choose_pseudocounts(
    largest1: np.ndarray, largest2: np.ndarray, unseen1: np.ndarray, unseen2: np.ndarray, quantile: float = 0.9
) -> float:
    """The same, from the largest proportion of each gene among the draws of either population, float [genes]."""
    largest = [
        np.quantile(proportions[unseen], quantile) if unseen.any() else 1e-10
        for proportions, unseen in ((largest1, unseen1), (largest2, unseen2))
    ]
    return float(max(1e-10, max(largest) / len(largest1)))


def estimate_delta(effects: np.ndarray, coefficient: float = 0.6, least: float = 0.1) -> float:
    """A threshold from the modes of the genes' mean log fold changes [genes]: a mixture of three normals."""
    try:
        from sklearn.mixture import GaussianMixture
    except ImportError:
        raise MissingDependencyError("delta=None needs scikit-learn: pip install 'atlasvi[statistics]'.") from None
    modes = np.sort(GaussianMixture(n_components=3, random_state=0).fit(effects[:, None]).means_.squeeze())
    return float(max(least, coefficient * np.abs(modes[[0, -1]]).mean()))


def describe_draws(draws: np.ndarray, levels: Sequence[float] = ()) -> dict[str, np.ndarray]:
    """Mean, median, std, min and max of draws [draws, genes], and the narrowest intervals at these levels."""
    summary = {
        "mean": draws.mean(0),
        "median": np.median(draws, 0),
        "std": draws.std(0),
        "min": draws.min(0),
        "max": draws.max(0),
    }
    ordered = np.sort(draws, axis=0) if len(levels) else draws
    for level in levels:
        n_inside = int(np.floor(level * len(draws)))
        if not 0 <= n_inside < len(draws):
            raise ValueError(f"a credible interval of {level}: levels must be at least 0 and below 1")
        start = np.argmin(ordered[n_inside:] - ordered[: len(draws) - n_inside], axis=0)
        for name, rows in (("min", start), ("max", start + n_inside)):
            summary[f"confidence_interval_{str(level)[:5]}_{name}"] = np.take_along_axis(ordered, rows[None], 0)[0]
    return summary


def control_fdr(probabilities: np.ndarray, target: float) -> np.ndarray:
    """bool [genes]: those whose expected proportion of false discoveries is `target`; probabilities must descend."""
    return np.arange(len(probabilities)) < (expect_false(probabilities) <= target).sum()


def expect_false(probabilities: np.ndarray) -> np.ndarray:
    """Expected proportion of false discoveries among each gene and those before it; probabilities must descend."""
    return np.cumsum(1.0 - probabilities) / (1.0 + np.arange(len(probabilities)))


def draw_integers(below: int, n: int, generator: Generator) -> np.ndarray:
    """int64 [n], uniform from 0 to below `below`, with replacement."""
    return torch.randint(below, (n,), generator=generator, device=generator.device).cpu().numpy()
