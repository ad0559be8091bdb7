"""What only the Triton backend promises; that its numbers are right is shown where those of all backends are."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from atlasvi.kernels import Head, SparseCounts, choose_backend, decoder_nll, log1p_linear, order_by_gene
from tests.kernels.cases import BACKENDS, Case, assert_agree, make_case, run

COMPILER = Path(__file__).with_name("compile_for_h100.py")


@pytest.mark.parametrize("backend", BACKENDS[1:])
@pytest.mark.parametrize(
    ("likelihood", "dispersion", "n_cells", "n_genes"),
    [
        ("nb", "gene", 40, 40),
        ("nb", "gene", 1, 2_100),
        pytest.param("zinb", "gene-cell", 40, 20, marks=pytest.mark.slow),
        pytest.param("nb", "gene-batch", 40, 40, marks=pytest.mark.slow),
    ],
)
def test_tiles_and_blocks_of_genes_add_up(
    backend: str, likelihood: str, dispersion: str, n_cells: int, n_genes: int, monkeypatch: pytest.MonkeyPatch
):
    from atlasvi.kernels import triton_tile

    case = make_case(likelihood, dispersion, True, n_cells, n_genes, 0)
    monkeypatch.setattr(triton_tile, "TILE_BYTES", 0)
    assert triton_tile.Sweep.tile_cells(n_genes, 1) == 32
    assert_agree(run(case, backend), run(case, "torch", torch.float64), 1e-4)


@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_sums_are_the_same_at_every_run(backend: str):
    for dispersion in ("gene", "gene-batch"):
        case = make_case("nb", dispersion, True, 2, 40, 0)
        once, again = run(case, backend), run(case, backend)
        assert all(torch.equal(once[name], again[name]) for name in once)


@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_bf16_rounds_the_factors_of_products_and_nothing_else(backend: str):
    case = make_case("zinb", "gene", True, 3, 40, 0)
    got = run(case, backend, precision="bf16")
    for name in ("hidden", "weight", "dropout_weight"):
        case.tensors[name] = case.tensors[name].bfloat16().float()
    exact = run(case, "torch", torch.float64)
    assert_agree({"loss": got["loss"], "log_theta": got["log_theta"]}, {n: exact[n] for n in ("loss", "log_theta")})
    for name in exact:  # through slopes in bfloat16: eight bits
        assert (got[name] - exact[name]).norm() < 2**-8 * exact[name].norm(), name
        assert got[name].dtype == torch.float32


class RefuseToWait(TorchDispatchMode):
    """Raises where torch would wait for a device to know a value, or a size that depends on one."""

    WAITING = (
        "_local_scalar_dense",
        "nonzero",
        "is_nonzero",
        "equal",
        "masked_select",
        "_unique2",
        "repeat_interleave",
    )

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        indexed_by_mask = name == "index" and any(t is not None and t.dtype == torch.bool for t in args[1])
        assert name not in self.WAITING, name
        assert not indexed_by_mask, name
        return func(*args, **(kwargs or {}))


def step(case: Case, weight: Tensor, backend: str, expected_grad: float | None) -> Tensor:
    """First layer, decoder and loss, backward: what a training step asks of the kernels."""
    cells, t = case.cells, case.tensors
    order = order_by_gene(cells.indptr, cells.indices, len(weight), backend=backend)
    first = log1p_linear(cells.indptr, cells.indices, cells.counts, weight, order=order, backend=backend)
    loss = decoder_nll(
        t["hidden"] + first,
        Head(t["weight"], t["bias"]),
        SparseCounts(cells.indptr, cells.indices, cells.counts),
        case.library,
        t["log_theta"],
        theta_rows=case.theta_rows,
        expected_grad=expected_grad,
        backend=backend,
    ).mean()
    loss.backward()
    return loss.detach()


@pytest.mark.parametrize(("dispersion", "expected_grad"), [("gene", 1 / 3), ("gene-batch", 1 / 3), ("gene", None)])
def test_nothing_waits_for_the_device(dispersion: str, expected_grad: float | None):
    if torch.cuda.is_available():
        pytest.skip("the capture of a CUDA graph shows the same")
    case = make_case("nb", dispersion, True, 3, 40, 0)
    for tensor in case.tensors.values():
        tensor.requires_grad_()
    with RefuseToWait():
        step(case, torch.ones(40, 8, requires_grad=True), "triton", expected_grad)
    with pytest.raises(AssertionError, match="_local_scalar_dense"), RefuseToWait():
        bool(case.library.sum())


@pytest.mark.gpu
@pytest.mark.parametrize("dispersion", ["gene", "gene-batch"])
def test_a_cuda_graph_replays_the_step_on_another_minibatch(dispersion: str):
    cases = [make_case("nb", dispersion, True, 64, 500, seed).to("cuda") for seed in (0, 1)]
    capacity = max(len(case.cells.indices) for case in cases) + 7
    static, weight = make_case("nb", dispersion, True, 64, 500, 0).to("cuda"), torch.ones(500, 8, device="cuda")
    cells = static.cells
    static.cells = SparseCounts(
        cells.indptr.clone(),
        torch.zeros(capacity, dtype=torch.int32, device="cuda").to(torch.uint16),
        torch.zeros(capacity, dtype=torch.int32, device="cuda"),
    )
    leaves = [weight, *static.tensors.values()]
    for tensor in leaves:
        tensor.requires_grad_()

    def load(case: Case) -> None:
        with torch.no_grad():
            static.library.copy_(case.library)
            if static.theta_rows is not None and case.theta_rows is not None:
                static.theta_rows.copy_(case.theta_rows)
            for name, tensor in case.tensors.items():
                static.tensors[name].copy_(tensor)
            for name in ("indptr", "indices", "counts"):
                source = getattr(case.cells, name)
                getattr(static.cells, name)[: len(source)].copy_(source)

    def run_step() -> list[Tensor]:
        for tensor in leaves:
            tensor.grad = None
        loss = step(static, weight, "triton", 1 / 64)
        return [loss, *(tensor.grad for tensor in leaves)]

    load(cases[0])
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run_step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run_step()
    for case in reversed(cases):
        load(case)
        graph.replay()
        replayed = [tensor.clone() for tensor in captured]
        assert all(torch.equal(a, b) for a, b in zip(replayed, run_step()))


def compile_for_h100(*arguments: str) -> str:
    """What the compiler says of the kernels of every option asked for; they are not run."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, COMPILER, *arguments], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_kernels_compile_for_an_h100(tmp_path: Path):
    """The interpreter lets pass what the compiler does not."""
    pytest.importorskip("triton")
    compiled = compile_for_h100(str(tmp_path), "nb", "gene", "softmax")
    assert "nonzeros_kernel" in compiled
    assert "draw_kernel" in compiled


@pytest.mark.slow
def test_kernels_of_all_options_compile_for_an_h100(tmp_path: Path):
    pytest.importorskip("triton")
    compiled = compile_for_h100(str(tmp_path))
    assert compiled.count("slopes_kernel") >= 14
    assert compiled.count("draw_kernel") >= 14


def test_the_backend_is_chosen_by_device_and_says_what_it_needs(monkeypatch: pytest.MonkeyPatch):
    from atlasvi.kernels import backends

    monkeypatch.delenv("ATLASVI_KERNELS", raising=False)
    monkeypatch.setattr(backends, "_has_triton", lambda: True)
    assert choose_backend(torch.device("cpu")) == "cpu"
    assert choose_backend(torch.device("cuda")) == "triton"
    assert choose_backend(torch.device("cuda"), "torch") == "torch"
    assert choose_backend(torch.device("mps")) == "torch"
    assert choose_backend(torch.device("cpu"), dtype=torch.float64) == "torch"
    with pytest.raises(ValueError, match="compute in float32"):
        choose_backend(torch.device("cpu"), "cpu", torch.float64)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(ValueError, match="run on CUDA, not on cpu"):
        choose_backend(torch.device("cpu"), "triton")
    monkeypatch.setattr(backends, "_has_triton", lambda: False)
    assert choose_backend(torch.device("cuda")) == "torch"
    with pytest.raises(ValueError, match="which is not installed"):
        choose_backend(torch.device("cuda"), "triton")
