"""torch's Adam and AdamW without torch's compiler, which their methods import: 1.3 s and 900 modules of every run.

torch wraps the methods, so that its compiler leaves them alone where a model is compiled. Ours is not compiled.
"""

from collections.abc import Callable
from inspect import unwrap
from typing import Any

import torch
from torch.optim import Optimizer


class _WithoutCompiler(Optimizer):
    """Methods of torch's optimizers as they are inside of what wraps them; without such a wrapper, as they are."""

    add_param_group = unwrap(Optimizer.add_param_group)
    zero_grad = unwrap(Optimizer.zero_grad)
    state_dict = unwrap(Optimizer.state_dict)
    load_state_dict = unwrap(Optimizer.load_state_dict)


class Adam(_WithoutCompiler, torch.optim.Adam):
    """torch's Adam: the same updates and the same state."""

    step: Any = torch.no_grad()(unwrap(torch.optim.Adam.step))


class AdamW(_WithoutCompiler, torch.optim.AdamW):
    """torch's AdamW: the same updates and the same state."""

    step: Any = torch.no_grad()(unwrap(torch.optim.AdamW.step))


OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {"Adam": Adam, "AdamW": AdamW}
"""By their name in the settings."""
