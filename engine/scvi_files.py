"""Models that scvi-tools saved, read without scvi-tools and without running code that a pickle names.

A `model.pt` is a zip archive of torch: a pickle that refers to tensors kept as raw bytes beside it. We read the pickle
with an unpickler that lets through the few types such a file needs and refuses every other by name; what it builds are
dictionaries, lists, text, numbers and arrays.
"""

import codecs
import collections
import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from atlasvi.engine.model import SCVI, ModelSettings, model_from_weights
from atlasvi.engine.runs import TrainedRun
from atlasvi.loaders.errors import SourceError

STORAGES = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


def load_scvi_tools(path: str | Path) -> TrainedRun:
    """A model that scvi-tools saved (its directory, or the `model.pt` in it), ready for inference.

    Settings so far: those of the Tabula Sapiens model card (NB, dispersion gene, layer norm, covariates deeply
    injected, observed library size), any sizes. Raises SourceError if the file is not there, is no
    such model, is damaged, names a type that it should not, or was made with other settings; nothing of it is executed.
    """
    path = Path(path)
    file = path / "model.pt" if path.is_dir() else path
    content = read_torch_file(file)
    try:
        attributes, weights = content["attr_dict"], content["model_state_dict"]
        registry = attributes["registry_"]
        settings = {**attributes["init_params_"]["non_kwargs"], **_flatten(attributes["init_params_"]["kwargs"])}
        _check_settings(settings, registry, file)
        batch = registry["field_registries"]["batch"]["state_registry"]
        labels = registry["field_registries"]["labels"]["state_registry"]
        categories = [str(name) for name in batch["categorical_mapping"]]
        model = _translate(weights, settings, len(content["var_names"]), len(categories))
        return TrainedRun(
            model,
            [str(gene) for gene in content["var_names"]],
            batch["original_key"] if len(categories) > 1 else None,
            categories if len(categories) > 1 else [],
            registry["setup_args"].get("labels_key"),
            [str(name) for name in labels["categorical_mapping"]],
        )
    except (KeyError, TypeError, AttributeError, RuntimeError, ValueError) as error:
        if isinstance(error, SourceError):
            raise
        raise SourceError(f"{file}: not a model of scvi-tools as 1.x saves it ({error!r}).") from error


def _flatten(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Settings that scvi-tools keeps one level down, under the name of its variadic argument."""
    return {**kwargs, **kwargs.get("kwargs", {}), **kwargs.get("model_kwargs", {})}


def _check_settings(settings: dict[str, Any], registry: dict[str, Any], file: Path) -> None:
    """Raises SourceError for settings that our model does not have."""
    if registry.get("model_name") != "SCVI":
        raise SourceError(f"{file}: a {registry.get('model_name')} model; only SCVI is read.")
    needed = {
        "gene_likelihood": ("zinb", "nb"),
        "dispersion": ("gene", "gene"),
        "latent_distribution": ("normal", "normal"),
        "use_layer_norm": ("none", "both"),
        "use_batch_norm": ("both", "none"),
        "encode_covariates": (False, True),
        "deeply_inject_covariates": (True, True),
        "use_observed_lib_size": (True, True),
        "log_variational": (True, True),
        "batch_representation": ("one-hot", "one-hot"),
    }
    for name, (default, ours) in needed.items():
        if (found := settings.get(name, default)) != ours:
            raise SourceError(f"{file}: the model has {name} = {found!r}; so far only {ours!r} is read.")
    for field in ("extra_categorical_covs", "extra_continuous_covs", "size_factor"):
        if registry["field_registries"].get(field, {}).get("state_registry"):
            raise SourceError(
                f"{file}: the model has {field.replace('_', ' ')}; so far only a batch covariate is read."
            )


def _translate(weights: dict[str, np.ndarray], settings: dict[str, Any], n_genes: int, n_batches: int) -> SCVI:
    """scvi-tools' state dictionary as our model; parameters that the settings never use are left behind."""
    sizes: dict[str, Any] = {
        "n_hidden": 128,
        "n_latent": 10,
        "n_layers": 1,
        "dropout_rate": 0.1,
    }  # scvi-tools' defaults
    sizes.update({name: settings[name] for name in sizes if name in settings})
    ours = ModelSettings(n_genes=n_genes, n_batches=n_batches, **sizes)
    renamed = {"log_theta": weights["px_r"]}

    def layer(theirs: str, name: str, n_in: int, transpose: bool = False) -> None:
        weight = weights[f"{theirs}.0.weight"]
        renamed[f"{name}.weight"] = weight[:, :n_in].T if transpose else weight[:, :n_in]
        renamed[f"{name}.bias"] = weights[f"{theirs}.0.bias"]
        if n_batches > 1:
            renamed[f"{name}.batch"] = weight[:, n_in:].T

    layer("z_encoder.encoder.fc_layers.Layer 0", "encoder.first", n_genes, transpose=True)
    for k in range(1, ours.n_layers):
        layer(f"z_encoder.encoder.fc_layers.Layer {k}", f"encoder.layers.{k - 1}", ours.n_hidden)
    for k in range(ours.n_layers):
        layer(f"decoder.px_decoder.fc_layers.Layer {k}", f"decoder.layers.{k}", ours.n_hidden if k else ours.n_latent)
    for theirs, name in (
        ("z_encoder.mean_encoder", "encoder.mean"),
        ("z_encoder.var_encoder", "encoder.log_variance"),
        ("decoder.px_scale_decoder.0", "decoder.logits"),
    ):
        for part in ("weight", "bias"):
            renamed[f"{name}.{part}"] = weights[f"{theirs}.{part}"]
    return model_from_weights(ours.model_dump(), {name: values.copy() for name, values in renamed.items()})


def read_torch_file(path: str | Path) -> Any:
    """The content of a file that torch.save wrote; tensors become numpy arrays.

    Raises SourceError if it is not there or damaged, or if its pickle names a type that is not let through.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            pickles = [name for name in archive.namelist() if name.endswith("data.pkl")]
            if len(pickles) != 1:
                raise SourceError(f"{path}: not a file that torch.save wrote (it holds no data.pkl).")
            root = pickles[0].removesuffix("data.pkl")
            return _TensorUnpickler(io.BytesIO(archive.read(pickles[0])), archive, root, str(path)).load()
    except FileNotFoundError:
        raise SourceError(f"{path}: there is no such file.") from None
    except SourceError:
        raise
    except Exception as error:  # a damaged pickle fails in any way it likes
        raise SourceError(f"{path}: damaged or cut short, or not a file of torch ({error}): copy it again.") from error


class _Storage:
    """Names a dtype in the pickle."""

    def __init__(self, dtype: type) -> None:
        self.dtype = np.dtype(dtype)


class _TensorUnpickler(pickle.Unpickler):
    """Builds plain values and arrays; a global that is not in its list is refused by name."""

    def __init__(self, content: io.BytesIO, archive: zipfile.ZipFile, root: str, path: str) -> None:
        super().__init__(content)
        self._archive, self._root, self._path = archive, root, path

    def find_class(self, module: str, name: str) -> Any:
        """The few globals that such a file needs."""
        allowed: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("collections", "defaultdict"): _plain_defaultdict,
            ("_codecs", "encode"): _encode_latin1,
            ("numpy", "dtype"): _PickledDtype,
            ("numpy", "ndarray"): "numpy.ndarray",  # a name: the file has no need to call it
            ("numpy._core.multiarray", "_reconstruct"): _empty_array,
            ("numpy.core.multiarray", "_reconstruct"): _empty_array,
            ("builtins", "dict"): dict,
            ("builtins", "bytes"): bytes,
            ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
        }
        module = {"__builtin__": "builtins"}.get(module, module)  # its name in pickles of protocol 2
        if (module, name) in allowed:
            return allowed[module, name]
        if module == "torch" and name in STORAGES:
            return _Storage(STORAGES[name])
        raise SourceError(
            f"{self._path}: its pickle names {module}.{name}, which a model of scvi-tools has no need of; the file was "
            "not read, and nothing in it was run."
        )

    def persistent_load(self, pid: Any) -> np.ndarray:
        """The raw values of a tensor, from the archive."""
        kind, storage, key, _, n_values = pid
        if kind != "storage" or not isinstance(storage, _Storage):
            raise pickle.UnpicklingError(f"unknown reference {pid!r}")
        values = np.frombuffer(self._archive.read(f"{self._root}data/{key}"), storage.dtype.newbyteorder("<"))
        if len(values) < n_values:
            raise pickle.UnpicklingError(f"storage {key} holds {len(values)} of {n_values} values")
        return values


def _rebuild_tensor(storage: np.ndarray, offset: int, size: tuple, stride: tuple, *rest: Any) -> np.ndarray:
    numbers = (offset, *size, *stride)
    reach = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if any(type(number) is not int or number < 0 for number in numbers) or (all(size) and reach >= len(storage)):
        raise pickle.UnpicklingError("a tensor reaches beyond its storage")
    strides = tuple(step * storage.itemsize for step in stride)
    return np.lib.stride_tricks.as_strided(storage[offset:], size, strides).copy()


def _plain_defaultdict(*arguments: Any) -> dict:
    """A dictionary: the factory that the file names is not called."""
    return {}


def _encode_latin1(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"unexpected encoding {encoding!r}")
    return codecs.encode(text, "latin1")


class _PickledDtype:
    """A numpy dtype as pickles describe it: a code such as 'f4', then a state of which only the byte order is taken.

    numpy's own would take flags from the file that make it read bytes as pointers.
    """

    def __init__(self, code: str, *flags: Any) -> None:
        self.dtype = np.dtype(str(code))
        if self.dtype.hasobject and self.dtype != object:
            raise pickle.UnpicklingError(f"unexpected dtype {code!r}")

    def __setstate__(self, state: tuple) -> None:
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class _PickledArray(np.ndarray):
    """A numpy array that checks what a pickle puts into it."""

    def __setstate__(self, state: tuple) -> None:
        _, shape, kind, fortran, content = state
        if not isinstance(content, list if kind.dtype == object else bytes):
            raise pickle.UnpicklingError(f"an array of {kind.dtype} holds {type(content).__name__}")
        super().__setstate__((1, shape, kind.dtype, bool(fortran), content))  # type: ignore[arg-type]


def _empty_array(kind: str, shape: tuple, code: bytes) -> np.ndarray:
    return _PickledArray((0,), "b")
