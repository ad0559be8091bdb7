"""Methods of SCVI that answer questions, with scvi-tools' names and defaults; each calls a function of `queries`.

`adata` is the data that a question is about: None for the model's own data, an AnnData (its genes are matched by name,
and it may be minified), or a cell store, minified store or any source, as a path or opened. `indices` choose cells:
indices in any order, a mask, or a condition or expression over obs (see `find_cells`). Draws use the generator of the
model, which was seeded when the model was made.
"""

from collections.abc import Sequence
from dataclasses import fields
from numbers import Real
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Generator, Tensor

from atlasvi.engine.api.training_arguments import explain_argument
from atlasvi.engine.model.trained_run import TrainedRun
from atlasvi.engine.queries import abundance, correlation, differential, expression, latents
from atlasvi.engine.queries import model_fit as likelihoods
from atlasvi.engine.queries.cell_choice import Where, find_cells
from atlasvi.engine.queries.likelihood_parameters import likelihood_parameters
from atlasvi.engine.queries.model_names import find_batch, find_batches
from atlasvi.engine.queries.opened_data import is_anndata
from atlasvi.engine.queries.population import population_expression
from atlasvi.engine.queries.predictive_counts import predictive_counts, take_seed
from atlasvi.engine.queries.question_cells import BATCH_SIZE, QueryError, QuestionCells, need_counts
from atlasvi.engine.training.settings import SettingError
from atlasvi.loaders.errors import GeneError, MissingDependencyError

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
        if n_samples_overall is not None:
            if n_samples != 1:
                raise ValueError("use n_samples or n_samples_overall, not both")
            return population_expression(
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

    def differential_expression(
        self,
        adata: Any = None,
        groupby: str | None = None,
        group1: Sequence[Any] | str | None = None,
        group2: Any = None,
        idx1: Where | None = None,
        idx2: Where | None = None,
        mode: Literal["vanilla", "change"] = "vanilla",
        delta: float | None = 0.25,
        batch_size: int | None = None,
        all_stats: bool = True,
        batch_correction: bool = False,
        batchid1: Sequence[Any] | None = None,
        batchid2: Sequence[Any] | None = None,
        fdr_target: float = 0.05,
        silent: bool = False,
        weights: Literal["uniform", "importance"] | None = "uniform",
        filter_outlier_cells: bool = False,
        importance_weighting_kwargs: dict[str, Any] | None = None,
        subset_idx: Where | None = None,
        **kwargs: Any,
    ) -> pd.DataFrame:
        """Genes that differ between groups of cells: a table of genes for each comparison, one below the other.

        See `differential.differential_expression` for groups and statistics, `differential.Test` for modes and kwargs.
        batch_correction  decode both groups as each of the batches (or batchid1, batchid2) in turn
        """
        cells, known = self.ask(adata), [field.name for field in fields(differential.Test)]
        for name in kwargs:
            if name not in known:
                raise SettingError(explain_argument(name, "differential_expression", known))
        test = differential.Test(
            mode=mode,
            delta=delta,
            use_observed_batches=not batch_correction,
            batchid1=self._find_some_batches(batchid1),
            batchid2=self._find_some_batches(batchid2),
            **kwargs,
        )
        return differential.differential_expression(
            self._model,
            cells,
            self._genes,
            self.generator,
            test,
            n_batches=self._model.settings.n_batches,
            groupby=groupby,
            group1=group1,
            group2=group2,
            idx1=idx1,
            idx2=idx2,
            subset_idx=subset_idx,
            all_stats=all_stats,
            fdr_target=fdr_target,
            weights=weights,
            filter_outlier_cells=filter_outlier_cells,
            importance_weighting_kwargs=importance_weighting_kwargs,
        )

    def get_feature_correlation_matrix(
        self,
        adata: Any = None,
        indices: Indices = None,
        n_samples: int = 10,
        batch_size: int = 64,
        rna_size_factor: int = 1000,
        transform_batch: Batches = None,
        correlation_type: Literal["spearman", "pearson"] = "spearman",
        silent: bool = True,
    ) -> pd.DataFrame:
        """Correlations between genes in rates drawn from the posterior, a table [genes, genes]."""
        cells, numbers = self._choose(adata, indices)
        matrix = correlation.correlate_genes(
            self._model,
            cells,
            self.generator,
            indices=numbers,
            n_samples=n_samples,
            rna_size_factor=rna_size_factor,
            transform_batch=find_batches(self.run, transform_batch),
            correlation_type=correlation_type,
            batch_size=max(batch_size, BATCH_SIZE),
        )
        return pd.DataFrame(matrix, index=self._genes, columns=self._genes)

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
        known = need_counts(cells, "the library size")
        return latents.latent_library(self._model, known, self.generator, numbers, give_mean, batch_size or BATCH_SIZE)

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

    def differential_abundance(
        self,
        adata: Any = None,
        adata_sub: Any = None,
        sample_key: str | None = None,
        batch_size: int = 128,
        num_cells_posterior: int | None = None,
        dof: float | None = None,
    ) -> pd.DataFrame:
        """Log-density of each cell under the aggregated posterior of each sample, a table [cells, samples].

        adata_sub   the cells to compute densities for, if not all
        sample_key  obs column of samples
        The table is also stored as obsm["da_log_probs"] of an AnnData.
        """
        if sample_key is None:
            raise ValueError("sample_key is needed: the obs column with the sample of each cell")
        cells = self.ask(adata)
        queried = cells if adata_sub is None else self.ask(adata_sub)
        table = abundance.differential_abundance(
            self._model,
            cells,
            queried,
            self.generator,
            sample_key,
            num_cells_posterior=num_cells_posterior,
            dof=dof,
            batch_size=batch_size,
        )
        target: Any = next((data for data in (adata_sub, adata, self.adata) if data is not None), None)
        if is_anndata(target):
            target.obsm["da_log_probs"] = table
        return table

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
        """Columns of the genes, in the order of the model. Raises GeneError if none of them is in the model."""
        if names is None:
            return slice(None)
        columns = np.flatnonzero(self._genes.isin(list(names)))
        if not len(columns):
            raise GeneError(f"None of the {len(names)} genes of gene_list is in the model (first: {list(names)[:1]}).")
        return columns

    def _find_some_batches(self, names: Sequence[Any] | None) -> list[int] | None:
        return None if names is None else [find_batch(self.run, name) for name in names]
