"""Methods of SCVI that answer questions, with scvi-tools' names and defaults; each calls a function of `queries`.

`adata` is the data that a question is about: None for the model's own data, an AnnData (its genes are matched by name,
and it may be minified), or a cell store, minified store or any source, as a path or opened. `indices` choose cells:
indices in any order, a mask, or a condition or expression over obs (see `find_cells`). Draws use the generator of the
model, which was seeded when the model was made.
"""

import warnings
from collections.abc import Sequence
from numbers import Real
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Generator, Tensor

from atlasvi.engine.model.trained_run import TrainedRun
from atlasvi.engine.queries import expression, latents, population
from atlasvi.engine.queries import model_fit as likelihoods
from atlasvi.engine.queries.cell_choice import Where, find_cells
from atlasvi.engine.queries.likelihood_parameters import likelihood_parameters
from atlasvi.engine.queries.model_names import find_batches
from atlasvi.engine.queries.predictive_counts import predictive_counts, take_seed
from atlasvi.engine.queries.question_cells import BATCH_SIZE, QueryError, QuestionCells, need_counts
from atlasvi.loaders.errors import AtlasviWarning, GeneError, MissingDependencyError

Indices = Where | None
Batches = str | int | float | Sequence[Any] | None


class Questions:
    """The questions; a subclass provides the model and its cells."""

    run: TrainedRun
    generator: Generator
    adata: Any  # the AnnData; None if the data is of another kind

    def ask(self, adata: Any = None) -> QuestionCells:
        """The cells of `adata`, in the form that questions need; None: those of the model."""
        raise NotImplementedError

    def get_latent_representation(
        self,
        adata: Any = None,
        indices: Indices = None,
        give_mean: bool = True,
        mc_samples: int = 5_000,
        batch_size: int | None = None,
        return_dist: bool = False,
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """z float32 [cells, latent]: the mean of q(z | x), or a draw.

        mc_samples   number of draws that estimate the mean of an ln latent
        return_dist  return mean and variance of the normal instead, two arrays
        """
        cells, numbers = self._choose(adata, indices, or_none=True)
        if return_dist:
            return latents.read_latents(self._model, cells, numbers, batch_size or BATCH_SIZE)
        return latents.represent_cells(
            self._model, cells, self.generator, numbers, give_mean, mc_samples, batch_size or BATCH_SIZE
        )

    def get_normalized_expression(
        self,
        adata: Any = None,
        indices: Indices = None,
        transform_batch: Batches = None,
        gene_list: Sequence[str] | None = None,
        library_size: float | Literal["latent"] = 1,
        n_samples: int = 1,
        n_samples_overall: int | None = None,
        weights: Literal["uniform", "importance"] | None = None,
        batch_size: int | None = None,
        return_mean: bool = True,
        return_numpy: bool | None = None,
        silent: bool = True,
        **importance_weighting_kwargs: Any,
    ) -> np.ndarray | pd.DataFrame:
        """Decoded expression at draws of the posterior, a table [cells, genes].

        transform_batch  name of the batch to decode as; for several names, the mean over them
        gene_list        only these genes, in the order of the model
        library_size     counts per cell to scale proportions to; 'latent': the cell's own library size
        n_samples        draws per cell; return_mean=False gives an array [draws, cells, genes]
        n_samples_overall  number of draws from all cells together, chosen at random: an array [draws, genes]
        weights          'importance' prefers draws that explain many cells
        """
        cells, numbers = self._choose(adata, indices)
        columns, batches = self._find_genes(gene_list), find_batches(self.run, transform_batch)
        size = batch_size or BATCH_SIZE
        if not (library_size == "latent" or isinstance(library_size, Real)):
            raise QueryError(f"library_size {library_size!r}: use counts per cell, or 'latent' for each cell's own.")
        library_size = expression.read_library_size(library_size)
        population.check_weights(weights, n_samples_overall, importance_weighting_kwargs)
        if n_samples_overall is not None:
            if n_samples != 1:
                raise QueryError("Use n_samples or n_samples_overall, not both.")
            return population.population_expression(
                self._model,
                cells,
                self.generator,
                numbers,
                n_samples_overall,
                columns=columns,
                transform_batch=batches,
                library_size=library_size,
                importance=importance_weighting_kwargs if weights == "importance" else None,
            )
        values = expression.decode_cells(
            self._model,
            cells,
            self.generator,
            expression.decode_expression(self._model, columns, library_size, return_mean and n_samples > 1),
            indices=numbers,
            transform_batch=batches,
            n_samples=n_samples,
            batch_size=size,
        )
        if return_numpy or values.ndim == 3:
            return values
        return pd.DataFrame(values, index=cells.read_names(numbers), columns=self._genes[columns])

    def get_likelihood_parameters(
        self,
        adata: Any = None,
        indices: Indices = None,
        n_samples: int = 1,
        give_mean: bool = False,
        batch_size: int | None = None,
    ) -> dict[str, np.ndarray]:
        """`mean`, and `dispersions` and `dropout` if the likelihood has them, [cells, genes] or [draws, cells, genes].

        give_mean  average over the draws
        """
        cells, numbers = self._choose(adata, indices)
        return likelihood_parameters(
            self._model,
            cells,
            self.generator,
            indices=numbers,
            n_samples=n_samples or 1,
            give_mean=bool(give_mean),
            batch_size=batch_size or BATCH_SIZE,
        )

    def posterior_predictive_sample(
        self,
        adata: Any = None,
        indices: Indices = None,
        transform_batch: Batches = None,
        n_samples: int = 1,
        gene_list: Sequence[str] | None = None,
        batch_size: int | None = None,
        silent: bool = True,
    ) -> Any:
        """Counts drawn from the posterior predictive: `sparse.GCXS` [cells, genes], or [cells, genes, draws].

        Raises MissingDependencyError without the package `sparse`.
        """
        try:
            import sparse
        except ImportError:
            raise MissingDependencyError(
                "posterior_predictive_sample needs sparse: pip install 'atlasvi[statistics]'."
            ) from None
        cells, numbers = self._choose(adata, indices)
        columns, batches = self._find_genes(gene_list), find_batches(self.run, transform_batch)
        counts = predictive_counts(
            self._model,
            cells,
            take_seed(self.generator),
            indices=numbers,
            columns=columns,
            n_draws=n_samples,
            transform_batch=batches,
            batch_size=batch_size or BATCH_SIZE,
        )
        shape = (*counts.shape,) if n_samples == 1 else (counts.shape[0], counts.shape[1] // n_samples, n_samples)
        return sparse.GCXS((counts.data, counts.indices, counts.indptr), shape, compressed_axes=(0,), fill_value=0)

    def get_elbo(
        self, adata: Any = None, indices: Indices = None, batch_size: int | None = None, return_mean: bool = True
    ) -> Tensor:
        """The evidence lower bound, nats per cell (negative, larger is better): its mean, or float32 [cells]."""
        terms = self._losses("the ELBO", adata, indices, batch_size)
        elbo = -(terms.reconstruction + terms.kl + terms.kl_library)
        return elbo.mean() if return_mean else elbo

    def get_reconstruction_error(
        self, adata: Any = None, indices: Indices = None, batch_size: int | None = None, return_mean: bool = True
    ) -> dict[str, Tensor]:
        """`reconstruction_loss`: negative log-likelihood at a draw of z, nats per cell: its mean, or [cells]."""
        loss = self._losses("the reconstruction error", adata, indices, batch_size).reconstruction
        return {"reconstruction_loss": loss.mean() if return_mean else loss}

    def _losses(self, question: str, adata: Any, indices: Indices, batch_size: int | None) -> Any:
        cells, numbers = self._choose(adata, indices)
        known = need_counts(cells, question)
        return likelihoods.cell_losses(self._model, known, self.generator, numbers, batch_size or BATCH_SIZE)

    def get_marginal_ll(
        self,
        adata: Any = None,
        indices: Indices = None,
        n_mc_samples: int = 1_000,
        batch_size: int | None = None,
        return_mean: bool = True,
        n_mc_samples_per_pass: int = 1,
    ) -> float | Tensor:
        """log p(x) by importance sampling, nats per cell: its mean, or float32 [cells].

        n_mc_samples_per_pass  has no effect: one sample is in memory at a time
        """
        cells, numbers = self._choose(adata, indices)
        known = need_counts(cells, "the marginal likelihood")
        values = likelihoods.marginal_log_likelihood(
            self._model, known, self.generator, numbers, n_mc_samples, batch_size or BATCH_SIZE
        )
        return np.float64(values.mean()) if return_mean else values

    def get_latent_library_size(
        self, adata: Any = None, indices: Indices = None, give_mean: bool = True, batch_size: int | None = None
    ) -> np.ndarray:
        """Library size float32 [cells, 1], counts: the mean of its posterior, or a draw (or the observed one)."""
        cells, numbers = self._choose(adata, indices)
        return latents.latent_library(self._model, cells, self.generator, numbers, give_mean, batch_size or BATCH_SIZE)

    def get_batch_representation(
        self, adata: Any = None, indices: Indices = None, batch_size: int | None = None
    ) -> np.ndarray:
        """The embedding of each cell's batch, float32 [cells, embedding]. Raises QueryError if batches are one-hot."""
        cells, numbers = self._choose(adata, indices, or_none=True)
        return latents.batch_vectors(self._model, cells, numbers)

    def get_aggregated_posterior(
        self,
        adata: Any = None,
        indices: Indices = None,
        batch_size: int | None = None,
        dof: float | None = 3.0,
    ) -> torch.distributions.Distribution:
        """The mixture of the posteriors of the cells, as Student's t with `dof` degrees of freedom (None: normals)."""
        cells, numbers = self._choose(adata, indices)
        found = latents.read_latents(self._model, cells, numbers, batch_size or BATCH_SIZE)
        qzm, qzv = (torch.from_numpy(part).to(self.generator.device) for part in found)
        return latents.mix_posteriors(qzm, qzv, dof)

    @property
    def _model(self) -> Any:
        return self.run.model

    @property
    def _genes(self) -> pd.Index:
        return pd.Index(self.run.genes)

    def _choose(self, adata: Any, indices: Indices, or_none: bool = False) -> tuple[QuestionCells, np.ndarray]:
        """The cells, and the indices of the chosen ones. Raises QueryError if there are none, unless `or_none`."""
        cells = self.ask(adata)
        numbers = find_cells(cells, indices)
        if not len(numbers) and not or_none:
            raise QueryError(f"{cells.path}: no cell was chosen: indices is empty, or the data has no cells.")
        return cells, numbers

    def _find_genes(self, names: Sequence[str] | None) -> np.ndarray | slice:
        """Columns of the genes, in the order of the model; unknown ones are left out, as in scvi-tools, with a warning.

        Raises GeneError if none of them is in the model.
        """
        if names is None:
            return slice(None)
        columns = np.flatnonzero(self._genes.isin(list(names)))
        if not len(columns):
            raise GeneError(f"None of the {len(names)} genes of gene_list is in the model (first: {list(names)[:1]}).")
        if len(unknown := pd.Index(names).difference(self._genes, sort=False)):
            warnings.warn(
                f"{len(unknown):,} of the {len(names)} genes of gene_list are not in the model, so they are left out "
                f"(first: {unknown[0]!r}).",
                AtlasviWarning,
                stacklevel=4,
            )
        return columns
