"""Going on with a run: only on the data and with the settings that it was started with."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from atlasvi.engine.configuration import SettingError, Settings
from atlasvi.engine.runs import CONFIG
from atlasvi.loaders.cells import CellData
from atlasvi.loaders.errors import SourceError


def fingerprint(data: CellData) -> dict[str, Any]:
    """What tells data apart: sizes, gene names, the first block of counts. Raises CountsError if that holds others.

    So counts of another layer, or the same cells in another order, are not taken for those that a run began with.
    """
    genes = "\n".join(map(str, data.genes)).encode()
    counts = b"".join(part.astype(np.int64).tobytes() for part in data.read_block(0).to_csr())
    return {
        "n_cells": data.n_cells,
        "n_genes": len(data.genes),
        "genes_sha256": hashlib.sha256(genes).hexdigest()[:16],
        "first_block_sha256": hashlib.sha256(counts).hexdigest()[:16],
    }


def read_saved(out: Path) -> dict[str, Any]:
    """The configuration that a run was started with. Raises SourceError if it is not there."""
    try:
        return json.loads((out / CONFIG).read_text())
    except (OSError, ValueError):
        raise SourceError(f"{out}: there is no run to go on with: start it without --resume.") from None


def merge_saved(
    out: Path, saved: Mapping[str, Any], asked: Mapping[str, Any], settings: Settings, data: CellData
) -> tuple[dict[str, Any], Settings]:
    """The saved configuration of a run to resume; `asked` and `settings` may repeat it, and need not say all of it.

    Raises SettingError if the data or what was given now differ from it.
    """
    now = {**fingerprint(data), **{key: value for key, value in asked.items() if value is not None}}
    now.update({key: getattr(settings, key) for key in settings.model_fields_set})
    was = {**saved, **saved["settings"]}
    for key, value in now.items():
        if was.get(key) != value:
            raise SettingError(
                f"{out}: the run was started with {key} = {was.get(key)!r}, and now it is {value!r}: resume it as it "
                "was, or start another run in another place."
            )
    return {key: saved[key] for key in asked}, Settings.model_validate(saved["settings"])
