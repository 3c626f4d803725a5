"""The 3x3 kernels: both layers that use them, dropout, strips and tails, splits, NaN, and the launches they take."""

import pytest
import torch

from densenet_fast.backends import triton as implementation
from densenet_fast.backends.triton.launch import Device, recorded

from ..native.cases import Geometry, error
from .compare import FORMATS, arguments, call, check_error, label, sweep
from .conftest import DEVICE

SMALL, WIDE, MANY = Geometry(2, 5, 7, 1, 16, 4), Geometry(1, 9, 6, 1, 128, 32), Geometry(2, 28, 28, 1, 16, 8)
# Growths 3 to 70, widths 4g and odd, one pixel, one column, rows shorter and longer than a strip, several tiles, and
# in MANY several splits.
GEOMETRIES = [
    SMALL,
    Geometry(3, 8, 8, 1, 48, 12),
    Geometry(1, 13, 1, 1, 5, 3),
    Geometry(2, 1, 1, 1, 96, 24),
    Geometry(2, 3, 2, 1, 37, 5),
    WIDE,
    Geometry(1, 6, 9, 1, 160, 40),
    Geometry(1, 7, 5, 1, 192, 48),
    Geometry(1, 2, 3, 1, 20, 70),
    MANY,
]
FORWARD = ("bn_relu_conv3x3_fwd", {})
BACKWARD = ("bn_relu_conv3x3_bwd", {})
VARIANTS = [
    FORWARD,
    ("bn_relu_conv3x3_fwd", {"drop_rate": 0.3}),
    BACKWARD,
    ("bn_relu_conv3x3_bwd", {"drop_rate": 0.3, "batch_stats": False}),
    ("bn_relu_conv3x3_bwd", {"accumulate": True, "drop_rate": 0.3, "affine": False}),
]
# What a machine other than INTERPRETER would be given: fewer taps and shorter strips.
OTHERS = [
    (name, {}, geometry, "bfloat16", Device(80, 5)) for name, _ in (FORWARD, BACKWARD) for geometry in GEOMETRIES[6:8]
]
CASES = [
    *((*variant, geometry, form, None) for variant in (FORWARD, BACKWARD) for geometry, form in sweep(GEOMETRIES)),
    *((*variant, SMALL, form, None) for variant in VARIANTS[1:2] + VARIANTS[3:] for form in ("float32", "bfloat16")),
    *OTHERS,
]


@pytest.mark.parametrize(("name", "options", "geometry", "form", "device"), CASES, ids=label)
def test_error_is_at_most_twice_eager_s(triton, eager, name, options, geometry, form, device):
    seeds = 5 if geometry is SMALL else 1  # among few values one may be rounded well or badly by chance
    cases = [arguments(name, geometry, FORMATS[form].dtype, DEVICE, **options) for _ in range(seeds)]
    with recorded(device):
        check_error(triton, eager, name, cases[0], FORMATS[form], *cases[1:])


@pytest.mark.parametrize("geometry", [SMALL, WIDE], ids=label)
@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=label)
def test_small_integers_are_exact(triton, eager, name, options, geometry):
    """Sums of small integers have no rounding, so any difference is a wrong element."""
    if "drop_rate" in options:
        options = {**options, "drop_rate": 0.5}  # scales by 2
    args = arguments(name, geometry, torch.float32, DEVICE, exact=True, **{**options, "affine": True})
    exact, _ = call(getattr(eager, name), args, torch.float64)
    ours, _ = call(getattr(triton, name), args)
    for i, (got, e) in enumerate(zip(ours, exact, strict=True)):
        quotient = i > 0 if name.endswith("fwd") else i >= len(exact) - 2
        if quotient:
            assert error(got, e) < 1e-6
        else:
            assert torch.equal(got.double(), e), f"value {i}"


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize(("name", "options"), [FORWARD, BACKWARD], ids=label)
def test_one_bad_value_spreads_as_in_pytorch(triton, eager, name, options, bad):
    for position in (0, 5) if name.endswith("bwd") else (0,):  # dy and x, or x
        args = arguments(name, SMALL, torch.float32, DEVICE, **options)
        args[position][1, 2, 2, 3] = bad
        ours, _ = call(getattr(triton, name), args)
        theirs, _ = call(getattr(eager, name), args, torch.float64)
        for got, expected in zip(ours, theirs, strict=True):
            assert torch.equal(got.isfinite(), expected.isfinite())


@pytest.mark.parametrize("drop_rate", [0.0, 0.3, 0.999, 1.0])
def test_dropout_s_mask_is_eager_s(triton, eager, drop_rate):
    """Bit for bit: with a convolution of exactly 1 everywhere the output is the mask."""
    x = torch.ones(3, 1, 9, 11, device=DEVICE).contiguous(memory_format=torch.channels_last)
    weight = torch.zeros(5, 1, 3, 3, device=DEVICE)
    weight[:, :, 1, 1] = 1
    one, zero, seed = torch.ones(1, device=DEVICE), torch.zeros(1, device=DEVICE), torch.tensor(-987654321987)
    outputs = []
    for backend in (triton, eager):
        y = torch.empty(3, 5, 9, 11, device=DEVICE).contiguous(memory_format=torch.channels_last)
        norm = zero, one, None, None, 0.0
        backend.bn_relu_conv3x3_fwd(x, *norm, weight, drop_rate, seed.to(DEVICE), y, None, None)
        outputs.append(y)
    assert torch.equal(*outputs)
    assert drop_rate in (0.0, 1.0) or len(outputs[0].unique()) == 2


def test_statistics_of_channels_far_from_zero(triton):
    """Mean over deviation is some thousands: sum and sum of squares would leave no digit of the variance."""
    args = arguments("bn_relu_conv3x3_fwd", MANY, torch.float32, DEVICE)
    args[3], args[4] = args[3] * 0.1, torch.full_like(args[4], 100.0)  # gamma, beta
    center = args[6][:, :, 1:2, 1:2].abs()
    args[6] = torch.nn.functional.pad(center, (1, 1, 1, 1))
    (y, y_mean, y_var), _ = call(triton.bn_relu_conv3x3_fwd, args)
    var, mean = torch.var_mean(y.double(), (0, 2, 3), correction=0)
    assert (mean / var.sqrt()).min() > 1000
    assert error(y_mean, mean) < 1e-6
    assert error(y_var, var) < 1e-4


def test_no_weight_gradient_where_none_is_wanted(triton):
    args = arguments("bn_relu_conv3x3_bwd", SMALL, torch.float32, DEVICE)
    expected, _ = call(triton.bn_relu_conv3x3_bwd, args)
    args[-1] = False
    results, _ = call(triton.bn_relu_conv3x3_bwd, args)
    assert results[3].numel() == 0
    assert all(torch.equal(r, e) for i, (r, e) in enumerate(zip(results, expected, strict=True)) if i != 3)


@pytest.mark.parametrize("architecture", [80, 90, 100])
def test_launches(architecture):
    """Two forward, four backward, with and without dropout and for layers without bottleneck."""
    for name, options in VARIANTS:
        args = arguments(name, WIDE, torch.bfloat16, DEVICE, **options)
        meta = [a.to("meta") if isinstance(a, torch.Tensor) else a for a in args]
        with recorded(Device(architecture, 100)) as launches:
            getattr(implementation, name)(*meta)
        assert len(launches) == (2 if name.endswith("fwd") else 4)
