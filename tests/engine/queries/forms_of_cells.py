"""One small model and its cells in every form that can be asked."""

from pathlib import Path
from typing import Any

import anndata

from atlasvi.engine import SCVI, ingest, minify, write_minified_h5ad
from atlasvi.engine.minified.minified_by_scvi_tools import open_minified
from tests.engine.api.small_models import make_adata, make_model


def make_forms(folder: Path, **options: Any) -> SCVI:
    """A model saved at `model`, its cells at cells.h5ad and cells.store, minified at x.mini and x.h5ad."""
    adata = make_adata(60)
    adata.obs["n_counts"] = adata.X.sum(1).A1
    model = make_model(adata, epochs=1, **options)
    model.save(folder / "model")
    adata.write_h5ad(folder / "cells.h5ad")
    ingest(folder / "cells.h5ad", folder / "cells.store")
    minify(folder / "model", folder / "cells.h5ad", folder / "x.mini")
    write_minified_h5ad(folder / "x.mini", folder / "x.h5ad")
    return model


def open_form(folder: Path, form: str) -> Any:
    """What SCVI and `open_question_cells` take as data: `minified` and `counts` say where the cells are."""
    return {
        "minified store": lambda: folder / "x.mini",
        "minified store, opened": lambda: open_minified(folder / "x.mini"),
        "minified file": lambda: folder / "x.h5ad",
        "minified file, opened": lambda: open_minified(folder / "x.h5ad"),
        "minified AnnData": lambda: anndata.read_h5ad(folder / "x.h5ad"),
        "file": lambda: folder / "cells.h5ad",
        "AnnData": lambda: anndata.read_h5ad(folder / "cells.h5ad"),
        "cell store": lambda: folder / "cells.store",
    }[form]()


MINIFIED = ["minified store", "minified store, opened", "minified file", "minified file, opened", "minified AnnData"]
COUNTED = ["file", "AnnData", "cell store"]
