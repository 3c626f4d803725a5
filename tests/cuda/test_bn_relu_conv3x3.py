"""bn_relu_conv3x3 on CUDA: every edge of its tiles in integers, whose sums are not rounded."""

import pytest
import torch

from ..native import cases
from ..native.cases import Geometry, error, run
from .cases import MATHS, Case, converted, make

GEOMETRIES = [  # n, h, w, c (unused), k: channels of x, g
    Geometry(2, 5, 7, 1, 16, 4),
    Geometry(3, 8, 8, 1, 48, 12),
    Geometry(1, 13, 1, 1, 5, 3),
    Geometry(2, 1, 1, 1, 96, 24),
    Geometry(1, 2, 2, 1, 128, 32),
    Geometry(2, 7, 6, 1, 160, 40),
    Geometry(1, 9, 17, 1, 192, 48),
    Geometry(5, 3, 3, 1, 3, 2),
    Geometry(1, 6, 70, 1, 37, 33),  # more columns than a tile has
]
VARIANTS = [
    ("bn_relu_conv3x3_fwd", {"drop_rate": 0.5}),
    ("bn_relu_conv3x3_bwd", {"drop_rate": 0.5}),
    ("bn_relu_conv3x3_bwd", {"accumulate": True}),
]


def label(value):
    return value if isinstance(value, str) else "x".join(map(str, value))


variants = pytest.mark.parametrize(("name", "options"), VARIANTS, ids=label)


def integers(name, geometry, dtype, **options) -> Case:
    case = cases.make(name, geometry, exact=True, **options)
    return Case([converted(a, dtype) for a in case.args], case.written)


def check_exact(machine, eager, name, case):
    """Activations and weight gradients are rounded once, at the end."""
    exact, _ = run(getattr(eager, name), case, torch.float64)
    ours, _ = run(getattr(machine.operations, name), case)
    for i, (got, wanted) in enumerate(zip(ours, exact, strict=True)):
        if got.dim() == 4 and wanted.abs().max() < 2**11:
            assert torch.equal(got, wanted.to(got.dtype)), f"value {i}"


@variants
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=label)
@pytest.mark.parametrize("math", ["bf16", "fp32"])
@pytest.mark.parametrize("room", [8], indirect=True, ids=["aligned"])
def test_small_integers_are_exact(machine, eager, room, name, options, geometry, math):
    check_exact(machine, eager, name, integers(name, geometry, MATHS[math].dtype, **options))


@variants
@pytest.mark.parametrize("math", ["fp16", "tf32"])
@pytest.mark.parametrize("room", [2, 3], indirect=True)
def test_small_integers_are_exact_where_rows_start_anywhere(machine, eager, room, name, options, math):
    machine.set(tf32=MATHS[math].tf32)
    check_exact(machine, eager, name, integers(name, GEOMETRIES[1], MATHS[math].dtype, **options))


@variants
def test_a_weight_in_any_layout(machine, eager, name, options):
    case = integers(name, GEOMETRIES[1], torch.bfloat16, **options)
    at = next(i for i, a in enumerate(case.args) if isinstance(a, torch.Tensor) and a.shape[2:] == (3, 3))
    case.args[at] = case.args[at].transpose(0, 1).contiguous(memory_format=torch.channels_last).transpose(0, 1)
    check_exact(machine, eager, name, case)


@pytest.mark.parametrize("device", [(1, 48 * 1024), (16, 100 * 1024), (132, 227 * 1024)], ids=str)
@variants
def test_the_tiles_of_every_device(machine, eager, name, options, device):
    machine.device = device
    machine.set(tf32=False)
    check_exact(machine, eager, name, integers(name, Geometry(9, 14, 14, 1, 64, 16), torch.float16, **options))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_gradient_spreads_as_in_pytorch(machine, eager, bad):
    case = make("bn_relu_conv3x3_bwd", Geometry(2, 6, 5, 1, 20, 12), torch.float32)
    case.args[0][1, 2, 5, 4] = bad
    exact, _ = run(eager.bn_relu_conv3x3_bwd, case, torch.float64)
    ours, _ = run(machine.operations.bn_relu_conv3x3_bwd, case)
    for got, wanted in zip(ours, exact, strict=True):
        assert torch.equal(got.isfinite(), wanted.isfinite())
        assert error(got[wanted.isfinite()], wanted[wanted.isfinite()]) < 1e-5
