"""atlasvi.engine: model, training, minified store, command line. In the order in which data meets it:

SCVI             train and ask a model through scvi-tools' methods api/scvi.py
simulate         an atlas whose true parameters are known                simulation.py
ingest           count files -> a cell store                       atlasvi.loaders
train            a cell store -> a run directory                   training/train.py (run_parts, training_loop, step)
map_onto         new cells onto a trained model -> a run directory  training/map_onto.py
load_run         a run directory -> a model                        model/trained_run.py
load_scvi_tools  a model that scvi-tools saved -> a model          scvi_tools/model_directories.py
save_scvi_tools  a model -> a directory that scvi-tools opens      scvi_tools/model_directories.py
minify           run + data -> the posterior of every cell         minified/minify.py
open_minified    a minified store, or minified data of scvi-tools  minified/minified_by_scvi_tools.py
write_minified_h5ad  a minified store -> one file                  minified/minified_h5ad.py
MinifiedStore    a minified store, opened                          minified/minified_store.py
write_hub_folder  a model and its minified cells -> a folder of scvi-tools' hub  hub/hub_folder.py
push, pull       such a folder to and from another place           hub/transfer.py
read_latent, read_expression  answer from a minified store          queries/minified_queries.py
OpenedQuestion   a model and the cells to ask it about, opened       queries/opened_question.py
markers          marker genes of each label of an obs column        queries/markers.py
compare          genes that differ between two selections of cells  queries/markers.py
aggregate        mean decoded expression of groups of cells         queries/aggregate.py
similar_genes    genes whose expression correlates with given ones  queries/similar_genes.py
choose_cells     the cells that an answer is for                    queries/cell_choice.py
build_index      the latents of a minified store -> an index of neighbours  neighbours/build_index.py
find_neighbours  the nearest cells of chosen cells, or of new ones  queries/neighbours.py
annotate         labels of new cells from their neighbours          queries/annotation.py
embed            two coordinates for each cell, written into the store  queries/embed.py
plot_embedding   a picture of the cells at these coordinates         plots/embedding_plot.py
plot_groups      a dot plot or heat map of genes in groups of cells  plots/group_plot.py
plot_losses      a picture of the losses of runs                     plots/loss_plot.py
draw_latent      a picture of the latent space                     plots/latent_picture.py
make_card        how well drawn counts agree with real ones: a card  card/make_card.py
write_card_folder  the same, with its page and what the hub needs    hub/card_folder.py
check_card       whether a card still holds                          card/card_check.py

Subpackages; each imports only those that follow it: cli, api, hub, card, service, plots, queries, neighbours, minified,
training, scvi_tools, distributed, model. A module is imported only when it is first used.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

# Unless the user has set it, and before torch is loaded: how long torch's threads spin while they wait for each other.
# The default is milliseconds; with one other busy thread on two cores (our own loader, another program), a step of
# 12 ms then took 700 ms. Spinning for about ten microseconds keeps the speed of a quiet machine and half of it on
# a busy one; without spinning, small steps on a quiet machine have half the speed.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

if TYPE_CHECKING:  # what editors and mypy see
    from atlasvi.engine.api.scvi import SCVI as SCVI
    from atlasvi.engine.card.card_check import check_card as check_card
    from atlasvi.engine.card.make_card import make_card as make_card
    from atlasvi.engine.hub.card_folder import write_card_folder as write_card_folder
    from atlasvi.engine.hub.hub_folder import write_hub_folder as write_hub_folder
    from atlasvi.engine.hub.transfer import pull as pull
    from atlasvi.engine.hub.transfer import push as push
    from atlasvi.engine.minified.minified_by_scvi_tools import open_minified as open_minified
    from atlasvi.engine.minified.minified_h5ad import write_minified_h5ad as write_minified_h5ad
    from atlasvi.engine.minified.minified_store import MinifiedStore as MinifiedStore
    from atlasvi.engine.minified.minify import minify as minify
    from atlasvi.engine.model.trained_run import load_run as load_run
    from atlasvi.engine.neighbours.build_index import build_index as build_index
    from atlasvi.engine.plots.embedding_plot import plot_embedding as plot_embedding
    from atlasvi.engine.plots.group_plot import plot_groups as plot_groups
    from atlasvi.engine.plots.latent_picture import draw_latent as draw_latent
    from atlasvi.engine.plots.loss_plot import plot_losses as plot_losses
    from atlasvi.engine.queries.aggregate import aggregate as aggregate
    from atlasvi.engine.queries.annotation import annotate as annotate
    from atlasvi.engine.queries.cell_choice import choose_cells as choose_cells
    from atlasvi.engine.queries.embed import embed as embed
    from atlasvi.engine.queries.markers import compare as compare
    from atlasvi.engine.queries.markers import markers as markers
    from atlasvi.engine.queries.minified_queries import read_expression as read_expression
    from atlasvi.engine.queries.minified_queries import read_latent as read_latent
    from atlasvi.engine.queries.neighbours import find_neighbours as find_neighbours
    from atlasvi.engine.queries.opened_question import OpenedQuestion as OpenedQuestion
    from atlasvi.engine.queries.similar_genes import similar_genes as similar_genes
    from atlasvi.engine.scvi_tools.model_directories import load_scvi_tools as load_scvi_tools
    from atlasvi.engine.scvi_tools.model_directories import save_scvi_tools as save_scvi_tools
    from atlasvi.engine.simulation import simulate as simulate
    from atlasvi.engine.training.map_onto import map_onto as map_onto
    from atlasvi.engine.training.train import train as train
    from atlasvi.loaders.ingestion.ingest import ingest as ingest

_PLACES = {
    "SCVI": "atlasvi.engine.api.scvi",
    "simulate": "atlasvi.engine.simulation",
    "ingest": "atlasvi.loaders.ingestion.ingest",
    "train": "atlasvi.engine.training.train",
    "map_onto": "atlasvi.engine.training.map_onto",
    "load_run": "atlasvi.engine.model.trained_run",
    "load_scvi_tools": "atlasvi.engine.scvi_tools.model_directories",
    "save_scvi_tools": "atlasvi.engine.scvi_tools.model_directories",
    "open_minified": "atlasvi.engine.minified.minified_by_scvi_tools",
    "write_minified_h5ad": "atlasvi.engine.minified.minified_h5ad",
    "minify": "atlasvi.engine.minified.minify",
    "MinifiedStore": "atlasvi.engine.minified.minified_store",
    "write_card_folder": "atlasvi.engine.hub.card_folder",
    "write_hub_folder": "atlasvi.engine.hub.hub_folder",
    "push": "atlasvi.engine.hub.transfer",
    "pull": "atlasvi.engine.hub.transfer",
    "read_latent": "atlasvi.engine.queries.minified_queries",
    "read_expression": "atlasvi.engine.queries.minified_queries",
    "OpenedQuestion": "atlasvi.engine.queries.opened_question",
    "markers": "atlasvi.engine.queries.markers",
    "compare": "atlasvi.engine.queries.markers",
    "aggregate": "atlasvi.engine.queries.aggregate",
    "similar_genes": "atlasvi.engine.queries.similar_genes",
    "choose_cells": "atlasvi.engine.queries.cell_choice",
    "build_index": "atlasvi.engine.neighbours.build_index",
    "find_neighbours": "atlasvi.engine.queries.neighbours",
    "annotate": "atlasvi.engine.queries.annotation",
    "embed": "atlasvi.engine.queries.embed",
    "plot_embedding": "atlasvi.engine.plots.embedding_plot",
    "plot_groups": "atlasvi.engine.plots.group_plot",
    "plot_losses": "atlasvi.engine.plots.loss_plot",
    "draw_latent": "atlasvi.engine.plots.latent_picture",
    "make_card": "atlasvi.engine.card.make_card",
    "check_card": "atlasvi.engine.card.card_check",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted(_PLACES)
