"""scVI with scvi-tools' methods, in memory or out of core: how a model is set up, its data minified, its card made.

The other methods are in files of this folder by their subject: questions, training, saving, mapping of new data.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Generator

from atlasvi.engine.api.mapping_methods import QueryMapping
from atlasvi.engine.api.saving_methods import Saving
from atlasvi.engine.api.training_methods import Training
from atlasvi.engine.card.make_card import make_card
from atlasvi.engine.card.model_card import ModelCard
from atlasvi.engine.minified.minified_anndata import WITH_COUNTS, minify_anndata
from atlasvi.engine.minified.minified_store import MINIFY_TYPE
from atlasvi.engine.minified.minify import MinifyReport, minify
from atlasvi.engine.model.covariates import SetupKeys, learn_setup
from atlasvi.engine.model.library_prior import fill_library_prior
from atlasvi.engine.model.likelihoods import takes_fractions
from atlasvi.engine.model.model_options import ModelSettings
from atlasvi.engine.model.trained_run import TrainedRun
from atlasvi.engine.model.vae import VAE as Model
from atlasvi.engine.queries.latents import read_latents
from atlasvi.engine.queries.opened_data import is_anndata, open_counts, read_setup, write_setup
from atlasvi.engine.queries.question_cells import CountedCells, QueryError
from atlasvi.engine.scvi_tools.model_directories import PARTS
from atlasvi.engine.scvi_tools.registry import SCVI_DEFAULTS, name_activation
from atlasvi.engine.training.settings import SettingError
from atlasvi.loaders.sources.data_spec import DataSpec

if TYPE_CHECKING:
    import anndata


class SCVI(Training, Saving, QueryMapping):
    """scVI with the arguments, defaults and methods of scvi-tools' `SCVI` (see docs/coming-from-scvi-tools.md).

    adata  an AnnData after `setup_anndata`; or a cell store or any source, as a path or opened, which is set up here
           with the same keywords: layer (of a source), batch_key, labels_key, ...
    seed   of weights, training, and draws for questions
    Further options are those of `ModelOptions`. Raises SettingError for an unknown option, or if there is no set-up.
    """

    def __init__(
        self,
        adata: Any = None,
        *,
        n_hidden: int = 128,
        n_latent: int = 10,
        n_layers: int = 1,
        dropout_rate: float = 0.1,
        dispersion: str = "gene",
        gene_likelihood: str = "zinb",
        use_observed_lib_size: bool = True,
        latent_distribution: str = "normal",
        seed: int = 0,
        layer: str | None = None,
        batch_key: str | None = None,
        labels_key: str | None = None,
        size_factor_key: str | None = None,
        categorical_covariate_keys: Sequence[str] | None = None,
        continuous_covariate_keys: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        if adata is None:
            raise SettingError("SCVI takes data: an AnnData, or the path of a cell store or of any source.")
        keys = SetupKeys.from_arguments(locals())
        if is_anndata(adata):
            if layer is not None or keys != SetupKeys():
                raise SettingError("Set an AnnData up with SCVI.setup_anndata(adata, ...), not with arguments of SCVI.")
            layer, keys = read_setup(adata)
        like = DataSpec("", layer=layer, values="numbers" if takes_fractions(gene_likelihood) else None)
        data = open_counts(adata, like, layer)
        setup = learn_setup(data, keys, one_batch=True, layer=data.layer)
        if (embedding := kwargs.pop("batch_embedding_kwargs", None)) is not None:
            kwargs.update(embedding)
        if "var_activation" in kwargs:
            kwargs["var_activation"] = name_activation(kwargs["var_activation"], "SCVI")
        options = {
            "n_hidden": n_hidden,
            "n_latent": n_latent,
            "n_layers": n_layers,
            "dropout_rate": dropout_rate,
            "dispersion": dispersion,
            "gene_likelihood": gene_likelihood,
            "use_observed_lib_size": use_observed_lib_size,
            "latent_distribution": latent_distribution,
        }
        try:
            settings = ModelSettings(n_genes=len(data.genes), **setup.sizes, **{**SCVI_DEFAULTS, **options, **kwargs})
        except ValueError as error:
            first = error.errors()[0] if hasattr(error, "errors") else {"loc": (), "msg": str(error)}
            raise SettingError(f"SCVI: {'.'.join(map(str, first['loc']))}: {first['msg']}.") from None
        model = Model(settings, Generator().manual_seed(seed)).eval()
        if settings.has_latent_library:
            fill_library_prior(model, data, setup.read_codes(data))
        run = TrainedRun(model, [str(gene) for gene in data.genes], setup, data=data.spec, is_new=True)
        self._begin(run, adata, seed)
        self._cells = CountedCells(data, self.run.genes, setup)

    @classmethod
    def setup_anndata(
        cls,
        adata: "anndata.AnnData",
        layer: str | None = None,
        batch_key: str | None = None,
        labels_key: str | None = None,
        size_factor_key: str | None = None,
        categorical_covariate_keys: Sequence[str] | None = None,
        continuous_covariate_keys: Sequence[str] | None = None,
    ) -> None:
        """Set where the counts are and which columns of obs the model uses; kept in `adata.uns`.

        Raises ColumnError if a layer or column does not exist or has missing values.
        """
        write_setup(adata, layer, SetupKeys.from_arguments(locals()))

    def minify_adata(
        self,
        minified_data_type: str = MINIFY_TYPE,
        use_latent_qzm_key: str = "X_latent_qzm",
        use_latent_qzv_key: str = "X_latent_qzv",
    ) -> None:
        """Replace `self.adata` by a copy that has the posterior of each cell and, by default, no counts.

        use_latent_qzm_key, use_latent_qzv_key  in obsm; computed if they are missing
        Raises QueryError if the library is latent, or if the data is no AnnData: `minify` works out of core.
        """
        cells, full = self._open_own(), self._adata
        if full is None or not isinstance(cells, CountedCells):
            raise QueryError(
                "The model has no AnnData with counts: minify(out) writes a minified store of data on disk."
            )
        if minified_data_type not in (MINIFY_TYPE, WITH_COUNTS):
            raise NotImplementedError(f"minified_data_type {minified_data_type!r}: use {MINIFY_TYPE} or {WITH_COUNTS}")
        if not self.run.model.settings.use_observed_lib_size:
            raise ValueError("a latent library has no posterior in minified data: such a model can't be minified")
        given = use_latent_qzm_key, use_latent_qzv_key
        latents = read_latents(self.module, cells, np.arange(cells.n_cells))
        if all(key in full.obsm for key in given):
            latents = tuple(np.asarray(full.obsm[key], np.float32) for key in given)  # type: ignore[assignment]
        library = np.concatenate([batch.library.cpu().numpy() for batch in cells.read_batches(self.run.model)])
        self.adata = minify_anndata(full, self.run.setup.layer, latents, library, minified_data_type)

    def minify(self, out: str | Path, **kwargs: Any) -> MinifyReport:
        """Write the posterior of all cells to a minified store, which becomes the model's data; see `minify.minify`."""
        if not isinstance(cells := self._open_own(), CountedCells):
            raise QueryError("There are no counts: the data is minified already, or the model has no data.")
        report = minify(self.run, cells.data, out, **kwargs)
        self.to_device(self.device)
        self.adata = Path(out)
        return report

    def card(self, out: str | Path | None = None, **kwargs: Any) -> ModelCard:
        """The model's card, and with `out` its folder; the keyword arguments are those of `make_card`.

        Raises QueryError if the model has no data, and the errors of `make_card`.
        """
        parts = {name: part for name in PARTS if (part := self._find_part(name)) is not None}
        run = replace(self.run, split=parts)
        return make_card(run, self.ask(), out, **{"device": self.device.type, **kwargs})
