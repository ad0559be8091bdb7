"""atlasvi.engine: model, training, minified store, command line. In the order in which data meets it:

SCVI             all of it with scvi-tools' face                   scvi.py (questions.py)
simulate         an atlas of known truth                         simulation.py
ingest           count files -> a cell store                     atlasvi.loaders
train            a cell store -> a run directory                 training.py (trainer, configuration, splits)
load_run         a run directory -> a model                      runs.py
load_scvi_tools  a model that scvi-tools saved -> a model        scvi_files.py
save_scvi_tools  a model -> a directory that scvi-tools opens    scvi_files.py
minify           run + data -> the posterior of every cell       posterior.py, minified.py
open_minified    a minified store, or minified data of scvi-tools  scvi_minified.py
write_minified_h5ad  a minified store -> one file                minified.py
MinifiedStore    questions without the counts                    queries.py
draw_latent      a picture of the latent space                   picture.py

Nothing is imported before it is used.
"""

import importlib
import os
from typing import Any

# Before torch is loaded, unless the user has set it: for how long torch's threads spin while they wait for each other.
# By default that is milliseconds, and beside one other busy thread on two cores (our own loader's, a neighbour's)
# a step of 12 ms then took 700. Spinning for some ten microseconds keeps the speed of a quiet machine and half of it on
# a busy one; not spinning at all costs half the speed of small steps on a quiet machine.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

_PLACES = {
    "SCVI": "atlasvi.engine.scvi",
    "simulate": "atlasvi.engine.simulation",
    "ingest": "atlasvi.loaders.ingestion",
    "train": "atlasvi.engine.training",
    "load_run": "atlasvi.engine.runs",
    "load_scvi_tools": "atlasvi.engine.scvi_files",
    "save_scvi_tools": "atlasvi.engine.scvi_files",
    "open_minified": "atlasvi.engine.scvi_minified",
    "write_minified_h5ad": "atlasvi.engine.minified",
    "minify": "atlasvi.engine.posterior",
    "MinifiedStore": "atlasvi.engine.minified",
    "read_latent": "atlasvi.engine.queries",
    "read_expression": "atlasvi.engine.queries",
    "choose_cells": "atlasvi.engine.queries",
    "draw_latent": "atlasvi.engine.picture",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted(_PLACES)
