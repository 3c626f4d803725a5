"""Every operation through its entry, its launches and the PTX of its kernels against autograd in float64; the measure
is the error that PyTorch's own layers make in the same dtype."""

import statistics
from itertools import product

import pytest
import torch

from densenet_fast import backends

from .. import reference
from ..blocks import surroundings
from ..calls import NAMES, Geometry, applies, error, errors, make
from ..opcheck import opcheck
from ..oracle import rms_error
from ..rows import some, thorough
from .cases import GEOMETRIES, MATHS, label

SINGLE = [name for name in NAMES if not name.startswith("layer")]  # the others run these one after the other
PLAIN = [(name, {}) for name in SINGLE]
PRODUCTS = [name for name in SINGLE if name.startswith(("conv", "plain", "transition"))]
OPTIONS = [
    *((f"{kind}_{way}", {"drop_rate": 0.3}) for kind in ("conv3x3", "plain") for way in ("fwd", "bwd")),
    *((name, {"batch": False}) for name in ("conv1x1_bwd", "transition_bwd", "stem_bwd")),
]
VARIANTS = [*PLAIN, *OPTIONS]
MIDDLE, ONE_COLUMN, LARGE, MORE_OF_Z = (GEOMETRIES[i] for i in (1, 2, 4, 5))
MANY_CHANNELS, MANY_PIXELS = Geometry(1, 7, 7, 1024, 128, 32), Geometry(2, 32, 32, 16, 16, 4)
DEVICES = {"A100": (108, 166912), "A10": (72, 101376), "H200": (132, 232448)}  # multiprocessors, shared memory
ALIGNED = pytest.mark.parametrize("room", [8], indirect=True, ids=["aligned"])

variants = pytest.mark.parametrize(("name", "options"), VARIANTS, ids=label)


def every(geometries, named, always=lambda row: True):
    found = [(n, o, g) for n, o in named for g in geometries if applies(n, g)]
    return pytest.mark.parametrize(("name", "options", "geometry"), some(found, always), ids=label)


def check_errors(machine, room, name, geometry, math, **options):
    """The median over seeds of each result's largest error. Of a few pixels the largest is chance: on 13 of them
    stock's and ours, alike in the long run, differ by 2.5 either way over seven seeds. There the root mean square
    counts."""
    machine.set(tf32=math.tf32)
    few = geometry.n * geometry.h * geometry.w < 16
    found = {}  # [seed] of (ours, stock's), by result
    for _ in range(9 if few else 3):
        call = make(name, geometry, math.measure, room=room, **options)
        exact = call.copy(torch.float64).on(reference).results()
        # PyTorch's own sums of statistics are in float64 on a CPU; eager's, like a kernel's, are not.
        of_stock = call.copy().on(eager() if name == "channel_stats" else reference).results()
        of_ours = call.copy(math.dtype).on(machine.operations).results()
        ours, stock = (measured(values, exact, few) for values in (of_ours, of_stock))
        for result in exact:
            found.setdefault(result, []).append((ours[result], stock[result]))
    for result, of_seeds in found.items():
        our, their = map(statistics.median, zip(*of_seeds, strict=True))
        eps = torch.finfo(torch.float16 if math.tf32 else of_ours[result].dtype).eps
        assert our <= 2 * their + eps, f"{result}: {our:.2e}, stock {their:.2e}"


def eager():
    return backends.operations("eager", torch.device("cpu"))


def measured(values, exact, few):
    return {r: rms_error(values[r], exact[r]) for r in exact} if few else errors(values, exact)


@ALIGNED
@every(GEOMETRIES, PLAIN, always=lambda row: row[2] in (MIDDLE, ONE_COLUMN, MORE_OF_Z))
def test_errors_in_bf16(machine, room, name, geometry, options):
    check_errors(machine, room, name, geometry, MATHS["bf16"], **options)


@ALIGNED
@every([MIDDLE], OPTIONS)
def test_errors_of_options_in_bf16(machine, room, name, geometry, options):
    check_errors(machine, room, name, geometry, MATHS["bf16"], **options)


# fp16 is bf16 with other numbers, and TF32 is fp32 with other products.
OTHERS = [
    *((name, "fp32", MIDDLE) for name in SINGLE),
    *((name, "fp32", LARGE) for name in PRODUCTS),
    *((name, "fp16", LARGE) for name in SINGLE),
    *((name, "tf32", geometry) for name in PRODUCTS for geometry in (MIDDLE, LARGE)),
]


@ALIGNED
@pytest.mark.parametrize(
    ("name", "math", "geometry"), some(OTHERS, always=lambda row: row[1] == "fp16" or row[2] == MIDDLE), ids=label
)
def test_errors_in_other_dtypes(machine, room, name, math, geometry):
    check_errors(machine, room, name, geometry, MATHS[math])


@ALIGNED
@pytest.mark.parametrize(
    ("name", "geometry"),
    some(
        product(["conv1x1_fwd", "conv1x1_bwd", "conv3x3_bwd"], [MANY_CHANNELS, MANY_PIXELS]),
        always=[("conv1x1_bwd", MANY_CHANNELS), ("conv3x3_bwd", MANY_PIXELS)],
    ),
    ids=label,
)
def test_errors_of_long_sums_in_fp32(machine, room, name, geometry):
    """Over many channels and over many pixels."""
    check_errors(machine, room, name, geometry, MATHS["fp32"])


@pytest.mark.parametrize("room", [2, thorough(3)], indirect=True)
@every([MIDDLE], PLAIN)
def test_errors_where_rows_start_anywhere(machine, room, name, geometry, options):
    check_errors(machine, room, name, geometry, MATHS["bf16"], **options)


@ALIGNED
@pytest.mark.parametrize("device", some(DEVICES, always=["A10"]))
@every([LARGE], [(name, {}) for name in ("conv1x1_bwd", "conv3x3_fwd", "conv3x3_bwd")])
def test_errors_of_the_tiles_of_each_device(machine, room, device, name, geometry, options):
    machine.device = DEVICES[device]
    check_errors(machine, room, name, geometry, MATHS["fp16"])


@ALIGNED
@pytest.mark.parametrize("math", some(MATHS, always=["bf16", "tf32"]))
def test_errors_of_wide_tiles(machine, room, math):
    """Which the 1x1 convolution takes where they are enough for the device."""
    machine.device = (1, 232448)
    check_errors(machine, room, "conv1x1_fwd", LARGE, MATHS[math])
    assert "Li128E" in machine.launches[-1].kernel


@pytest.mark.parametrize("room", [8, 3], indirect=True)
@every([MIDDLE], [*PLAIN, ("layer_fwd", {}), ("layer_bwd", {})])
def test_only_what_is_told_is_touched(machine, room, name, geometry, options):
    """All around what is given is NaN, and so is what nobody has written: none may be read or change, nor what is only
    read, nor any element of a result that the operation leaves as it was."""
    call = make(name, geometry, torch.bfloat16, room=room, **options)
    before, exact = dict(call.named()), dict(call.copy(torch.float64).on(reference).named())
    for result, argument, tensor in call.copy().on(machine.operations).tensors():
        assert surroundings(tensor).isnan().all(), result
        if argument.role.read or argument.role.written:
            left = exact[result] == before[result].double()
            assert torch.equal(tensor[left], before[result][left]), result
            assert argument.role.written or left.all(), result
            assert not tensor.isnan().any(), result


@pytest.mark.parametrize("room", [8, 3], indirect=True)
@pytest.mark.parametrize("math", ["bf16", "fp32"])
def test_what_may_be_written_over_its_operand(machine, room, math):
    call = make("bn_bwd_apply", MIDDLE, MATHS[math].dtype, room=room)
    expected, found = (each.on(machine.operations) for each in (call.copy(), call.copy().in_place()))
    assert torch.equal(found.results()["dx"], expected.results()["dx"])
    assert all(surroundings(tensor).isnan().all() for tensor in dict(found.named()).values())


@ALIGNED
@pytest.mark.parametrize(
    ("name", "options"), some(VARIANTS, always=lambda row: row[0].startswith(("conv", "channel"))), ids=label
)
def test_the_order_of_arrival_does_not_matter(machine, room, name, options):
    call = make(name, Geometry(2, 15, 14, 72, 64, 16), torch.bfloat16, room=room, **options)
    found = []
    for order in (range, lambda n: reversed(range(n)), lambda n: torch.randperm(n).tolist()):
        machine.order = order
        found.append(call.copy().on(machine.operations).results())
    assert all(torch.equal(other[result], found[0][result]) for other in found[1:] for result in other)


def test_groups_of_tiles(machine):
    """More tiles than one block merges."""
    call = make("channel_stats", Geometry(3, 105, 110, 6, 1, 1))
    exact, ours = call.copy(torch.float64).on(reference).results(), call.copy().on(machine.operations).results()
    assert all(error < 1e-5 for error in errors(ours, exact).values())
    assert error(ours["stats[1]"], exact["stats[1]"]) < 1e-6


@ALIGNED
@pytest.mark.parametrize("name", ["channel_stats", "conv1x1_fwd", "transition_fwd"])
def test_statistics_of_values_far_from_zero(machine, room, name):
    """Mean over deviation 100: a variance as a difference of squares would lose four digits. A block of the 1x1 forward
    has several tiles here."""
    machine.device = (1, 232448)
    call = make(name, Geometry(4, 14, 14, 40, 16, 4), room=room)
    given = dict(call.named())
    if name == "channel_stats":
        given["x"].add_(100.0)
    else:  # relu(bn(x)) = 100 + noise in one channel, and a weight of 1 there
        gamma, beta, weight = (
            next(t for a, t in given.items() if a.startswith(s)) for s in ("gamma", "beta", "weight")
        )
        gamma[:1], beta[:1] = 1.0, 100.0
        weight.mul_(0.1)[:, 0] = 1.0
    exact, stock, ours = (
        call.copy(dtype).on(operations).results()
        for dtype, operations in ((torch.float64, reference), (None, reference), (None, machine.operations))
    )
    var = "stats[1] of z" if name == "conv1x1_fwd" else "stats[1]"
    assert error(ours[var], exact[var]) <= 2 * error(stock[var], exact[var]) + 1e-6


@pytest.mark.parametrize(
    "name", ["transition_fwd", "stem_fwd", "transition_bwd", "conv1x1_bwd", "conv3x3_bwd", "plain_bwd"]
)
def test_what_is_not_wanted_changes_nothing_else(machine, name):
    call = make(name, MIDDLE, torch.bfloat16)

    def unwanted(argument, tensor):
        leave_out = "stats" if name.endswith("fwd") else ("dweight", "dgamma1 of layer 0", "dbeta2 of layer 0")
        return None if argument.startswith(leave_out) else tensor

    expected = call.copy().on(machine.operations).results()
    ours = call.changed(unwanted).copy().on(machine.operations).results()
    assert len(ours) < len(expected)
    assert all(torch.equal(value, expected[result]) for result, value in ours.items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(("name", "written"), [("conv1x1_fwd", "z"), ("plain_fwd", "x"), ("transition_fwd", "y")])
def test_nan_and_inf_stay_where_pytorch_leaves_them(machine, name, written, dtype):
    call = make(name, MIDDLE, dtype)
    x = dict(call.named())["x"]
    x[0, 1, 2, 2], x[1, 3, 4, 4] = float("nan"), float("inf")
    y = call.copy().on(machine.operations).results()[written]
    expected = call.copy().on(reference).results()[written]
    assert torch.equal(y.isfinite(), expected.isfinite())
    if dtype != torch.float32:  # products of three TF32 products make NaN of Inf
        assert torch.equal(y.isnan(), expected.isnan())


def test_a_failed_launch_raises_and_leaves_no_error_behind(machine):
    call = make("conv1x1_bwd", LARGE, torch.bfloat16)
    machine.refuse_shared_memory(True)
    with pytest.raises(RuntimeError, match="densenet_fast: CUDA: "):
        call.on(machine.operations)
    machine.refuse_shared_memory(False)
    call.on(machine.operations)


def test_more_channels_than_a_3x3_has_room_for_raise(machine):
    machine.device = (1, 48 * 1024)
    machine.set(tf32=False)
    with pytest.raises(RuntimeError, match="densenet_fast: CUDA: "):
        make("plain_fwd", Geometry(1, 1, 1, 6000, 1, 2), torch.bfloat16).on(machine.operations)


@variants
def test_opcheck(machine, name, options):
    call = make(name, Geometry(2, 5, 3, 12, 16, 4), torch.bfloat16, **options)
    operator = getattr(torch.ops.densenet_fast_ptx, call.operation).native
    machine.opcheck(operator, [value for _, value in call.arguments()])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@variants
def test_opcheck_on_a_gpu(name, options):
    backends.operations("native", torch.device("cuda"))
    call = make(name, Geometry(2, 5, 3, 12, 16, 4), torch.bfloat16, **options).copy(device="cuda")
    opcheck(getattr(torch.ops.densenet_fast, call.operation).native, [value for _, value in call.arguments()])
