"""Methods of SCVI that compare groups of cells or genes, with scvi-tools' names and defaults; see question_methods."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, Literal

import pandas as pd

from atlasvi.engine.api.question_methods import Batches, Indices, Questions
from atlasvi.engine.api.training_arguments import explain_argument
from atlasvi.engine.queries import abundance, correlation, differential
from atlasvi.engine.queries.cell_choice import Where
from atlasvi.engine.queries.model_names import find_batch, find_batches
from atlasvi.engine.queries.opened_data import is_anndata
from atlasvi.engine.queries.question_cells import BATCH_SIZE
from atlasvi.engine.training.settings import SettingError


class Comparisons(Questions):
    """Differential expression and abundance, and correlations between genes."""

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

    def _find_some_batches(self, names: Sequence[Any] | None) -> list[int] | None:
        return None if names is None else [find_batch(self.run, name) for name in names]
