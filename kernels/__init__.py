"""atlasvi.kernels: the arithmetic of scVI, usable without the rest; each next to a plain reference.

nb_log_prob        negative binomial log-probability, elementwise, exact: the reference     likelihood.py
nb_nll_from_logits decoder logits + sparse counts -> negative log-likelihood of each cell   likelihood.py
log1p_linear       log1p of sparse counts times a weight, without a dense input             sparse_layer.py
"""

from atlasvi.kernels.likelihood import nb_log_prob, nb_nll_from_logits
from atlasvi.kernels.sparse_layer import log1p_linear

__all__ = ["log1p_linear", "nb_log_prob", "nb_nll_from_logits"]
