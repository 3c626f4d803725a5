"""`functional.dense_stage` against the oracle: every kind of layer and consumer, every mode, in every dtype."""

import statistics
import weakref
from itertools import product

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from densenet_fast.functional import dense_stage

from . import oracle
from .oracle import as_under_autocast, error, leaves_to, make_stage, parameters, require_grad, rms_error
from .rows import some, thorough

SHAPES = [(3, 6, 5, 7), (2, 5, 8, 8), (4, 3, 1, 1), (1, 7, 3, 2)]
CONSUMERS = [None, "transition", "head", "stem"]


def gradients(y, cotangent, x, steps):
    return torch.autograd.grad(y, [x, *parameters(steps)], cotangent, allow_unused=True)


def compare(steps, x, *, tolerance, **options):
    """Output and every gradient of dense_stage against the oracle, random upstream gradient."""
    require_grad(steps)
    x.requires_grad_()
    expected = oracle.stage(x, *steps)
    cotangent = torch.randn_like(expected)
    got = dense_stage(x, *steps, **options)
    assert error(got.y, expected) <= tolerance
    pairs = zip(gradients(got.y, cotangent, x, steps), gradients(expected, cotangent, x, steps), strict=True)
    for i, (ours, exact) in enumerate(pairs):
        assert ours.shape == exact.shape
        assert error(ours, exact) <= tolerance, f"gradient {i}"
    return got


@pytest.mark.parametrize("efficient", [False, True])
@pytest.mark.parametrize("bottleneck", [4, 3, None])
@pytest.mark.parametrize("consumer", CONSUMERS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_autograd_in_float64(shape, consumer, bottleneck, efficient):
    if consumer == "transition" and min(shape[2:]) < 2:
        shape = (*shape[:2], 2, 2)
    steps = make_stage(shape[1], (4, 4, 5), consumer, bottleneck=bottleneck)
    compare(steps, torch.randn(shape, dtype=torch.float64), tolerance=1e-11, efficient=efficient)


@pytest.mark.parametrize("frozen", [(0,), (1, 2), (0, 1, 2, 3, 4, 5), (0, 1, 2, 3, 4, 5, 6), (6,)], ids=str)
@pytest.mark.parametrize("efficient", [False, True])
def test_frozen_norms_contribute_no_correction(frozen, efficient):
    steps = make_stage(6, (4, 4, 4), "transition", frozen=frozen)
    compare(steps, torch.randn(3, 6, 6, 5, dtype=torch.float64), tolerance=1e-11, efficient=efficient)


def test_norms_without_affine_parameters():
    steps = make_stage(6, (4, 4), "transition", affine=False)
    compare(steps, torch.randn(3, 6, 6, 5, dtype=torch.float64), tolerance=1e-11)


@pytest.mark.parametrize("bottleneck", [4, None])
@pytest.mark.parametrize("drop_rate", [0.2, 0.9, 1.0])
@pytest.mark.parametrize("efficient", [False, True])
def test_dropout_uses_one_mask_in_both_passes(bottleneck, drop_rate, efficient):
    steps = make_stage(6, (4, 4), "head", bottleneck=bottleneck, drop_rate=drop_rate)
    if drop_rate == 1.0:  # constant channels: their normalised value is 0 / eps, not differentiable twice alike
        steps = make_stage(6, (4, 4), "head", bottleneck=bottleneck, drop_rate=drop_rate, frozen=range(9))
    compare(steps, torch.randn(3, 6, 6, 5, dtype=torch.float64), tolerance=1e-10, efficient=efficient)


def test_dropout_keeps_the_stated_fraction():
    from densenet_fast.backends.eager.dropout import dropout_mask

    mask = dropout_mask(torch.empty(1000, 100), 0.3, torch.tensor(7))
    assert set(mask.unique().tolist()) == {0.0, torch.tensor(1 / 0.7).item()}
    kept = (mask > 0).double()
    assert abs(kept.mean().item() - 0.7) < 4 * (0.21 / 1e5) ** 0.5  # four standard deviations
    assert abs(torch.corrcoef(torch.stack([kept[:-1].flatten(), kept[1:].flatten()]))[0, 1]) < 0.013


def test_splitmix64_constants():
    """The generator's published first outputs for seed 1234567, seen through a mask's threshold."""
    from densenet_fast.backends.eager.dropout import dropout_mask

    outputs = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    for i, value in enumerate(outputs):
        for above in (0, 1):
            rate = ((value >> 40) + above) / (1 << 24)
            mask = dropout_mask(torch.empty(1, 4), rate, torch.tensor(1234567))
            assert (mask[0, i] > 0) == (above == 0)


@pytest.mark.parametrize("consumer", CONSUMERS)
def test_layouts_give_the_same_result(consumer):
    steps = make_stage(6, (4, 4), consumer)
    x = torch.randn(3, 6, 6, 5, dtype=torch.float64)
    expected = dense_stage(x, *steps).y
    wide = torch.randn(3, 6, 5, 11, dtype=torch.float64).permute(0, 1, 3, 2)
    wide[:, :, :6].copy_(x)
    for layout in (x.to(memory_format=torch.channels_last), x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)):
        assert torch.equal(dense_stage(layout, *steps).y, expected)
    assert torch.equal(dense_stage(wide[:, :, :6], *steps).y, expected)


def test_statistics_are_those_of_the_channels():
    layers, _ = steps = make_stage(6, (4, 4), "transition")
    x = torch.randn(3, 6, 6, 5, dtype=torch.float64)
    result = dense_stage(x, *steps, output_stats=True)
    var, mean = torch.var_mean(result.y, (0, 2, 3), correction=0)
    torch.testing.assert_close(result.stats, (mean, var))
    block = oracle.stage(x, layers, None)
    var, mean = torch.var_mean(block, (0, 2, 3), correction=0)
    for i, channels in ((0, 6), (2, 10), (4, 14)):
        torch.testing.assert_close(result.batch_stats[i], (mean[:channels], var[:channels]))
    given = dense_stage(x, *steps, stats=tuple(s[:6].clone() for s in (mean, var)))
    torch.testing.assert_close(given.y, result.y)


def test_gradcheck():
    layers, consumer = steps = require_grad(make_stage(3, (2, 2), "transition", bottleneck=2))
    x = torch.randn(2, 3, 4, 3, dtype=torch.float64, requires_grad=True)
    for efficient in (False, True):

        def run(x, *_, efficient=efficient):
            return dense_stage(x, layers, consumer, efficient=efficient).y

        assert torch.autograd.gradcheck(run, (x, *parameters(steps)))


@pytest.mark.parametrize("needed", ["x", "first weight", "last weight", "one beta"])
def test_partial_gradients_equal_the_full_ones(needed):
    steps = make_stage(5, (4, 4, 4), "transition")
    x = torch.randn(2, 5, 6, 6, dtype=torch.float64)
    choice = {
        "x": x,
        "first weight": steps[0][0].weight1,
        "last weight": steps[0][2].weight2,
        "one beta": steps[0][1].norm2.beta,
    }[needed].requires_grad_()
    y = oracle.stage(x, *steps)
    cotangent = torch.randn_like(y)
    (expected,) = torch.autograd.grad(y, choice, cotangent)
    (got,) = torch.autograd.grad(dense_stage(x, *steps).y, choice, cotangent)
    assert error(got, expected) < 1e-11


def test_two_runs_are_bitwise_equal():
    steps = require_grad(make_stage(12, (8, 8, 8), "transition", dtype=torch.float32))
    x = torch.randn(4, 12, 14, 14, requires_grad=True)
    y = dense_stage(x, *steps).y
    cotangent = torch.randn_like(y)
    first = gradients(y, cotangent, x, steps)
    again = dense_stage(x, *steps).y
    assert torch.equal(y, again)
    assert all(map(torch.equal, first, gradients(again, cotangent, x, steps)))


def stock_error(steps, x, cotangent, dtype):
    """RMS errors of the output and of all gradients against float64: ours and stock PyTorch's, in `dtype` and in the
    memory format of x."""
    exact_steps = require_grad(leaves_to(steps, torch.float64))
    exact_x = x.double().requires_grad_()
    exact_y = oracle.stage(exact_x, *exact_steps)
    exact = [exact_y, *gradients(exact_y, cotangent.double(), exact_x, exact_steps)]
    errors = []
    for run in (lambda x, s: dense_stage(x, *s).y, lambda x, s: oracle.stage(x, *s)):
        narrow = require_grad(steps)
        narrow_x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
        y = run(narrow_x, narrow)
        values = [y, *gradients(y, cotangent.to(dtype), narrow_x, narrow)]
        errors.append([rms_error(v, e) for v, e in zip(values, exact, strict=True)])
    return errors


def assert_at_most_twice_stock(make, dtype, seeds=9):
    """Median errors over some seeds: a pre-activation within rounding of zero may fall either way, ours or stock's."""
    runs = []
    for seed in range(seeds):
        torch.manual_seed(seed)
        steps, x, cotangent = make()
        runs.append(stock_error(steps, x, cotangent, dtype))
    for i in range(len(runs[0][0])):
        our, their = (statistics.median(run[side][i] for run in runs) for side in (0, 1))
        assert our <= 2 * their + torch.finfo(dtype).eps, f"value {i}: {our:.2e}, stock {their:.2e}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, thorough(torch.float16)], ids=str)
@pytest.mark.parametrize("consumer", CONSUMERS)
@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_error_is_at_most_twice_stock(dtype, consumer, offset):
    """Also with channels whose mean is 30 deviations, where a careless variance or correction cancels. There stock runs
    in our memory format: its NCHW kernels round x * scale + shift once, and PyTorch's addcmul rounds twice."""

    def make():
        exact = make_stage(16, (8, 8, 8), consumer)
        x = (torch.randn(4, 16, 12, 12) + offset).to(dtype)
        if offset:
            x = x.contiguous(memory_format=torch.channels_last)
        return as_under_autocast(exact, dtype), x, torch.randn(oracle.stage(x.double(), *exact).shape)

    assert_at_most_twice_stock(make, dtype)


def test_constant_upstream_gradient_is_bounded():
    """The worst case of the deferred correction: the uncorrected gradient is all mean (docs/internals/algorithm.md)."""

    def make():
        steps = leaves_to(make_stage(16, (8,) * 6, None), torch.float32)
        x = torch.randn(4, 16, 12, 12)
        return steps, x, 10 + torch.randn(oracle.stage(x, *steps).shape)

    assert_at_most_twice_stock(make, torch.float32)


class Operations(TorchDispatchMode):
    """Notes what is called."""

    def __init__(self):
        super().__init__()
        self.called = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.called.append(operation.overloadpacket)
        return operation(*args, **(kwargs or {}))


def test_autocast_converts_all_weights_at_once_and_all_their_gradients():
    """Not each by itself, as autograd would where a gradient comes in another dtype."""
    steps = require_grad(make_stage(6, (4, 4), "transition", dtype=torch.float32))
    x = torch.randn(2, 6, 4, 4, dtype=torch.bfloat16)
    with Operations() as forward, torch.autocast("cpu", dtype=torch.bfloat16):
        y = dense_stage(x, *steps).y
    with Operations() as backward:
        y.sum().backward()
    for operations in (forward, backward):
        assert operations.called.count(torch.ops.aten._foreach_copy_) == 1
    assert torch.ops.aten._to_copy not in backward.called


def test_retained_graph_gives_the_same_gradients_twice():
    steps = require_grad(make_stage(6, (4, 4), "transition"))
    x = torch.randn(3, 6, 6, 5, dtype=torch.float64, requires_grad=True)
    y = dense_stage(x, *steps).y
    first = torch.autograd.grad(y.square().sum(), parameters(steps), retain_graph=True)
    second = torch.autograd.grad(y.square().sum(), parameters(steps))
    assert all(map(torch.equal, first, second))


def test_second_backward_through_a_freed_graph_is_an_error():
    steps = require_grad(make_stage(6, (4,), "transition"))
    y = dense_stage(torch.randn(3, 6, 6, 5, dtype=torch.float64), *steps).y
    y.sum().backward()
    with pytest.raises(RuntimeError, match="second time"):
        y.sum().backward()


@pytest.mark.parametrize(
    ("consumer", "frozen", "extend"),
    some(product(CONSUMERS, [(), (0, 3)], [False, True]), always=lambda row: bool(row[1]) == row[2]),
    ids=str,
)
def test_gradgradcheck(consumer, frozen, extend):
    """Of x as a leaf, a copy of which begins the buffer, and of a stage that extends another's output."""
    steps = require_grad(make_stage(5, (2, 3), consumer, bottleneck=1, frozen=frozen, drop_rate=0.4))
    stem = require_grad(make_stage(5, (), "stem"))
    x = torch.randn(2, 5, 6, 6, dtype=torch.float64, requires_grad=True)

    def run(x, *_):
        if extend:
            y = dense_stage(x, *stem, output_room=5).y
            return dense_stage(y, *steps, extend=True).y.sin()
        return dense_stage(x, *steps).y.sin()

    torch.autograd.gradgradcheck(run, (x, *parameters(steps)), fast_mode=True)


@pytest.mark.parametrize("drop_rate", [0.0, 0.4])
@pytest.mark.parametrize("consumer", CONSUMERS)
def test_a_gradient_to_be_differentiated_is_the_ordinary_one(consumer, drop_rate):
    steps = require_grad(make_stage(5, (2, 3), consumer, frozen=(1,), drop_rate=drop_rate))
    x = torch.randn(2, 5, 6, 6, dtype=torch.float64, requires_grad=True)
    y = dense_stage(x, *steps).y
    cotangent, wanted = torch.randn_like(y), [x, *parameters(steps)]
    again, once = (torch.autograd.grad(y, wanted, cotangent, create_graph=create) for create in (True, False))
    for ours, ordinary in zip(again, once, strict=True):
        assert ours.requires_grad
        assert error(ours, ordinary) < 1e-11


@pytest.mark.parametrize("autocast", [False, True])
def test_second_order_of_weights_that_are_no_leaves(autocast):
    """As parametrized ones are; under autocast the stage keeps copies of them."""
    steps = make_stage(6, (4,), "transition", dtype=torch.float32)
    x, first = torch.randn(2, 6, 4, 4), steps[0][0].weight1
    found = []
    for run in (oracle.stage, lambda *a: dense_stage(*a).y):
        v, image = first.clone().requires_grad_(), x.clone().requires_grad_()
        of_v = ([steps[0][0]._replace(weight1=v * v.norm())], steps[1])
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            y = run(image * 2, *of_v).float()
        (dx,) = torch.autograd.grad(y.square().sum(), image, create_graph=True)
        found.append(torch.autograd.grad(dx.square().sum(), [v, image]))
    for theirs, ours in zip(*found, strict=True):
        assert rms_error(ours, theirs) < (0.1 if autocast else 1e-5)


def test_a_second_order_costs_nothing_where_none_is_taken():
    """Neither x, of which a copy begins the buffer, nor anything else is kept for it."""
    steps = require_grad(make_stage(6, (4,), None))
    z = torch.randn(2, 6, 4, 4, dtype=torch.float64, requires_grad=True) * 2
    x = weakref.ref(z.untyped_storage())
    y = dense_stage(z, *steps).y
    del z
    assert x() is None
    y.sum().backward()


def test_changing_a_saved_tensor_is_detected():
    steps = require_grad(make_stage(6, (4,), None))
    y = dense_stage(torch.randn(3, 6, 6, 5, dtype=torch.float64), *steps).y
    with torch.no_grad():
        steps[0][0].weight1.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("consumer", [None, "transition", "stem"])
@pytest.mark.parametrize("growths", [(), (4, 3)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_output_is_dense_and_belongs_to_the_caller(consumer, growths, layout):
    """As in PyTorch it may be changed in place, and backward goes through the change; x is untouched."""
    steps = require_grad(make_stage(5, growths, consumer))
    x = torch.randn(3, 5, 6, 7, dtype=torch.float64).contiguous(memory_format=torch.channels_last).requires_grad_()
    before = x.detach().clone()
    y = dense_stage(x, *steps, memory_format=layout).y
    assert y.stride() == torch.empty_like(y, memory_format=layout).stride()
    expected = oracle.stage(x, *steps)
    cotangent = torch.randn(y.shape, dtype=y.dtype)
    exact = torch.autograd.grad(expected.mul(3).relu(), x, cotangent)[0]
    got = torch.autograd.grad(y.mul_(3).relu_(), x, cotangent)[0]
    assert error(got, exact) < 1e-10
    assert torch.equal(x, before)
    with torch.no_grad():
        dense_stage(x, *steps, memory_format=layout).y.zero_()
    assert torch.equal(x, before)


def test_a_stage_without_steps_keeps_nothing():
    """As torch.cat of one tensor: its input may be changed before backward."""
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    z = x * 2
    y = dense_stage(z).y
    z.mul_(3)
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], torch.full_like(x, 2))


def test_nan_and_infinity_pass_through_as_in_pytorch():
    steps = make_stage(6, (4, 4), "transition", frozen=range(5))
    x = torch.randn(2, 6, 6, 6, dtype=torch.float64)
    x[0, 1, 2, 3], x[1, 4, 1, 1] = float("nan"), float("inf")
    expected, got = oracle.stage(x, *steps), dense_stage(x, *steps).y
    assert torch.equal(expected.isnan(), got.isnan())
    assert expected.isnan().any()
    torch.testing.assert_close(got, expected, equal_nan=True)


@pytest.mark.parametrize("consumer", ["transition", "stem"])
@pytest.mark.parametrize("growth", [4, 3])
def test_extended_output_is_the_next_buffer(consumer, growth):
    """A stage that extends its input computes the same, in the memory the stage before it made."""
    first = make_stage(5, () if consumer == "stem" else (4, 4), consumer)
    second = make_stage(oracle.stage(torch.randn(2, 5, 6, 5, dtype=torch.float64), *first).shape[1], (growth, growth))
    x = torch.randn(2, 5, 6, 5, dtype=torch.float64, requires_grad=True)
    require_grad(first)
    require_grad(second)

    def run(room, extend):
        y = dense_stage(x, *first, output_room=room).y
        whole = dense_stage(y, *second, extend=extend, memory_format=None).y
        return y, whole, *gradients(whole, whole.detach(), x, [[*first[0], *second[0]], first[1]])

    y, whole, *got = run(2 * growth, True)
    apart, expected, *exact = run(0, False)
    assert whole.data_ptr() == y.data_ptr()
    assert expected.data_ptr() != apart.data_ptr()
    assert torch.equal(whole, expected)
    torch.testing.assert_close(got, exact, rtol=0, atol=0)


@pytest.mark.parametrize("room", [0, 4, 12])
def test_extending_without_the_right_room_is_refused(room):
    x = dense_stage(torch.randn(2, 6, 4, 4), *make_stage(6, (), "stem", dtype=torch.float32), output_room=room).y
    layers, _ = make_stage(6, (4, 4), None, dtype=torch.float32)
    with pytest.raises(ValueError, match="no room behind x: got strides"):
        dense_stage(x, layers, extend=True)
