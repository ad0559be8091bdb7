"""What scvi-tools saves beside a model's weights: its options and the columns it uses; reading and writing them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from atlasvi.engine.model.covariates import (
    BATCH,
    CATEGORIES,
    CONTINUOUS,
    LABELS,
    Category,
    Setup,
    SetupKeys,
    to_category,
)
from atlasvi.engine.model.model_options import ModelOptions, ModelSettings
from atlasvi.engine.torch_files import PickledSoftplus
from atlasvi.loaders.errors import SourceError

SCVI_VERSION = "1.5.1"  # the version whose layout we write
SCVI_DEFAULTS: dict[str, Any] = {
    "n_hidden": 128,
    "n_latent": 10,
    "n_layers": 1,
    "dropout_rate": 0.1,
    "dispersion": "gene",
    "gene_likelihood": "zinb",
    "use_observed_lib_size": True,
    "latent_distribution": "normal",
    "log_variational": True,
    "encode_covariates": False,
    "deeply_inject_covariates": True,
    "batch_representation": "one-hot",
    "use_batch_norm": "both",
    "use_layer_norm": "none",
    "var_activation": "exp",
}
NAMED = (  # arguments in SCVI's signature; the others are in its **kwargs
    "n_hidden",
    "n_latent",
    "n_layers",
    "dropout_rate",
    "dispersion",
    "gene_likelihood",
    "use_observed_lib_size",
    "latent_distribution",
)
WITHOUT_EFFECT = ("extra_payload_autotune", "registry", "use_gpu")


def read_options(init_params: Mapping[str, Any], file: str) -> ModelOptions:
    """The options that a model was made with. Raises SourceError with the name of an option that we do not have."""
    arguments = dict(init_params["non_kwargs"])
    for nested in init_params["kwargs"].values():  # nested under the name of the variadic argument
        arguments.update(nested)
    embedding = dict(arguments.pop("batch_embedding_kwargs", None) or {})
    options = {**SCVI_DEFAULTS, "embedding_dim": embedding.pop("embedding_dim", 5)}
    for name, value in arguments.items():
        if name == "var_activation":
            options[name] = name_activation(value, file)
        elif name in SCVI_DEFAULTS:
            options[name] = value
        elif name not in WITHOUT_EFFECT and value:
            raise SourceError(f"{file}: the model was made with {name} = {value!r}, which atlasvi does not support.")
    if embedding:
        raise SourceError(f"{file}: batches are embedded with {', '.join(embedding)}, which atlasvi does not support.")
    return ModelOptions.model_validate(options)


def read_setup(registry: Mapping[str, Any], file: str) -> Setup:
    """The columns and categories that a model uses. Raises SourceError if it is no SCVI model."""
    if registry.get("model_name") != "SCVI":
        raise SourceError(f"{file}: this is a {registry.get('model_name')} model: only SCVI models can be read.")
    setup_args, fields = registry["setup_args"], registry["field_registries"]
    states = {name: field.get("state_registry") or {} for name, field in fields.items()}
    dtypes: dict[str, str] = {}

    def read_categories(key: str, values: np.ndarray) -> list[Category]:
        values = np.asarray(values)
        if values.dtype.kind in "iufb":
            dtypes[key] = values.dtype.name
        return [to_category(value) for value in values]

    further = states.get("extra_categorical_covs", {})
    columns = [str(key) for key in further.get("field_keys", ())]
    numbers = [str(key) for key in states.get("extra_continuous_covs", {}).get("columns", ())]
    keys = SetupKeys.from_arguments({**setup_args, CATEGORIES.key: columns, CONTINUOUS.key: numbers})
    categories = {
        kind.code: {column: read_categories(column, states[kind.code]["categorical_mapping"])}
        for kind, column in ((BATCH, keys.batch_key), (LABELS, keys.labels_key))
        if column is not None
    }
    if columns:
        categories[CATEGORIES.code] = {
            column: read_categories(column, further["mappings"][column]) for column in columns
        }
    n_cells = int(states["X"].get("n_obs", 0))
    return Setup(
        keys=keys, categories=categories, category_dtypes=dtypes, layer=setup_args.get("layer"), n_cells=n_cells
    )


def name_activation(activation: Any, where: str) -> str:
    """The name of an activation in scvi-tools' form: None, torch.exp, torch.nn.Softplus() or torch's softplus function.

    Raises SourceError for another function; `where` begins its message.
    """
    if activation in (None, "exp", torch.exp):
        return "exp"
    if activation in ("softplus", F.softplus) or (
        isinstance(activation, nn.Softplus | PickledSoftplus) and (activation.beta, activation.threshold) == (1, 20)
    ):
        return "softplus"
    raise SourceError(f"{where}: var_activation {activation!r} is not supported: exp and softplus are.")


def write_init_params(settings: ModelSettings) -> dict[str, Any]:
    """The arguments of SCVI, in the form that scvi-tools saves."""
    options = {name: getattr(settings, name) for name in SCVI_DEFAULTS}
    further = {name: value for name, value in options.items() if name not in NAMED and value != SCVI_DEFAULTS[name]}
    if "var_activation" in further:
        further["var_activation"] = nn.Softplus()
    if settings.embeds_batch:
        further["batch_embedding_kwargs"] = {"embedding_dim": settings.embedding_dim}
    return {"kwargs": {"kwargs": further}, "non_kwargs": {name: options[name] for name in NAMED}}


def write_registry(setup: Setup, settings: ModelSettings, genes: list[str]) -> dict[str, Any]:
    """The registry of a model, with which scvi-tools opens full data and, for an observed library, minified data."""
    keys = setup.keys
    counts = {"n_obs": setup.n_cells, "n_vars": len(genes), "column_names": np.array(genes, object)}
    place = "layers" if setup.layer else "X"
    fields = {"X": _field(place, setup.layer, counts, n_vars=len(genes), n_cells=setup.n_cells)}
    for name, key, categories in (
        ("batch", keys.batch_key, setup.batch_categories),
        ("labels", keys.labels_key, setup.labels_categories),
    ):
        mapping = np.zeros(1, np.int64) if key is None else _categories(setup, key, categories)
        state: dict[str, Any] = {"categorical_mapping": mapping, "original_key": key or f"_scvi_{name}"}
        fields[name] = _field("obs", f"_scvi_{name}", state, **{f"n_{name}": len(mapping)})
    fields["size_factor"] = _field("obs", keys.size_factor_key, {}) if keys.size_factor_key else _empty_field()
    further = {key: _categories(setup, key, names) for key, names in setup.categorical_covariates.items()}
    state = {"mappings": further, "field_keys": list(further), "n_cats_per_key": [len(m) for m in further.values()]}
    fields["extra_categorical_covs"] = _joint_field("extra_categorical_covs", state, len(further))
    columns = {"columns": np.array(keys.continuous_covariate_keys, object)}
    fields["extra_continuous_covs"] = _joint_field("extra_continuous_covs", columns, len(columns["columns"]))
    if not settings.has_latent_library:
        for name in ("latent_qzm", "latent_qzv"):
            state = {"column_names": np.arange(settings.n_latent)}
            fields[name] = _field("obsm", f"scvi_{name}", state, **{f"n_{name}": settings.n_latent})
        fields["observed_lib_size"] = _field("obs", "observed_lib_size", {})
        fields["minify_type"] = _field("uns", "_scvi_adata_minify_type", {})
    return {
        "scvi_version": SCVI_VERSION,
        "model_name": "SCVI",
        "setup_args": {"layer": setup.layer, **keys.as_arguments()},
        "field_registries": fields,
        "setup_method_name": "setup_anndata",
    }


def _field(name: str, key: str | None, state: dict[str, Any], **statistics: int) -> dict[str, Any]:
    place = {"attr_name": name, "attr_key": key}
    return {"data_registry": place, "state_registry": state, "summary_stats": statistics}


def _empty_field(**statistics: int) -> dict[str, Any]:
    return {"data_registry": {}, "state_registry": {}, "summary_stats": statistics}


def _joint_field(name: str, state: dict[str, Any], n: int) -> dict[str, Any]:
    """Several columns of obs, which scvi-tools joins into one array in obsm."""
    return _field("obsm", f"_scvi_{name}", state, **{f"n_{name}": n}) if n else _empty_field(**{f"n_{name}": 0})


def _categories(setup: Setup, key: str, categories: list[Category]) -> np.ndarray:
    """Categories in the dtype of the column, because scvi-tools looks the column's values up among them."""
    values = np.array([*categories, None], object)[:-1]
    dtype = setup.category_dtypes.get(key)
    if dtype is None:
        return values
    try:
        typed = values.astype(dtype)
    except OverflowError:  # a query mapping may have added larger numbers
        return values
    return typed if (typed == values).all() else values
