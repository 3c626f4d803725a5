"""The 3x3 kernels, as second halves of a layer and as layers without bottleneck: dropout, strips, tails, splits, NaN,
and the launches they take."""

import pytest
import torch

from densenet_fast.backends import triton as implementation
from densenet_fast.backends.triton import bn_relu_conv3x3_fwd
from densenet_fast.backends.triton.launch import Device, recorded

from .. import calls
from ..blocks import Shape, make
from ..calls import Geometry, error
from ..rows import some
from .compare import FORMATS, call, check_error, check_exact, check_finite, label
from .conftest import DEVICE

# In WIDE and MANY rows of the gradient start on 16 bytes.
SMALL, WIDE, MANY = Geometry(2, 5, 7, 3, 16, 4), Geometry(1, 9, 6, 8, 128, 32), Geometry(2, 28, 28, 8, 16, 8)
# Growths 3 to 70, widths 4g and odd, one pixel, one column, rows shorter and longer than a strip, several tiles, and
# in MANY several splits.
GEOMETRIES = [
    Geometry(1, 13, 1, 1, 5, 3),
    Geometry(2, 1, 1, 1, 96, 24),
    Geometry(2, 3, 2, 1, 37, 5),
    WIDE,
    Geometry(1, 7, 5, 1, 192, 48),
    Geometry(1, 2, 3, 1, 20, 70),
    MANY,
]
FEW = SMALL, MANY, GEOMETRIES[0]  # which run always
FORWARD, BACKWARD = ("conv3x3_fwd", {}), ("conv3x3_bwd", {})
VARIANTS = [
    FORWARD,
    ("conv3x3_fwd", {"drop_rate": 0.3}),
    BACKWARD,
    ("conv3x3_bwd", {"drop_rate": 0.3, "batch": False}),
    ("plain_fwd", {}),
    ("plain_bwd", {"drop_rate": 0.3, "affine": False}),
]
# What a machine other than INTERPRETER would be given: fewer taps and shorter strips, or strips of one pixel.
OTHERS = [(name, {}, Geometry(1, 6, 9, 1, 160, 40), "bfloat16", Device(80, 5)) for name, _ in (FORWARD, BACKWARD)]
OTHERS += [(name, {}, WIDE, "bfloat16", Device(90, 132)) for name in ("conv3x3_fwd", "plain_fwd")]
CASES = [
    *((*variant, geometry, "float32", None) for variant in (FORWARD, BACKWARD) for geometry in GEOMETRIES),
    *((*variant, SMALL, form, None) for variant in VARIANTS for form in FORMATS),
    *((*variant, WIDE, form, None) for variant in (FORWARD, BACKWARD) for form in FORMATS if form != "float32"),
    *OTHERS,
]


@pytest.mark.parametrize(
    ("name", "options", "geometry", "form", "device"),
    some(CASES, always=lambda row: (row[2] in FEW and row[3] in ("float32", "bfloat16")) or row in OTHERS),
    ids=label,
)
def test_error_is_at_most_twice_eager_s(triton, eager, name, options, geometry, form, device):
    seeds = 5 if geometry is SMALL else 1  # among few values one may be rounded well or badly by chance
    cases = [call(name, geometry, form, **options) for _ in range(seeds)]
    with recorded(device):
        check_error(triton, eager, FORMATS[form], *cases)


@pytest.mark.parametrize("geometry", [SMALL, WIDE], ids=label)
@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=label)
def test_small_integers_are_exact(triton, name, options, geometry):
    if "drop_rate" in options:
        options = {**options, "drop_rate": 0.5}  # scales by 2
    check_exact(triton, call(name, geometry, exact=True, **{**options, "affine": True}), "stats", "correction")


@pytest.mark.parametrize("geometry", [Geometry(2, 9, 15, 3, 40, 12), MANY], ids=label)
@pytest.mark.parametrize("strip", bn_relu_conv3x3_fwd.TIMES)
def test_strips_of_any_length(triton, eager, monkeypatch, strip, geometry):
    """Of a GPU that would take such strips for images of any size, and tiles of them that end anywhere in a row."""
    monkeypatch.setattr(bn_relu_conv3x3_fwd, "TIMES", {strip: 1})
    with recorded(Device(90, 1000 + strip)) as launches:
        check_error(triton, eager, FORMATS["bfloat16"], call("conv3x3_fwd", geometry, "bfloat16"))
    assert {launch.arguments["STRIP"] for launch in launches if "STRIP" in launch.arguments} == {strip}


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize(("name", "where"), [("conv3x3_fwd", "z"), ("conv3x3_bwd", "g"), ("conv3x3_bwd", "z")])
def test_one_bad_value_spreads_as_in_pytorch(triton, name, where, bad):
    inside = ((SMALL.h + 2) * SMALL.w + 3) * SMALL.k  # of the second image
    check_finite(triton, call(name, SMALL), where, bad, *([inside] if where == "z" else []))


@pytest.mark.parametrize("drop_rate", [0.0, 0.3, 0.999, 1.0])
def test_dropout_s_mask_is_eager_s(triton, eager, drop_rate):
    """Bit for bit: with a convolution of exactly 1 everywhere the output is the mask."""
    case = make(Shape(3, 9, 11, 1, (0,), (5,)), affine=False, frozen=(True, False), drop_rate=drop_rate)
    mean, var, _, _, weight = case.block.tensors[:5]
    case.x[:, :1], mean[:], var[:] = 1, 0, 1
    weight[:], case.block.numbers[0] = 0, 0.0
    weight[:, :, 1, 1] = 1
    if case.block.seeds is not None:
        case.block.seeds[0] = -987654321987
    outputs = []
    for operations in (triton, eager):
        one = case.copy(device=DEVICE)
        operations.block_fwd(*one.forward(tracked=False))
        outputs.append(one.x[:, 1:])
    assert torch.equal(*outputs)
    assert drop_rate in (0.0, 1.0) or len(outputs[0].unique()) == 2


def test_statistics_of_channels_far_from_zero(triton):
    """Mean over deviation is some thousands: sum and sum of squares would leave no digit of the variance."""
    case = make(Shape(2, 28, 28, 1, (16,), (8,)), frozen=(False, True))
    gamma, beta, weight = case.block.tensors[7:10]
    gamma *= 0.1
    beta[:] = 100.0
    center = weight[:, :, 1:2, 1:2].abs()
    weight[:] = torch.nn.functional.pad(center, (1, 1, 1, 1))
    case = case.copy(device=DEVICE)
    triton.block_fwd(*case.forward(halves=2))
    var, mean = torch.var_mean(case.x[:, 1:].double(), (0, 2, 3), correction=0)
    assert (mean / var.sqrt()).min() > 1000
    assert error(case.stats[0, 1:9], mean) < 1e-6
    assert error(case.stats[1, 1:9], var) < 1e-4


def test_no_weight_gradient_where_none_is_wanted(triton):
    case = call("conv3x3_bwd", SMALL)
    frozen = case.changed(lambda name, tensor: None if name.startswith("dweight2") else tensor)
    full, part = (c.copy().on(triton).results() for c in (case, frozen))
    assert full.keys() - part.keys() == {"dweight2 of layer 0"}
    assert all(torch.equal(got, full[name]) for name, got in part.items())


@pytest.mark.parametrize(
    ("channels", "growth", "room", "width", "over"),
    [
        (8, 16, 8, 7, True),
        (8, 12, 8, 7, False),
        (7, 16, 8, 7, False),
        (4, 16, 4, 7, False),
        (8, 16, 8, 1 << 25, False),  # pixels of an image's row, too far apart for 32 bits
    ],
    ids=["aligned", "growth", "begin", "rows", "width"],
)
def test_where_the_corrected_gradient_lies_over_the_other(channels, growth, room, width, over):
    with torch.device("meta"), recorded(Device(90, 100)) as launches:
        geometry = Geometry(1, 2, width, channels, 16, growth)
        calls.make("conv3x3_bwd", geometry, torch.bfloat16, room=room).on(implementation)
    of = {launch.kernel.__name__.split("_")[-2]: launch.arguments for launch in launches}
    places = [
        (of[kernel][name].untyped_storage()._cdata, of[kernel][name].data_ptr())
        for kernel, name in (("correct", "dy"), ("correct", "d"), ("dgrad", "d"), ("wgrad", "d"))
    ]
    assert (places[0] == places[1]) == over
    assert places[1] == places[2] == places[3]


@pytest.mark.parametrize("architecture", [80, 90, 100])
def test_launches(architecture):
    """One forward, three backward, and one that clears counters, with and without dropout and without bottleneck."""
    for name, options in VARIANTS:
        case = call(name, WIDE, "bfloat16", **options).copy(device="meta")
        with recorded(Device(architecture, 100)) as launches:
            case.on(implementation)
        assert len(launches) == (2 if name.endswith("fwd") else 4)
