"""Every native operation, and every convolution of a layer, against autograd in float64; the measure is the error that
PyTorch's own layers make in the same dtype."""

import statistics

import pytest
import torch

from .. import reference
from ..blocks import surroundings
from ..calls import NAMES, Geometry, applies, error, errors, make
from ..opcheck import opcheck
from ..rows import thorough
from .geometries import GEOMETRIES, LARGE_TILES, MANY_ROWS, SMALL

FEW = 4  # values of a result: all may be small by chance, so the largest over the seeds counts
WINOGRAD = [name for name in NAMES if name.startswith(("conv3x3", "plain"))]
SEEDS = 5  # of which the median counts: one value can be rounded well or badly by chance
MANY_SEEDS = 50  # where a result may be few values
VARIANTS = [
    *((name, {}) for name in NAMES),
    *((f"{kind}_{way}", {"drop_rate": 0.3}) for kind in ("conv3x3", "plain") for way in ("fwd", "bwd")),
    *((name, {"batch": False}) for name in NAMES if name.endswith("_bwd") or name == "conv1x1_fwd"),
]
# Whose results are quotients, or made of them.
DIVIDE = ("channel_stats", "update_running_stats", "head_fwd", "head_bwd", "layer_fwd", "layer_bwd")
NARROW = {torch.bfloat16: "bf16", torch.float16: "fp16"}
# Of no full vector and of odd ends, of more than one pass over the depth, of channels divided among threads.
IN_BFLOAT16 = (GEOMETRIES[2], GEOMETRIES[4], GEOMETRIES[5], MANY_ROWS, GEOMETRIES[9], GEOMETRIES[10])


def label(value):
    return value if isinstance(value, str) else "x".join(map(str, value)) if value else "plain"


def cases(without=(), also=()):
    """Every operation with every geometry that it is defined for, in float32; in a narrow dtype, which only loads and
    stores know of, with some."""
    found = [(n, o, g) for n, o in VARIANTS for g in GEOMETRIES if applies(n, g) and n not in without]
    rows = [pytest.param(*case, torch.float32, id=_id(*case, "fp32")) for case in [*found, *also]]
    for dtype, short in NARROW.items():
        for name, options, geometry in found:
            always = dtype == torch.bfloat16 and not options and geometry in IN_BFLOAT16
            marks = [] if always else pytest.mark.thorough
            label_of = _id(name, options, geometry, short)
            rows.append(pytest.param(name, options, geometry, dtype, id=label_of, marks=marks))
    return pytest.mark.parametrize(("name", "options", "geometry", "dtype"), rows)


def _id(*values):
    return "-".join(map(label, values))


variants = pytest.mark.parametrize(("name", "options"), VARIANTS, ids=label)
dtypes = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, thorough(torch.float16)], ids=["fp32", "bf16", "fp16"]
)


@cases(also=[(name, {"affine": False}, geometry) for name in NAMES for geometry in (SMALL, MANY_ROWS)])
def test_error_is_at_most_twice_stock_s(natives, name, geometry, options, dtype):
    found = {}  # [seed] of (ours, stock's, largest value), by instruction set and result
    for _ in range(MANY_SEEDS if min(geometry[-3:]) < FEW else SEEDS):
        call = make(name, geometry, dtype, **options)
        exact = call.copy(torch.float64).on(reference).results()
        stock = errors(call.copy().on(reference).results(), exact)
        for instruction_set, native in natives():
            got = call.copy().on(native).results()
            ours = errors(got, exact)
            for result, value in exact.items():
                size = value.abs().max().item() if value.numel() else 0.0
                at = found.setdefault((instruction_set, result, got[result].dtype, value.numel() < FEW), [])
                at.append((ours[result], stock[result], size))
    for (instruction_set, result, of_result, few), of_seeds in found.items():
        ours, stocks, sizes = zip(*of_seeds, strict=True)
        if few:
            ours, stocks = (
                [e * s / (max(sizes) or 1.0) for e, s in zip(each, sizes, strict=True)] for each in (ours, stocks)
            )
        our, their = statistics.median(ours), statistics.median(stocks)
        bound = 2 * their + torch.finfo(of_result).eps
        assert our <= bound, f"{instruction_set}, {result}: {our:.2e}, stock {their:.2e}"


@pytest.mark.parametrize("name", ["conv3x3_fwd", "conv3x3_bwd"])
def test_errors_go_in_no_direction(natives, name):
    """Elements may err by their rounding; all of them together hardly. A constant of Winograd's transforms that is
    rounded makes all too large or too small, and the variance of many pixels wrong by far more than stock's."""
    excess = {}  # [seed], relative, by instruction set and result
    for _ in range(SEEDS):
        call = make(name, LARGE_TILES[-1])
        exact = call.copy(torch.float64).on(reference).results()
        for instruction_set, native in natives():
            for result, ours in call.copy().on(native).results().items():
                if (value := exact[result]).numel() > 10000:
                    found = (ours.double() - value).mul(value).sum() / value.square().sum()
                    excess.setdefault((instruction_set, result), []).append(found.item())
    assert excess
    for at, of_seeds in excess.items():
        assert abs(statistics.median(of_seeds)) < torch.finfo(torch.float32).eps / 4, at


@cases(without=DIVIDE)
def test_small_integers_are_exact(natives, name, geometry, options, dtype):
    """Sums of small integers have no rounding, so any difference is a wrong element; and each is rounded to a narrow
    dtype once. Winograd's tiles of 3x3 outputs multiply by what is no float: there an element may be a quarter off."""
    if "drop_rate" in options:
        options = {**options, "drop_rate": 0.5}  # scales by 2
    assert_exact(natives, name, geometry, dtype, **options)


def assert_exact(natives, name, geometry, dtype, **options):
    call = make(name, geometry, dtype, exact=True, **options)
    off = 0.25 if name in WINOGRAD and geometry in LARGE_TILES else 0.0
    exact = call.copy(torch.float64).on(reference).results()
    for instruction_set, native in natives():
        ours = call.copy().on(native).results()
        for result, value in exact.items():
            if result.startswith(("stats", "correction")):  # quotients, the former of rounded values
                bound = 1e-6 if dtype == torch.float32 else torch.finfo(dtype).eps
                assert error(ours[result], value) < bound, (instruction_set, result)
            elif value.numel() and value.abs().max() < 2**24:
                found = ours[result]
                least, most = ((value + by).to(found.dtype) for by in (-off, off))
                assert ((least <= found) & (found <= most)).all(), (instruction_set, result)


@cases()
def test_only_what_is_told_is_touched(natives, name, geometry, options, dtype):
    """All around what is given is NaN, and scratch begins as NaN (conftest.py): none may be read or change, nor what is
    only read, nor any element of a result that the operation leaves as it was."""
    call = make(name, geometry, dtype, **options)
    before, exact = dict(call.named()), dict(call.copy(torch.float64).on(reference).named())
    for _, native in natives():
        for name, argument, tensor in call.copy().on(native).tensors():
            assert surroundings(tensor).isnan().all(), name
            if argument.role.read or argument.role.written:
                left = exact[name] == before[name].double()
                assert torch.equal(tensor[left], before[name][left]), name
                assert argument.role.written or left.all(), name
                assert name == "z" or not tensor.isnan().any(), name


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=label)
def test_what_may_be_written_over_its_operand(natives, geometry):
    call = make("bn_bwd_apply", geometry)
    for instruction_set, native in natives():
        expected, found = call.copy().on(native).results(), call.copy().in_place().on(native)
        assert torch.equal(found.results()["dx"], expected["dx"]), instruction_set
        assert all(surroundings(tensor).isnan().all() for tensor in dict(found.named()).values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_numbers_are_widened_and_rounded_as_pytorch_does(natives, dtype):
    """All 2^16 of a type, and floats: between two of them each, half-way between two, and any bits, among them numbers
    that overflow, subnormal ones, Inf and NaN. dx = v - a."""
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    floats = every.float().view(torch.int32)
    half = 1 << (15 if dtype == torch.bfloat16 else 12)
    between = torch.cat([floats + half * step // 2 for step in range(-2, 3)])
    any_bits = torch.randint(-(2**31), 2**31, (2**18,), dtype=torch.int64).int()
    vectors = torch.cat([between, any_bits]).view(torch.float32).view(-1, 2**15)
    for instruction_set, native in natives():
        for a in vectors:
            zeros = torch.zeros(1, len(a), 1, 1, dtype=dtype)
            dx = torch.empty_like(zeros)
            correction = torch.stack([-a, torch.zeros_like(a)])
            native.bn_bwd_apply(zeros, zeros, torch.zeros_like(a), correction, dx)
            assert_same_numbers(dx.flatten(), a.to(dtype), instruction_set)
        v = every.view(1, -1, 1, 1)
        dx = torch.empty_like(v)
        nothing = torch.zeros(2, len(every))
        native.bn_bwd_apply(v, torch.zeros_like(v), nothing[0], nothing, dx)
        assert_same_numbers(dx.flatten(), every, instruction_set)


def assert_same_numbers(ours, theirs, instruction_set):
    """But for the bits of NaN and the sign of zero, which a subtraction takes from it."""
    wrong = ~((ours == theirs) | (ours.isnan() & theirs.isnan()))
    assert not wrong.any(), f"{instruction_set}: {ours[wrong][:4]}, expected {theirs[wrong][:4]}"


@dtypes
@variants
def test_two_runs_are_bitwise_equal(native, name, options, dtype):
    call = make(name, GEOMETRIES[-1], dtype, **options)
    first, second = (call.copy().on(native).results() for _ in range(2))
    assert all(torch.equal(first[result], second[result]) for result in first)


@pytest.mark.parametrize("threads", [1, 3, 5])
@pytest.mark.parametrize("geometry", [GEOMETRIES[1], MANY_ROWS], ids=label)
@variants
def test_any_number_of_threads(natives, name, options, geometry, threads):
    call = make(name, geometry, **options)
    exact = call.copy(torch.float64).on(reference).results()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for _, native in natives():
            ours = call.copy().on(native).results()
            assert all(error(ours[result], value) < 1e-5 for result, value in exact.items())
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.bfloat16], ids=["bf16"])
@pytest.mark.parametrize("threads", [3, 5])
@pytest.mark.parametrize("geometry", [GEOMETRIES[0], MANY_ROWS], ids=label)
@pytest.mark.parametrize("name", [n for n in NAMES if n.startswith(("conv", "plain", "transition"))])
def test_any_number_of_threads_in_bfloat16(natives, name, geometry, threads, dtype):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert_exact(natives, name, geometry, dtype)
    finally:
        torch.set_num_threads(before)


@pytest.mark.entry
@variants
def test_opcheck(native, name, options):
    call = make(name, Geometry(2, 5, 3, 12, 16, 4), **options)
    opcheck(getattr(torch.ops.densenet_fast, call.operation).native, [value for _, value in call.arguments()])


@pytest.mark.parametrize("drop_rate", [0.0, 0.3, 0.5, 0.999, 1.0])
def test_dropout_s_mask_is_the_contract_s(native, drop_rate):
    """Bit for bit: with a convolution of exactly 1 everywhere the output is the mask."""
    call = make("plain_fwd", Geometry(20, 4, 4, 1, 1, 5), exact=True, affine=False, batch=False, drop_rate=drop_rate)
    given = dict(call.named())
    if drop_rate:
        given["seeds"][0] = -987654321987
    given["x"][:, :1], given["mean1 of layer 0"][:] = 1, 0
    weight = given["weight1 of layer 0"].zero_()
    weight[:, :, 1, 1] = 1
    ours, exact = (dict(call.copy().on(operations).named())["x"][:, 1:6] for operations in (native, reference))
    assert torch.equal(ours, exact)
    assert drop_rate in (0.0, 1.0) or len(ours.unique()) == 2


@pytest.mark.parametrize("layout", ["channels_last", "transposed", "padded"])
@pytest.mark.parametrize("geometry", [SMALL, MANY_ROWS], ids=label)
@pytest.mark.parametrize("name", [n for n in NAMES if n.startswith(("conv", "plain", "transition"))])
def test_weights_in_any_layout(native, name, geometry, layout):
    def other(argument, tensor):
        if not argument.startswith("weight"):
            return tensor
        if layout == "channels_last":
            return tensor.contiguous(memory_format=torch.channels_last)
        if layout == "transposed":
            return tensor.transpose(0, 1).contiguous().transpose(0, 1)
        return torch.nn.functional.pad(tensor, (0, 1))[..., :-1]

    call = make(name, geometry)
    expected = call.copy().on(native).results()
    ours = call.copy().changed(other).on(native).results()
    assert all(torch.equal(ours[result], value) for result, value in expected.items())


@pytest.mark.parametrize("name", ["layer_fwd", "layer_bwd", "transition_bwd", "stem_fwd", "head_bwd", "bn_bwd_apply"])
def test_strided_vectors_are_read_with_their_strides(native, name):
    call = make(name, SMALL, batch=False)
    roles = {argument: role.role.written for argument, role, _ in call.tensors()}
    strided = call.copy().changed(
        lambda argument, t: (
            t if roles[argument] or t.dim() != 1 or argument == "z" else torch.stack([t, t + 1], 1)[:, 0]
        )
    )
    expected, ours = call.copy().on(native).results(), strided.on(native).results()
    assert all(torch.equal(ours[result], value) for result, value in expected.items())


@pytest.mark.parametrize("name", ["transition_fwd", "stem_fwd", "transition_bwd"])
def test_what_is_not_wanted_changes_nothing_else(native, name):
    call = make(name, SMALL)
    without = call.changed(lambda argument, t: None if argument in ("stats", "dweight") else t)
    expected, ours = call.copy().on(native).results(), without.copy().on(native).results()
    assert len(ours) < len(expected)
    assert all(torch.equal(value, expected[result]) for result, value in ours.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_running_statistics_in_any_dtype(native, dtype):
    stats = torch.stack([torch.randn(5), torch.rand(5) + 0.5])
    pairs = []
    for operations in (native, reference):
        running = [torch.full((5,), 0.25, dtype=dtype), torch.full((5,), 0.75, dtype=dtype)]
        operations.update_running_stats(running[:1], running[1:], [], stats, [0], 6, [0.3])
        pairs.append(running)
    for ours, theirs in zip(*pairs, strict=True):
        assert (ours - theirs).abs().max() <= 2 * torch.finfo(dtype if dtype.itemsize < 8 else torch.float32).eps
