"""bn_relu_conv3x3 on CUDA: every edge of its tiles in integers, whose sums are not rounded."""

import pytest
import torch

from .. import reference
from ..calls import Geometry, error, make
from ..rows import some, thorough
from .cases import MATHS, label

GEOMETRIES = [  # n, h, w, c (of the buffer, which is not read), k: channels of z, g
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
DEEP = GEOMETRIES[3:7]
VARIANTS = [
    ("conv3x3_fwd", {"drop_rate": 0.5}),
    ("conv3x3_bwd", {"drop_rate": 0.5}),
    ("plain_bwd", {}),  # adds to g
]

variants = pytest.mark.parametrize(("name", "options"), VARIANTS, ids=label)


def integers(name, geometry, dtype, **options):
    if name.startswith("plain"):
        geometry = geometry._replace(c=geometry.k)
    return make(name, geometry, dtype, exact=True, **options)


def check_exact(machine, call):
    """Activations and weight gradients are rounded once, at the end."""
    exact = call.copy(torch.float64).on(reference).results()
    for result, got in call.copy().on(machine.operations).results().items():
        wanted = exact[result]
        if (got.dim() == 4 or result == "z") and wanted.abs().max() < 2**11:
            assert torch.equal(got, wanted.to(got.dtype)), result


@pytest.mark.parametrize(
    ("name", "options", "math"),
    [*((*variant, "bf16") for variant in VARIANTS), *((*variant, "fp32") for variant in VARIANTS[:2])],
    ids=label,
)
@pytest.mark.parametrize("geometry", some(GEOMETRIES, always=lambda g: g not in DEEP), ids=label)
def test_small_integers_are_exact(machine, name, options, geometry, math):
    check_exact(machine, integers(name, geometry, MATHS[math].dtype, **options))


@variants
@pytest.mark.parametrize("math", ["fp16", "tf32"])
@pytest.mark.parametrize("room", [2, thorough(3)], indirect=True)
def test_small_integers_are_exact_where_rows_start_anywhere(machine, room, name, options, math):
    machine.set(tf32=MATHS[math].tf32)
    check_exact(machine, integers(name, GEOMETRIES[1], MATHS[math].dtype, room=room, **options))


@variants
def test_a_weight_in_any_layout(machine, name, options):
    def other(argument, tensor):
        if not argument.startswith("weight") or tensor.shape[2] != 3:
            return tensor
        return tensor.transpose(0, 1).contiguous(memory_format=torch.channels_last).transpose(0, 1)

    call = integers(name, GEOMETRIES[1], torch.bfloat16, **options)
    check_exact(machine, call.changed(other))


@pytest.mark.parametrize("device", [(1, 48 * 1024), (16, 100 * 1024), thorough((132, 227 * 1024))], ids=str)
@variants
def test_the_tiles_of_every_device(machine, name, options, device):
    machine.device = device
    machine.set(tf32=False)
    check_exact(machine, integers(name, Geometry(9, 14, 14, 1, 64, 16), torch.float16, **options))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_gradient_spreads_as_in_pytorch(machine, bad):
    call = make("conv3x3_bwd", Geometry(2, 6, 5, 1, 20, 12))
    dict(call.named())["g"][1, 1 + 2, 5, 4] = bad
    exact, ours = call.copy(torch.float64).on(reference).results(), call.copy().on(machine.operations).results()
    for result, wanted in exact.items():
        assert torch.equal(ours[result].isfinite(), wanted.isfinite()), result
        assert error(ours[result][wanted.isfinite()], wanted[wanted.isfinite()]) < 1e-5, result
