"""Every native operation against the eager backend in float64, with eager's own float32 error as the measure."""

import statistics

import pytest
import torch

from densenet_fast import ops

from ..opcheck import opcheck
from .cases import GEOMETRIES, MANY_ROWS, ROOM, Geometry, applies, clone, error, make, run, whole_of

NAMES = [operation.name for operation in ops.OPERATIONS]
EPS = torch.finfo(torch.float32).eps
SEEDS = 7  # of which the median counts: one value can be rounded well or badly by chance
SMALL = GEOMETRIES[0]
VARIANTS = [
    *((name, {}) for name in NAMES),
    ("bn_relu_conv3x3_fwd", {"drop_rate": 0.3}),
    ("bn_relu_conv3x3_bwd", {"drop_rate": 0.3}),
    ("bn_relu_conv3x3_bwd", {"accumulate": True}),
    ("bn_relu_conv3x3_bwd", {"accumulate": True, "drop_rate": 0.3}),
    *((name, {"batch_stats": False}) for name in NAMES if name.endswith("_bwd")),
]
# Operations whose results are quotients, and those that can leave out a result.
DIVIDE = ("channel_stats", "update_running_stats", "head_fwd", "head_bwd")
OPTIONAL = [o.name for o in ops.OPERATIONS if any(f"bool {last})" in o.schema for last in ("stats", "wgrad"))]


def label(value):
    return value if isinstance(value, str) else "x".join(map(str, value)) if value else "plain"


def cases(geometries=GEOMETRIES, without=()):
    """Every operation with every geometry that it is defined for."""
    found = [(n, o, g) for n, o in VARIANTS for g in geometries if applies(n, g) and n not in without]
    return pytest.mark.parametrize(("name", "options", "geometry"), found, ids=label)


variants = pytest.mark.parametrize(("name", "options"), VARIANTS, ids=label)


@cases()
def test_error_is_at_most_twice_eager_s(native, eager, name, geometry, options):
    check_error(native, eager, name, geometry, **options)


@cases([GEOMETRIES[1], MANY_ROWS])
def test_error_without_gamma_and_beta(native, eager, name, geometry, options):
    check_error(native, eager, name, geometry, affine=False, **options)


def check_error(native, eager, name, geometry, **options):
    errors = []  # [seed][value] of (ours, eager's)
    for _ in range(SEEDS):
        case = make(name, geometry, **options)
        exact, _ = run(getattr(eager, name), case, torch.float64)
        ours, _ = run(getattr(native, name), case)
        theirs, _ = run(getattr(eager, name), case)
        assert [t.shape for t in ours] == [t.shape for t in exact]
        errors.append([(error(a, e), error(b, e)) for a, b, e in zip(ours, theirs, exact, strict=True)])
    for i in range(len(errors[0])):
        our, their = (statistics.median(of_seed[i][side] for of_seed in errors) for side in (0, 1))
        assert our <= 2 * their + EPS, f"value {i}: {our:.2e}, eager {their:.2e}"


@cases(without=DIVIDE)
def test_small_integers_are_exact(native, eager, name, geometry, options):
    """Sums of small integers have no rounding, so any difference is a wrong element."""
    if "drop_rate" in options:
        options = {**options, "drop_rate": 0.5}  # scales by 2
    case = make(name, geometry, exact=True, **options)
    exact, _ = run(getattr(eager, name), case, torch.float64)
    ours, _ = run(getattr(native, name), case)
    of_quotients = {"_fwd": (1, 2), "_bwd": (len(ours) - 2, len(ours) - 1)}  # statistics; a and b
    for i, (a, e) in enumerate(zip(ours, exact, strict=True)):
        if i in of_quotients.get(name[-4:], ()):
            assert error(a, e) < 1e-6
        elif e.numel() and e.abs().max() < 2**24:
            assert torch.equal(a.double(), e), f"value {i}"


@cases()
def test_only_the_slices_are_touched(native, name, geometry, options):
    """All around the slices is NaN, and scratch and results begin as NaN (conftest.py): none may be read or change."""
    case = make(name, geometry, **options)
    results, args = run(getattr(native, name), case)
    for result in results:
        assert not result.isnan().any()
    for i, (argument, before) in enumerate(zip(args, case.args, strict=True)):
        if isinstance(argument, torch.Tensor) and argument.dim() == 4 and argument._base is not None:
            whole, old = whole_of(argument), whole_of(before)
            assert torch.cat([whole[:, :ROOM], whole[:, -ROOM:]], 1).isnan().all()
            assert i in case.written or torch.equal(whole.nan_to_num(7.0), old.nan_to_num(7.0))
        elif isinstance(argument, torch.Tensor) and i not in case.written:
            assert torch.equal(argument, before)


@variants
def test_two_runs_are_bitwise_equal(native, name, options):
    case = make(name, GEOMETRIES[-1], **options)
    first, _ = run(getattr(native, name), case)
    second, _ = run(getattr(native, name), case)
    assert all(map(torch.equal, first, second))


@pytest.mark.parametrize("threads", [1, 3, 5])
@pytest.mark.parametrize("geometry", [GEOMETRIES[1], MANY_ROWS], ids=label)
@variants
def test_any_number_of_threads(native, eager, name, options, geometry, threads):
    case = make(name, geometry, **options)
    exact, _ = run(getattr(eager, name), case, torch.float64)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        ours, _ = run(getattr(native, name), case)
    finally:
        torch.set_num_threads(before)
    assert all(error(a, e) < 1e-5 for a, e in zip(ours, exact, strict=True))


@pytest.mark.entry
@variants
def test_opcheck(native, name, options):
    case = make(name, Geometry(2, 5, 3, 12, 16, 4), **options)
    opcheck(getattr(native, name), tuple(clone(a) for a in case.args))


@pytest.mark.parametrize("name", OPTIONAL)
def test_results_that_were_not_asked_for_are_empty(native, eager, name):
    case = make(name, SMALL)
    case.args[-1] = False
    ours, _ = run(getattr(native, name), case)
    theirs, _ = run(getattr(eager, name), case)
    assert [t.numel() for t in ours] == [t.numel() for t in theirs]
    assert 0 in [t.numel() for t in ours]


@pytest.mark.parametrize("drop_rate", [0.0, 0.3, 0.5, 0.999, 1.0])
def test_dropout_s_mask_is_eager_s(native, eager, drop_rate):
    """Bit for bit: with a convolution of exactly 1 everywhere the output is the mask."""
    x = torch.ones(3, 1, 9, 11).contiguous(memory_format=torch.channels_last)
    weight = torch.zeros(5, 1, 3, 3)
    weight[:, :, 1, 1] = 1
    one, zero = torch.ones(1), torch.zeros(1)
    outputs = []
    for backend in (native, eager):
        y = torch.empty(3, 5, 9, 11).contiguous(memory_format=torch.channels_last)
        backend.bn_relu_conv3x3_fwd(
            x, zero, one, None, None, 0.0, weight, drop_rate, torch.tensor(-987654321987), y, None, None
        )
        outputs.append(y)
    assert torch.equal(*outputs)
    assert drop_rate in (0.0, 1.0) or len(outputs[0].unique()) == 2


@pytest.mark.parametrize("layout", ["channels_last", "transposed", "padded"])
@pytest.mark.parametrize("geometry", [SMALL, MANY_ROWS], ids=label)
@pytest.mark.parametrize("name", [n for n in NAMES if "conv" in n or n.startswith("transition") or "infer" in n])
def test_weights_in_any_layout(native, name, geometry, layout):
    case = make(name, geometry)
    expected, _ = run(getattr(native, name), case)
    for i, argument in enumerate(case.args):
        if isinstance(argument, torch.Tensor) and argument.dim() == 4 and argument._base is None:
            if layout == "channels_last":
                case.args[i] = argument.contiguous(memory_format=torch.channels_last)
            elif layout == "transposed":
                case.args[i] = argument.transpose(0, 1).contiguous().transpose(0, 1)
            else:
                case.args[i] = torch.nn.functional.pad(argument, (0, 1))[..., :-1]
    args = list(case.args)
    results = getattr(native, name)(*args)
    values = list(results) if isinstance(results, tuple) else [] if results is None else [results]
    assert all(torch.equal(a, b) for a, b in zip(values, expected, strict=False))


def test_strided_vectors_are_read_with_their_strides(native):
    case = make("bn_relu_conv1x1_fwd", SMALL)
    expected, _ = run(native.bn_relu_conv1x1_fwd, case)
    args = [torch.stack([a, a + 1], 1)[:, 0] if isinstance(a, torch.Tensor) and a.dim() == 1 else a for a in case.args]
    assert all(map(torch.equal, native.bn_relu_conv1x1_fwd(*args), expected))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_running_statistics_in_any_dtype(native, eager, dtype):
    mean, var = torch.randn(5), torch.rand(5) + 0.5
    pairs = []
    for backend in (native, eager):
        running = [torch.full((5,), 0.25, dtype=dtype), torch.full((5,), 0.75, dtype=dtype)]
        backend.update_running_stats(running[:1], running[1:], [mean], [var], [6], [0.3])
        pairs.append(running)
    for ours, theirs in zip(*pairs, strict=True):
        assert (ours - theirs).abs().max() <= 2 * torch.finfo(dtype if dtype.itemsize < 8 else torch.float32).eps
