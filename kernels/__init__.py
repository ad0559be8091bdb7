"""atlasvi.kernels: the arithmetic of scVI, usable on its own; each kernel has a plain reference.

log1p_linear       log1p of sparse counts (or the counts) times a weight, sparse throughout    sparse_layer.py
log1p_linear_transposed  the transposed counts times values of the cells                    sparse_layer.py
take_columns       a column of a parameter for each cell, by its code of a covariate        columns.py
norm_relu          bias, layer norm, ReLU and dropout of a hidden layer, in one pass       hidden_layer.py
decoder_nll        decoder's hidden state -> negative log-likelihood of each cell           decoder_loss.py
logits_nll         logits -> negative log-likelihood of each cell                           logits_loss.py
sample_counts      decoder's hidden state -> counts drawn from the likelihood, sparse      count_sampling.py
draw_normals       standard normal numbers, a function of seed, cell and draw alone        counter_random.py
nb_log_prob, zinb_log_prob, poisson_log_prob   elementwise, exact: the reference            reference.py
order_by_gene      sorts nonzeros by gene, once, for the gradient of log1p_linear on a GPU  gene_order.py
choose_backend     which implementation runs: 'cpu', 'triton' or 'torch'                   backends.py
"""

import atlasvi.kernels.numba_cache  # noqa: F401
from atlasvi.kernels.backends import choose_backend
from atlasvi.kernels.columns import take_columns
from atlasvi.kernels.count_sampling import sample_counts
from atlasvi.kernels.counter_random import draw_normals
from atlasvi.kernels.decoder_loss import Head, SparseCounts, decoder_nll
from atlasvi.kernels.gene_order import GeneOrder, order_by_gene
from atlasvi.kernels.hidden_layer import norm_relu
from atlasvi.kernels.logits_loss import logits_nll
from atlasvi.kernels.plain_counts import InvalidParametersError
from atlasvi.kernels.products import Precision
from atlasvi.kernels.reference import nb_log_prob, poisson_log_prob, zinb_log_prob
from atlasvi.kernels.sparse_layer import log1p_linear, log1p_linear_transposed

__all__ = [
    "GeneOrder",
    "Head",
    "InvalidParametersError",
    "Precision",
    "SparseCounts",
    "choose_backend",
    "decoder_nll",
    "draw_normals",
    "log1p_linear",
    "log1p_linear_transposed",
    "logits_nll",
    "nb_log_prob",
    "norm_relu",
    "order_by_gene",
    "poisson_log_prob",
    "sample_counts",
    "take_columns",
    "zinb_log_prob",
]
