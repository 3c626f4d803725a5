"""Every operation through its entry, its launches and the PTX of its kernels against the eager backend in float64, with
the error of eager PyTorch in the same dtype as the measure."""

import statistics

import pytest
import torch

from densenet_fast import backends, ops

from ..native.cases import Geometry, applies, clone, error, run, whole_of
from ..opcheck import opcheck
from ..oracle import rms_error
from .cases import GEOMETRIES, MATHS, Case, converted, make

NAMES = [operation.name for operation in ops.OPERATIONS]
PLAIN = [(name, {}) for name in NAMES]
VARIANTS = [
    *PLAIN,
    ("bn_relu_conv3x3_fwd", {"drop_rate": 0.3}),
    ("bn_relu_conv3x3_bwd", {"drop_rate": 0.3}),
    ("bn_relu_conv3x3_bwd", {"accumulate": True}),
    *((name, {"batch_stats": False}) for name in ("bn_relu_conv1x1_bwd", "transition_bwd", "stem_bwd")),
]
MIDDLE, LARGE = GEOMETRIES[1], GEOMETRIES[4]
# Operations that can leave out a result.
WITH_A_CHOICE = [o.name for o in ops.OPERATIONS if any(f"bool {last})" in o.schema for last in ("stats", "wgrad"))]
DEVICES = {"A100": (108, 166912), "A10": (72, 101376), "H200": (132, 232448)}  # multiprocessors, shared memory
ALIGNED = pytest.mark.parametrize("room", [8], indirect=True, ids=["aligned"])


def label(value):
    return value if isinstance(value, str) else "x".join(map(str, value)) if value else "plain"


variants = pytest.mark.parametrize(("name", "options"), VARIANTS, ids=label)


def every(geometries, named=VARIANTS):
    found = [(n, o, g) for n, o in named for g in geometries if applies(n, g)]
    return pytest.mark.parametrize(("name", "options", "geometry"), found, ids=label)


def check_errors(machine, eager, name, geometry, math, **options):
    """The median over seeds of each value's largest error. Of a few pixels the largest is chance: on 13 of them eager's
    and ours, alike in the long run, differ by 2.5 either way over seven seeds. There the root mean square counts."""
    machine.set(tf32=math.tf32)
    seeds, measure = (9, rms_error) if geometry.n * geometry.h * geometry.w < 16 else (3, error)
    errors = []  # [seed][value] of (ours, eager's)
    for _ in range(seeds):
        case = make(name, geometry, math.measure, **options)
        exact, _ = run(getattr(eager, name), case, torch.float64)
        theirs, _ = run(getattr(eager, name), case)
        ours, _ = run(getattr(machine.operations, name), widened(case, math.dtype))
        assert [t.shape for t in ours] == [t.shape for t in exact]
        errors.append([(measure(a, e), measure(b, e)) for a, b, e in zip(ours, theirs, exact, strict=True)])
    for i, value in enumerate(ours):
        our, their = (statistics.median(of_seed[i][side] for of_seed in errors) for side in (0, 1))
        eps = torch.finfo(torch.float16 if math.tf32 else value.dtype).eps
        assert our <= 2 * their + eps, f"value {i}: {our:.2e}, eager {their:.2e}"


def widened(case, dtype):
    """The same values, in a dtype as wide or wider."""
    return Case([converted(a, dtype) for a in case.args], case.written)


@ALIGNED
@every(GEOMETRIES)
def test_errors_in_bf16(machine, eager, room, name, geometry, options):
    check_errors(machine, eager, name, geometry, MATHS["bf16"], **options)


@ALIGNED
@every([MIDDLE, LARGE], PLAIN)
@pytest.mark.parametrize("math", ["fp16", "fp32", "tf32"])
def test_errors_in_other_dtypes(machine, eager, room, name, geometry, options, math):
    check_errors(machine, eager, name, geometry, MATHS[math], **options)


@ALIGNED
@pytest.mark.parametrize("geometry", [Geometry(1, 7, 7, 1024, 128, 32), Geometry(2, 32, 32, 16, 16, 4)], ids=label)
@pytest.mark.parametrize("name", ["bn_relu_conv1x1_fwd", "bn_relu_conv1x1_bwd", "bn_relu_conv3x3_bwd"])
def test_errors_of_long_sums_in_fp32(machine, eager, room, name, geometry):
    """Over many channels and over many pixels."""
    check_errors(machine, eager, name, geometry, MATHS["fp32"])


@pytest.mark.parametrize("room", [2, 3], indirect=True)
@every([MIDDLE], PLAIN)
def test_errors_where_rows_start_anywhere(machine, eager, room, name, geometry, options):
    check_errors(machine, eager, name, geometry, MATHS["bf16"], **options)


@ALIGNED
@pytest.mark.parametrize("device", DEVICES)
@every([LARGE], [(name, {}) for name in ("bn_relu_conv1x1_bwd", "bn_relu_conv3x3_fwd", "bn_relu_conv3x3_bwd")])
def test_errors_of_the_tiles_of_each_device(machine, eager, room, device, name, geometry, options):
    machine.device = DEVICES[device]
    check_errors(machine, eager, name, geometry, MATHS["fp16"])


@ALIGNED
@pytest.mark.parametrize("math", MATHS)
def test_errors_of_wide_tiles(machine, eager, room, math):
    """Which the 1x1 convolution takes where they are enough for the device."""
    machine.device = (1, 232448)
    check_errors(machine, eager, "bn_relu_conv1x1_fwd", LARGE, MATHS[math])
    assert "Li128E" in machine.launches[-1].kernel


@pytest.mark.parametrize("room", [8, 3], indirect=True)
@every([MIDDLE], PLAIN)
def test_only_the_slices_are_touched(machine, room, name, geometry, options):
    """All around the slices is NaN, and so is what nobody has written: none may be read or change."""
    case = make(name, geometry, torch.bfloat16, **options)
    results, args = run(getattr(machine.operations, name), case)
    for result in results:
        assert not result.isnan().any()
    for i, (argument, before) in enumerate(zip(args, case.args, strict=True)):
        if isinstance(argument, torch.Tensor) and argument.dim() == 4 and argument._base is not None:
            whole, old = whole_of(argument), whole_of(before)
            assert torch.cat([whole[:, :room], whole[:, -room:]], 1).isnan().all()
            assert i in case.written or torch.equal(whole.nan_to_num(7.0), old.nan_to_num(7.0))
        elif isinstance(argument, torch.Tensor) and i not in case.written:
            assert torch.equal(argument, before)


@ALIGNED
@variants
def test_the_order_of_arrival_does_not_matter(machine, room, name, options):
    case = make(name, Geometry(2, 15, 14, 72, 64, 16), torch.bfloat16, **options)
    results = []
    for order in (range, lambda n: reversed(range(n)), lambda n: torch.randperm(n).tolist()):
        machine.order = order
        results.append(run(getattr(machine.operations, name), case)[0])
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


def test_groups_of_tiles(machine, eager):
    """More tiles than one block merges."""
    x = torch.randn(3, 6, 105, 110).contiguous(memory_format=torch.channels_last)
    mean, var = machine.operations.channel_stats(x)
    exact_mean, exact_var = eager.channel_stats(x.double())
    assert error(mean, exact_mean) < 1e-5
    assert error(var, exact_var) < 1e-6


@ALIGNED
@pytest.mark.parametrize("name", ["channel_stats", "bn_relu_conv1x1_fwd", "transition_fwd"])
def test_statistics_of_values_far_from_zero(machine, eager, room, name):
    """Mean over deviation 100: a variance as a difference of squares would lose four digits."""
    case = make(name, Geometry(4, 14, 14, 40, 16, 4), torch.float32)
    if name == "channel_stats":
        case.args[0].add_(100.0)
    else:  # relu(bn(x)) = 100 + noise in one channel, and a weight of 1 there
        case.args[3][:1], case.args[4][:1] = 1.0, 100.0
        case.args[6].mul_(0.1)[:, 0] = 1.0
    exact, _ = run(getattr(eager, name), case, torch.float64)
    ours, _ = run(getattr(machine.operations, name), case)
    theirs, _ = run(getattr(eager, name), case)
    var = -1
    assert error(ours[var], exact[var]) <= 2 * error(theirs[var], exact[var]) + 1e-6


@pytest.mark.parametrize("name", WITH_A_CHOICE)
def test_results_that_were_not_asked_for_are_empty(machine, eager, name):
    case = make(name, MIDDLE, torch.bfloat16)
    case.args[-1] = False
    ours, _ = run(getattr(machine.operations, name), case)
    theirs, _ = run(getattr(eager, name), case)
    assert [t.numel() for t in ours] == [t.numel() for t in theirs]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("name", ["bn_relu_conv1x1_fwd", "bn_relu_conv3x3_fwd", "transition_fwd"])
def test_nan_and_inf_stay_where_pytorch_leaves_them(machine, eager, name, dtype):
    case = make(name, MIDDLE, dtype)
    case.args[0][0, 1, 2, 2], case.args[0][1, 3, 4, 4] = float("nan"), float("inf")
    ours, _ = run(getattr(machine.operations, name), case)
    theirs, _ = run(getattr(eager, name), case)
    y, expected = ours[0], theirs[0]
    assert torch.equal(y.isfinite(), expected.isfinite())
    if dtype != torch.float32:  # products of three TF32 products make NaN of Inf
        assert torch.equal(y.isnan(), expected.isnan())


def test_a_failed_launch_raises_and_leaves_no_error_behind(machine):
    operation = machine.operations.bn_relu_conv1x1_bwd
    args = [clone(a) for a in make("bn_relu_conv1x1_bwd", LARGE, torch.bfloat16).args]
    machine.refuse_shared_memory(True)
    with pytest.raises(RuntimeError, match="densenet_fast: CUDA: "):
        operation(*args)
    machine.refuse_shared_memory(False)
    operation(*args)


@variants
def test_opcheck(machine, name, options):
    case = make(name, Geometry(2, 5, 3, 12, 16, 4), torch.bfloat16, **options)
    operation = getattr(torch.ops.densenet_fast_ptx, name).native
    machine.opcheck(operation, tuple(clone(a) for a in case.args))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@variants
def test_opcheck_on_a_gpu(name, options):
    native = backends.operations("native", torch.device("cuda"))
    case = make(name, Geometry(2, 5, 3, 12, 16, 4), torch.bfloat16, **options)
    args = tuple(_on_gpu(clone(a)) for a in case.args)
    opcheck(getattr(native, name), args)


def _on_gpu(argument):
    if isinstance(argument, list):
        return [_on_gpu(a) for a in argument]
    return argument.cuda() if isinstance(argument, torch.Tensor) else argument
