"""scVI with scvi-tools' methods: set up, train, ask, save, load, minify, map new data; in memory or out of core."""

import os
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd
import torch
from torch import Generator

from atlasvi.engine.api.question_methods import Questions
from atlasvi.engine.api.setup_and_history import ModelViews
from atlasvi.engine.api.training_arguments import (
    explain_end,
    name_parts,
    split_cells,
    translate_arguments,
    warn_without_effect,
)
from atlasvi.engine.distributed.signals import TrainingInterrupted
from atlasvi.engine.minified.minified_anndata import WITH_COUNTS, minify_anndata
from atlasvi.engine.minified.minified_store import MINIFY_TYPE, MinifiedStore, is_minified_store
from atlasvi.engine.minified.minify import MinifyReport, minify
from atlasvi.engine.model.covariates import SetupKeys, learn_setup
from atlasvi.engine.model.library_prior import fill_library_prior
from atlasvi.engine.model.likelihoods import takes_fractions
from atlasvi.engine.model.model_options import Freezing, ModelSettings
from atlasvi.engine.model.run_files import CONFIG, MODEL, RUN_FORMAT
from atlasvi.engine.model.trained_run import TrainedRun
from atlasvi.engine.model.vae import VAE as Model
from atlasvi.engine.queries.latents import read_latents
from atlasvi.engine.queries.opened_data import (
    is_anndata,
    keep_setup,
    open_counts,
    open_question_cells,
    read_anndata,
    read_setup,
    reopen_question_cells,
    write_setup,
)
from atlasvi.engine.queries.question_cells import CountedCells, QueryError, QuestionCells
from atlasvi.engine.scvi_tools.model_directories import (
    PARTS,
    SAVED,
    check_saved,
    load_scvi_tools,
    open_model,
    write_scvi_model,
)
from atlasvi.engine.scvi_tools.registry import SCVI_DEFAULTS, name_activation
from atlasvi.engine.torch_files import load_tensors
from atlasvi.engine.training.checkpoint import CheckpointError, read_newest_checkpoint
from atlasvi.engine.training.query_mapping import align_anndata, map_query, report_genes
from atlasvi.engine.training.run_parts import choose_device
from atlasvi.engine.training.run_state import check_state
from atlasvi.engine.training.settings import SettingError
from atlasvi.engine.training.train import train
from atlasvi.engine.training.training_error import TrainingError
from atlasvi.loaders.cells.open_cells import CellData, add_column, align_genes, select_genes
from atlasvi.loaders.damage import reading
from atlasvi.loaders.errors import OutputError
from atlasvi.loaders.manifest import write_manifest
from atlasvi.loaders.outputs import write_files_aside, write_folder_aside
from atlasvi.loaders.sources.data_spec import DataSpec
from atlasvi.loaders.store_files import check_version

if TYPE_CHECKING:
    import anndata

SPLIT = "_atlasvi_part"  # the column from which training reads the split
KEPT_STATE = ("optimizer", "epoch", "step", "history")  # fields of a checkpoint, besides the weights
ADATA = "adata.h5ad"
STATE = "atlasvi.pt"  # beside a saved model: what training needs to continue and scvi-tools does not keep


class SCVI(Questions, ModelViews):
    """scVI with the arguments, defaults and methods of scvi-tools' `SCVI` (see docs/coming-from-scvi-tools.md).

    adata  an AnnData after `setup_anndata`; or a cell store or any source, as a path or opened, which is set up here
           with the same keywords: layer (of a source), batch_key, labels_key, ...
    seed   of weights, training, and draws for questions
    Further options are those of `ModelOptions`. Raises SettingError for an unknown option, or if there is no set-up.
    """

    _cells: QuestionCells | None

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
        arguments: dict[str, Any] = {
            "layer": layer,
            "batch_key": batch_key,
            "labels_key": labels_key,
            "size_factor_key": size_factor_key,
            "categorical_covariate_keys": categorical_covariate_keys,
            "continuous_covariate_keys": continuous_covariate_keys,
        }
        if is_anndata(adata):
            if any(value is not None for value in arguments.values()):
                raise SettingError("Set an AnnData up with SCVI.setup_anndata(adata, ...), not with arguments of SCVI.")
            arguments = read_setup(adata)
        like = DataSpec("", layer=layer, values="numbers" if takes_fractions(gene_likelihood) else None)
        data = open_counts(adata, like, arguments.pop("layer"))
        setup = learn_setup(data, SetupKeys.from_arguments(arguments), one_batch=True)
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
        run = TrainedRun(model, [str(gene) for gene in data.genes], setup, data=data.spec)
        self._begin(run, adata, seed)
        self._cells = CountedCells(data, self.run.genes, setup)

    def _begin(self, run: TrainedRun, adata: Any, seed: int, device: str = "auto") -> None:
        self.run, self.seed, self.is_trained = run, seed, False
        self._adata = adata if is_anndata(adata) else None
        self._cells = None
        self._keep_split({})
        self.to_device(device)

    @classmethod
    def _of_run(cls, run: TrainedRun, adata: Any, seed: int = 0, device: str = "auto") -> Self:
        """A model from a run, with data or without."""
        model = cls.__new__(cls)
        model._begin(run, adata, seed, device)
        if adata is not None:
            model.adata = adata
            if model._adata is not None and isinstance(model._cells, CountedCells):
                keep_setup(model._adata, run.setup)
        return model

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
        arguments = {
            "layer": layer,
            "batch_key": batch_key,
            "labels_key": labels_key,
            "size_factor_key": size_factor_key,
            "categorical_covariate_keys": list(categorical_covariate_keys or ()) or None,
            "continuous_covariate_keys": list(continuous_covariate_keys or ()) or None,
        }
        write_setup(adata, arguments)

    def train(
        self,
        max_epochs: int | None = None,
        accelerator: str = "auto",
        devices: Any = "auto",
        train_size: float | None = None,
        validation_size: float | None = None,
        shuffle_set_split: bool = True,
        load_sparse_tensor: bool = False,
        batch_size: int = 128,
        early_stopping: bool = False,
        datasplitter_kwargs: Mapping[str, Any] | None = None,
        plan_config: Mapping[str, Any] | None = None,
        plan_kwargs: Mapping[str, Any] | None = None,
        trainer_config: Mapping[str, Any] | None = None,
        *,
        run_dir: str | Path | None = None,
        resume: bool = False,
        settings: Mapping[str, Any] | None = None,
        **trainer_kwargs: Any,
    ) -> None:
        """Train the model; a later call continues with the same optimizer, and the counts of epochs go on.

        max_epochs   0 splits the cells without training
        accelerator  'auto', 'cpu' or 'gpu'
        run_dir      directory that keeps the run (metrics, checkpoints, the model); None: only the model is kept
        resume       resume the interrupted run in `run_dir`
        settings     of `Settings`; they override what follows from the other arguments
        devices and load_sparse_tensor have no effect: ranks are started by torchrun, and counts are always sparse.
        If training is stopped by Ctrl-C or by a loss that is not finite, the model keeps weights and history of the
        last good checkpoint, and the error tells which one it is.
        Raises SettingError for an unknown argument, and the errors of `train` of `atlasvi.engine`.
        """
        if not isinstance(cells := self._open_own(), CountedCells):
            raise QueryError("There are no counts to train on: load the model with its full data.")
        warn_without_effect(datasplitter_kwargs, {**(trainer_config or {}), **trainer_kwargs}, devices)
        if run_dir is None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise SettingError("Several ranks write one run together: set its directory, run_dir.")
        data = cells.data
        translated = translate_arguments(
            data.n_cells,
            max_epochs,
            batch_size,
            early_stopping,
            {**(plan_config or {}), **(plan_kwargs or {})},
            {**(trainer_config or {}), **trainer_kwargs},
        )
        external = (datasplitter_kwargs or {}).get("external_indexing")
        parts = split_cells(data.n_cells, train_size, validation_size, shuffle_set_split, self.seed, external)
        if max_epochs == 0:
            self._finish_training(parts)
            return
        split_column = None
        if not len(parts["validation"]):
            translated["validation_fraction"] = 0.0
        if len(parts["train"]) < data.n_cells:
            data, split_column = add_column(data, SPLIT, name_parts(parts, data.n_cells)), SPLIT
        with tempfile.TemporaryDirectory(prefix="atlasvi-") as scratch:
            out = Path(scratch) / "run" if run_dir is None else Path(run_dir)
            try:
                trained = train(
                    data,
                    out,
                    start=None if resume else self.run,
                    seed=self.seed,
                    split_column=split_column,
                    device={"gpu": "cuda"}.get(accelerator, accelerator),
                    settings={**translated, **(settings or {})},
                    resume=resume,
                )
            except (TrainingInterrupted, TrainingError) as error:
                kept = self._keep_checkpoint(out, parts)
                raise type(error)(explain_end(error.what, kept, run_dir)) from None
            saved = read_newest_checkpoint(out / "checkpoints")[1]
        trained.path = None if run_dir is None else Path(run_dir)
        trained.state = {name: saved[name] for name in KEPT_STATE}
        trained.freezing, self.run = self.run.freezing, trained
        self._finish_training(parts)

    def _keep_checkpoint(self, out: Path, parts: dict[str, np.ndarray]) -> int | None:
        """Load the last checkpoint of a training that ended early; returns its step, or None if there is none."""
        try:
            saved = read_newest_checkpoint(out / "checkpoints")[1]
        except CheckpointError:  # training ended before the first one
            return None
        ours = {name: values.shape for name, values in self.run.model.state_dict().items()}
        same = ours == {name: values.shape for name, values in saved["weights"].items()}  # not of another run
        if not same or saved["step"] == (self.run.state or {}).get("step", 0):
            return None
        self.run.model.load_state_dict(saved["weights"])
        self.run.state = {name: saved[name] for name in KEPT_STATE}
        self._finish_training(parts)
        return saved["step"]

    def _finish_training(self, parts: dict[str, np.ndarray]) -> None:
        self._keep_split(parts)
        self.is_trained = True
        self.to_device(self.device)

    def save(
        self,
        dir_path: str | Path,
        prefix: str | None = None,
        overwrite: bool = False,
        save_anndata: bool = False,
        **anndata_write_kwargs: Any,
    ) -> None:
        """Write the model as a directory that `load` and scvi-tools' `SCVI.load` open.

        prefix        first part of the names of its files
        overwrite     replace the files of a model saved there before; other files stay
        save_anndata  save the AnnData too, as adata.h5ad
        Raises OutputError if the directory exists and overwrite is False, or if it can't be written.
        """
        folder, prefix = Path(os.path.abspath(dir_path)), prefix or ""  # '.' has no name
        if os.path.lexists(folder) and not (overwrite and folder.is_dir()):
            raise OutputError(f"{folder} exists already: choose another path, or set overwrite=True (for a folder).")
        if os.path.basename(prefix) != prefix:
            raise OutputError(f"prefix {prefix!r} is a part of a path: it is the first part of the names of the files.")
        if (folder / CONFIG).exists() or (folder / "zarr.json").exists():
            raise OutputError(f"{folder} is a run or a store, which a model can't be saved over: choose another path.")
        if save_anndata and self.adata is None:
            raise OutputError(f"{folder}: the model has no AnnData to save: its data is on disk already.")
        if folder.is_dir():
            # the model first, its list last: in between, `check_saved` sees that the others belong to another model
            order = [f"{prefix}{name}" for name in (MODEL, STATE, ADATA, SAVED)]
            with write_files_aside(folder, order) as result:
                self._write(result, prefix, save_anndata, anndata_write_kwargs)
        else:
            with write_folder_aside(folder) as scratch:
                result = scratch / "result"
                result.mkdir()
                self._write(result, prefix, save_anndata, anndata_write_kwargs)

    def _write(self, folder: Path, prefix: str, with_anndata: bool, write_options: Mapping[str, Any]) -> None:
        """Write the files of `save` into a folder."""
        parts = {name: part for name in PARTS if (part := self._find_part(name)) is not None}
        indices = {f"{name}_indices_": parts.get(name) for name in PARTS}
        try:
            run = TrainedRun(self.run.model.cpu(), self.run.genes, self.run.setup)
            write_scvi_model(run, folder / f"{prefix}{MODEL}", {"is_trained_": self.is_trained, **indices})
        finally:
            self.to_device(self.device)
        split = {name: torch.from_numpy(part) for name, part in parts.items()}
        content = {"format_version": RUN_FORMAT, "state": self.run.state, "split": split}
        if self.run.data is not None:
            content["data"] = self.run.data.to_record()
        torch.save(content, folder / f"{prefix}{STATE}")
        if with_anndata:
            assert self.adata is not None
            self.adata.write_h5ad(folder / f"{prefix}{ADATA}", **write_options)
        write_manifest(folder, list_name=f"{prefix}{SAVED}")

    @classmethod
    def load(
        cls,
        dir_path: str | Path,
        adata: Any = None,
        accelerator: str = "auto",
        device: Any = "auto",
        prefix: str | None = None,
        seed: int = 0,
    ) -> Self:
        """A model that `save`, a run or scvi-tools wrote; with `adata`, with the data saved with it, or without data.

        dir_path  may be a minified store: it holds the weights, and can answer questions that need no counts
        adata     as for SCVI, and also minified data; setup_anndata is not needed
        Raises SourceError if it is not a model, GeneError or ColumnError if genes or columns are missing from the data.
        """
        folder, prefix = Path(dir_path), prefix or ""
        if is_minified_store(folder):
            store = MinifiedStore(folder)
            run = store.run
            adata = store if adata is None else adata
        else:
            run = load_scvi_tools(folder / f"{prefix}{MODEL}") if prefix else open_model(folder)
        parts = run.split
        belongs = check_saved(folder, prefix, with_data=adata is None)
        if belongs and (folder / f"{prefix}{STATE}").is_file():
            state = folder / f"{prefix}{STATE}"
            content = load_tensors(state)
            with reading(str(state)):
                check_version(str(state), "model", content, RUN_FORMAT)
                run.data = DataSpec.from_record(content["data"]) if "data" in content else None
                run.state = content["state"]
                check_state(run.state or {})
                parts = {name: part.numpy() for name, part in content["split"].items()}
        if adata is None and (saved := folder / f"{prefix}{ADATA}").is_file():
            adata = read_anndata(saved)
        where = "cpu" if accelerator == "cpu" else str(device)
        model = cls._of_run(run, adata, seed, where)
        model.is_trained = True
        model._keep_split(parts)
        return model

    @staticmethod
    def prepare_query_anndata(
        adata: "anndata.AnnData",
        reference_model: "str | Path | SCVI",
        return_reference_var_names: bool = False,
        inplace: bool = True,
    ) -> "anndata.AnnData | pd.Index | None":
        """The genes of a reference, in its order; missing ones are zero, and a warning gives their proportion.

        inplace  change `adata`, else return a new one. Raises GeneError if all genes are missing.
        """
        genes = pd.Index(_open_reference(reference_model).genes)
        if return_reference_var_names:
            return genes
        prepared = align_anndata(adata, genes)
        if not inplace:
            return prepared
        adata._init_as_actual(prepared)
        return None

    @staticmethod
    def prepare_query(data: Any, reference_model: "str | Path | SCVI") -> CellData:
        """Cells out of core, with the genes of a reference in its order; missing genes are zero.

        data  a cell store or any source, as a path or opened. A warning gives the proportion of genes that it has.
        Raises GeneError if all genes are missing.
        """
        reference = _open_reference(reference_model)
        counts = open_counts(data, reference.like, reference.setup.layer)
        cells, missing = align_genes(counts, reference.genes)
        report_genes(cells.path, len(reference.genes), missing)
        return cells

    @classmethod
    def load_query_data(
        cls,
        adata: Any,
        reference_model: "str | Path | SCVI",
        inplace_subset_query_vars: bool = False,
        accelerator: str = "auto",
        device: Any = "auto",
        unfrozen: bool = False,
        freeze_dropout: bool = False,
        freeze_expression: bool = True,
        freeze_decoder_first_layer: bool = True,
        freeze_batchnorm_encoder: bool = True,
        freeze_batchnorm_decoder: bool = False,
        freeze_classifier: bool = True,
        transfer_batch: bool = True,
        seed: int = 0,
    ) -> Self:
        """A model for new data with the weights of a reference, frozen except for new categories (see `Freezing`).

        adata            an AnnData, or a cell store or any source (or the result of `prepare_query`)
        reference_model  a model, or the path of a saved one
        Raises GeneError if genes of the reference are missing: call `prepare_query_anndata` or `prepare_query` first.
        """
        reference = _open_reference(reference_model)
        if inplace_subset_query_vars:
            adata._inplace_subset_var(reference.genes)
        counts = open_counts(adata, reference.like, reference.setup.layer)
        data = select_genes(counts, reference.genes)
        freezing = Freezing(
            unfrozen=unfrozen,
            freeze_dropout=freeze_dropout,
            freeze_expression=freeze_expression,
            freeze_decoder_first_layer=freeze_decoder_first_layer,
            freeze_batchnorm_encoder=freeze_batchnorm_encoder,
            freeze_batchnorm_decoder=freeze_batchnorm_decoder,
        )
        run = map_query(reference, data, freezing, Generator().manual_seed(seed))
        unknown = run.setup.batch_categories[len(reference.setup.batch_categories) :]
        if unknown and not transfer_batch:
            raise QueryError(f"{data.path}: the reference has no batch {unknown[0]!r}, and transfer_batch is off.")
        model = cls._of_run(run, None, seed, "cpu" if accelerator == "cpu" else str(device))
        if is_anndata(adata):
            model._adata = adata
            keep_setup(adata, run.setup)
        model._cells = CountedCells(counts, run.genes, run.setup)
        return model

    load_query = load_query_data

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

    @property
    def adata(self) -> "anndata.AnnData | None":
        """The model's AnnData, as it is now; None if its data is of another kind, or missing."""
        return self._adata

    @adata.setter
    def adata(self, adata: Any) -> None:
        """Set other data of any kind, with the same genes and columns. Raises the errors of `load` for data."""
        cells = None if adata is None else open_question_cells(adata, self.run)
        if cells is not None and is_anndata(adata):  # for data on disk, columns are read when they are needed
            self.run.setup.read_codes(cells)
        self._cells, self._adata = cells, adata if is_anndata(adata) else None

    def ask(self, adata: Any = None) -> QuestionCells:
        """The cells of `adata` (None: the model's own) in the form that questions need."""
        if not self.is_trained:
            warnings.warn("the model is not trained: its results mean little", UserWarning, stacklevel=4)
        if adata is not None and adata is not self._adata:
            return open_question_cells(adata, self.run)
        if (cells := self._open_own()) is None:
            raise QueryError("The model has no data of its own: pass the data as adata=...")
        return cells

    def _open_own(self) -> QuestionCells | None:
        """The model's own data; for an AnnData the cells, counts and columns that it has now."""
        if self._adata is not None:
            self._cells = reopen_question_cells(self._adata, self.run, self._cells)
        return self._cells

    def to_device(self, device: Any) -> None:
        """Use this device from now on: 'auto', 'cpu' or 'cuda'; on another device, draws start again from the seed."""
        name = str(device)
        self.device = choose_device("cuda" if name == "gpu" or name.isdigit() else name.split(":")[0])
        self.run.model.to(self.device).eval()
        if getattr(self, "generator", None) is None or self.generator.device.type != self.device.type:
            self.generator = Generator(self.device).manual_seed(self.seed)


def _open_reference(model: "str | Path | SCVI") -> TrainedRun:
    return model.run if isinstance(model, SCVI) else open_model(model)
