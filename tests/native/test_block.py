"""Blocks of several layers: in one call, layer by layer, half by half, the same bits."""

import pytest
import torch

from densenet_fast.contract import Half

from .. import reference
from ..blocks import Shape, in_image, make, surroundings
from ..oracle import rms_error

SHAPES = {
    "bottlenecks": Shape(3, 9, 10, 13, (48, 20, 28), (12, 5, 7), behind=2),
    "plain": Shape(3, 9, 10, 13, (0, 0), (12, 5)),
    "mixed": Shape(2, 9, 7, 13, (16, 0, 24), (3, 12, 4)),
}
BATCH, FROZEN = (False, False), (True, True)
shapes = pytest.mark.parametrize("shape", SHAPES)
frozens = pytest.mark.parametrize("frozen", [BATCH, (True, False), (False, True), FROZEN], ids=str)


def there_and_back(native, case):
    native.block_fwd(*case.forward())
    native.block_bwd(*case.backward())
    return case


def same(ours, expected, without=()):
    """Bit for bit, but for u, of which nothing is left, and NaN, between the images of z."""
    parts = dict(ours.parts())
    for name, part in expected.parts():
        if name != "u" and name not in without:
            assert torch.equal(parts[name].nan_to_num(7.0), part.nan_to_num(7.0)), name


@shapes
@frozens
@pytest.mark.parametrize("drop_rate", [0.0, 0.4])
def test_a_block_is_as_exact_as_stock(native, shape, frozen, drop_rate):
    """A forward and a backward: the root mean square of the error of all that it leaves, the median of five seeds. Of
    the largest error a value before a ReLU may decide that falls either way."""
    errors = {}
    for _ in range(5):
        case = make(SHAPES[shape], frozen=frozen, drop_rate=drop_rate)
        exact = dict(there_and_back(reference, case.copy(torch.float64)).parts())
        ours, stock = (dict(there_and_back(o, case.copy()).parts()) for o in (native, reference))
        for name in set(exact) - {"u"}:
            both = rms_error(ours[name], exact[name]), rms_error(stock[name], exact[name])
            errors.setdefault(name, []).append(both)
    for name, of_seeds in errors.items():
        our, their = (sorted(side)[2] for side in zip(*of_seeds, strict=True))
        assert our <= 2 * their + torch.finfo(torch.float32).eps, f"{name}: {our:.2e}, stock {their:.2e}"


@shapes
@frozens
def test_half_by_half_is_the_whole(native, shape, frozen):
    case = make(SHAPES[shape], frozen=frozen, drop_rate=0.3)
    whole, apart = there_and_back(native, case.copy()), case.copy()
    for i in range(case.layers):
        for half in (Half.FIRST, Half.SECOND):
            native.block_fwd(*apart.forward(i, i + 1, half))
    n, _, h, w = case.x.shape
    for i in reversed(range(case.layers)):
        apart.u = in_image(torch.zeros(n, SHAPES[shape].widths[i], h, w), torch.float32, 3)
        for half in (Half.SECOND, Half.FIRST):
            native.block_bwd(*apart.backward(i, i + 1, half))
        assert surroundings(apart.u).isnan().all()
    same(apart, whole)


@shapes
def test_layer_by_layer_is_the_whole(native, shape):
    case = make(SHAPES[shape], drop_rate=0.3)
    whole, apart = there_and_back(native, case.copy()), case.copy()
    for i in range(case.layers):
        native.block_fwd(*apart.forward(i, i + 1))
    for i in reversed(range(case.layers)):
        native.block_bwd(*apart.backward(i, i + 1))
    same(apart, whole)


@shapes
def test_a_part_touches_no_other_layer(native, shape):
    case = make(SHAPES[shape])
    ours, exact = case.copy(), case.copy(torch.float64)
    for operations, part in ((native, ours), (reference, exact)):
        operations.block_fwd(*part.forward(1, 2))
        operations.block_bwd(*part.backward(1, 2))
    expected, before = dict(exact.parts()), dict(case.parts())
    for name, part in ours.parts():
        if name != "u":
            left = expected[name] == before[name].double()
            assert torch.equal(part[left], before[name][left]), name
    for tensor in (ours.x, ours.g, ours.stats, ours.correction, *(t for t in ours.gradients if t is not None)):
        assert surroundings(tensor).isnan().all()


@shapes
@frozens
def test_what_is_not_kept_changes_nothing(native, shape, frozen):
    """z in scratch, and recomputed; u in scratch."""
    case = make(SHAPES[shape], frozen=frozen, drop_rate=0.3)
    same(there_and_back(native, case.without("z", "u").copy()), there_and_back(native, case.copy()), without="z")


@shapes
def test_all_bottlenecks_in_one_call(native, shape):
    """A backward may want z again."""
    whole, again = make(SHAPES[shape]), None
    native.block_fwd(*whole.forward())
    again = whole.copy()
    if again.z is not None:
        again.z.zero_()
    again.stats[:, again.x.shape[1] :] = 0
    native.block_fwd(*again.forward(halves=Half.FIRST))
    for name, part in again.parts():
        expected = dict(whole.parts())[name]
        assert name == "z" or torch.equal(part, expected), name
    exact = whole.copy()
    native.block_bwd(*exact.backward())
    native.block_bwd(*again.backward())
    same(again, exact, without="z")


@shapes
@pytest.mark.parametrize("kept", [0, 1, 2], ids=["gammas", "betas", "weights"])
def test_gradients_that_are_not_wanted(native, shape, kept):
    """Those of one kind alone, and of the last layer none."""
    case = make(SHAPES[shape])
    few = case.copy()
    few.gradients[:] = [
        t if i % 5 == 2 + kept and i < 10 * (case.layers - 1) else None for i, t in enumerate(few.gradients)
    ]
    same_but_few = there_and_back(native, few)
    expected = dict(there_and_back(native, case).parts())
    found = dict(same_but_few.parts())
    assert 0 < sum("gradients" in name for name in found) < sum("gradients" in name for name in expected)
    assert all(name in ("u", "z") or torch.equal(part, expected[name]) for name, part in found.items())


def test_untracked_statistics_stay(native):
    case = make(SHAPES["bottlenecks"], frozen=FROZEN)
    before = case.stats.clone()
    native.block_fwd(*case.forward(tracked=False))
    assert torch.equal(case.stats, before)


def test_an_empty_range_does_nothing(native):
    case = make(SHAPES["mixed"])
    before = case.copy()
    native.block_fwd(*case.forward(2, 2))
    native.block_bwd(*case.backward(0, 0))
    same(case, before)
