import subprocess
import sys

import pytest
import torch

from atlasvi.engine.training.optimizers import OPTIMIZERS

OPTIONS = {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-8, "fused": True}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_updates_and_state_are_those_of_torch_to_the_bit(name: str):
    ends = []
    for kind in (getattr(torch.optim, name), OPTIMIZERS[name]):
        generator = torch.Generator().manual_seed(0)
        weights = [torch.randn(5, 3, generator=generator, requires_grad=True) for _ in range(2)]
        groups = [{"params": weights[:1], "weight_decay": 0.5}, {"params": weights[1:], "weight_decay": 0.0}]
        optimizer = kind(groups, **OPTIONS)
        for step in range(4):
            optimizer.zero_grad(set_to_none=True)
            sum((weight**3).sum() for weight in weights).backward()
            optimizer.step()
            if step == 1:
                saved = optimizer.state_dict()
                optimizer = kind(groups, **OPTIONS)
                optimizer.load_state_dict(saved)
        ends.append((weights, optimizer.state_dict()))
    (theirs, their_state), (ours, our_state) = ends
    assert all(torch.equal(a, b) for a, b in zip(theirs, ours))
    assert their_state["param_groups"] == our_state["param_groups"]
    for number, state in their_state["state"].items():
        assert all(torch.equal(value, our_state["state"][number][key]) for key, value in state.items())


def test_a_step_does_not_import_the_compiler_of_torch():
    code = """
import sys, torch
from atlasvi.engine.training.optimizers import OPTIMIZERS
weight = torch.zeros(2, requires_grad=True)
for kind in OPTIMIZERS.values():
    optimizer = kind([weight], lr=torch.tensor(0.1), fused=True)
    optimizer.zero_grad()
    weight.sum().backward()
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
sys.exit("torch._dynamo" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
