"""Stages on the CUDA kernels against PyTorch's own layers in float64 where small tests do not reach: the wide tile of
the 1x1 convolution, more than 64 tiles to merge, real layers. On a GPU as nets call them, and on the PTX machine as far
as it gets."""

from typing import NamedTuple

import pytest
import torch
from torch.utils._pytree import tree_map

from densenet_fast import backends
from densenet_fast.functional import dense_stage

from ..oracle import as_under_autocast, leaves_to, make_stage, parameters, require_grad, rms_error, stage
from ..rows import some
from .cases import MATHS


class Stage(NamedTuple):
    channels: int
    growths: tuple[int, ...]
    consumer: str
    n: int
    size: int  # of the images


def label(value) -> str:
    return f"{value.channels}+{len(value.growths)}-{value.consumer}-{value.n}x{value.size}"


# The ends of DenseNet-121's blocks at batch 32, its last block at 256, DenseNet-161's and DenseNet-BC's blocks.
REAL = [
    Stage(64, (), "stem", 32, 112),
    Stage(192, (32, 32), "transition", 32, 56),
    Stage(448, (32, 32), "transition", 64, 28),
    Stage(960, (32, 32), "transition", 32, 14),
    Stage(960, (32, 32), "head", 32, 7),
    Stage(960, (32, 32), "head", 256, 7),
    Stage(672, (48, 48), "transition", 16, 28),
    Stage(192, (12, 12), "transition", 64, 32),
]
# Of the 1x1 convolutions, on a device of one multiprocessor.
WIDE = Stage(72, (32,), "transition", 1, 12)
# A third level of reductions begins at 65 tiles: of 128 rows in the 1x1 convolutions, of 512 rows of x in the others.
MANY_TILES = [
    Stage(8, (4,), "transition", 1, 92),
    Stage(8, (), "head", 4, 92),
    Stage(8, (), "stem", 1, 260),
]


def example(made: Stage, dtype: torch.dtype, device: str):
    """Steps, x and a gradient of the output."""
    steps = as_under_autocast(make_stage(made.channels, made.growths, made.consumer), dtype)
    x = torch.randn(made.n, made.channels, made.size, made.size).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    steps, x = tree_map(lambda t: t.to(device) if isinstance(t, torch.Tensor) else t, (steps, x))
    with torch.no_grad():
        return steps, x, torch.randn_like(stage(x, *steps))


def values(run, steps, x, cotangent) -> list[torch.Tensor]:
    """The output and every gradient."""
    steps, x = require_grad(steps), x.clone().requires_grad_()
    y = run(x, *steps)
    return [y, *torch.autograd.grad(y, [x, *parameters(steps)], cotangent.to(y.dtype))]


def check(run, made: Stage, dtype: torch.dtype, device: str, seeds: int) -> None:
    """The median over seeds of RMS errors is at most twice that of PyTorch's layers."""
    errors = []
    for seed in range(seeds):
        torch.manual_seed(seed)
        steps, x, cotangent = example(made, dtype, device)
        exact = values(stage, leaves_to(steps, torch.float64), x.double(), cotangent)
        stock = values(stage, steps, x, cotangent)
        ours = values(run, steps, x, cotangent)
        errors.append([(rms_error(a, e), rms_error(b, e)) for a, b, e in zip(ours, stock, exact, strict=True)])
    for i in range(len(ours)):
        our, their = (sorted(of_seed[i][side] for of_seed in errors)[seeds // 2] for side in (0, 1))
        assert our <= 2 * their + torch.finfo(dtype).eps, f"value {i}: {our:.2e}, stock {their:.2e}"


def on_a_gpu(x, layers, consumer):
    return dense_stage(x, layers, consumer, backend="native").y


def on_ptx(x, layers, consumer):
    return dense_stage(x, layers, consumer, backend="eager").y


@pytest.fixture
def ptx(machine, monkeypatch):
    monkeypatch.setattr(backends, "operations", lambda *_: machine.operations)
    return machine


@pytest.mark.filterwarnings("ignore:.* does not have a deterministic implementation")  # PyTorch's maximum pooling
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("math", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("made", REAL, ids=label)
def test_real_layers_on_a_gpu(monkeypatch, made, math):
    """Errors, and the same bits twice."""
    monkeypatch.setattr(torch.backends.cudnn.conv, "fp32_precision", "ieee")
    torch.use_deterministic_algorithms(True, warn_only=True)
    check(on_a_gpu, made, MATHS[math].dtype, "cuda", seeds=3)
    arguments = example(made, MATHS[math].dtype, "cuda")
    assert all(map(torch.equal, values(on_a_gpu, *arguments), values(on_a_gpu, *arguments)))


@pytest.mark.parametrize("math", some(["bf16", "fp16", "fp32"], always=["bf16"]))
def test_wide_tiles(ptx, math):
    ptx.device = (1, 232448)
    ptx.set(tf32=False)
    check(on_ptx, WIDE, MATHS[math].dtype, "cpu", seeds=1)
    assert any("conv1x1_fwd_kernel" in run.kernel and "Li128E" in run.kernel for run in ptx.launches)


@pytest.mark.parametrize("made", some(MANY_TILES, always=MANY_TILES[2:]), ids=label)
def test_more_tiles_than_one_block_merges(ptx, made):
    """In float32, whose small errors show a few rows that are left out of a mean."""
    check(on_ptx, made, torch.float32, "cpu", seeds=1)
    assert any(run.grid[0] > 64 for run in ptx.launches if made.consumer in run.kernel or "conv1x1_fwd" in run.kernel)
