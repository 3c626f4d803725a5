"""Blocks of several layers on CUDA: half by half, layer by layer and with nothing kept they are the whole, in bits and,
but for the packing of weights, in launches."""

from collections import defaultdict

import pytest
import torch

from densenet_fast.contract import Half

from .. import reference
from ..blocks import Shape, make, surroundings
from ..oracle import rms_error
from ..rows import thorough
from .launches import launches, layers, step

LAUNCHES = {"conv1x1_fwd": 1, "conv3x3_fwd": 2, "conv3x3_bwd": 3, "conv1x1_bwd": 2}  # of a layer
SHAPES = {"bottlenecks": Shape(2, 6, 5, 12, (32, 20), (8, 5), behind=2), "mixed": Shape(2, 6, 5, 12, (0, 24), (8, 5))}
shapes = pytest.mark.parametrize("shape", SHAPES)
frozens = pytest.mark.parametrize("frozen", [(False, False), (True, False), (False, True)], ids=str)


@pytest.mark.parametrize("name", LAUNCHES)
def test_launches_of_a_layer(machine, name):
    assert {len(launches(machine, name, geometry)) for geometry in layers(32)} == {LAUNCHES[name]}


def test_launches_of_a_step(machine):
    assert len(step(machine)) == 448


def packing(runs):
    return ["conv3x3_pack_kernel" in run.kernel for run in runs]


def there_and_back(operations, case):
    operations.block_fwd(*case.forward())
    operations.block_bwd(*case.backward())
    return case


def same(ours, expected, without=()):
    parts = dict(ours.parts())
    for name, part in expected.parts():
        if name != "u" and name not in without:
            assert torch.equal(parts[name].nan_to_num(7.0), part.nan_to_num(7.0)), name


@pytest.mark.parametrize(
    ("shape", "frozen", "dtype"),
    [
        thorough("bottlenecks", (False, False), torch.float32),
        ("bottlenecks", (True, False), torch.bfloat16),
        thorough("bottlenecks", (False, True), torch.bfloat16),
        ("mixed", (False, False), torch.bfloat16),
        thorough("mixed", (True, False), torch.float32),
        ("mixed", (False, True), torch.float32),
    ],
    ids=str,
)
def test_a_block_is_as_exact_as_stock(machine, shape, frozen, dtype):
    """The root mean square of each error over three blocks and their layers: single vectors have too few values."""
    found = defaultdict(list)
    for _ in range(3):
        case = make(SHAPES[shape], dtype, frozen=frozen, drop_rate=0.4)
        exact = dict(there_and_back(reference, case.copy(torch.float64)).parts())
        ours, stock = (dict(there_and_back(o, case.copy()).parts()) for o in (machine.operations, reference))
        for name in set(exact) - {"u"}:
            if exact[name].numel():
                errors = rms_error(ours[name], exact[name]), rms_error(stock[name], exact[name])
                found[name.split(",")[0]].append(errors)
    for name, errors in found.items():
        our, their = (torch.tensor(side).square().mean().sqrt() for side in zip(*errors, strict=True))
        assert our <= 2 * their + torch.finfo(dtype).eps, f"{name}: {our:.2e}, stock {their:.2e}"


@pytest.mark.parametrize("shape", ["bottlenecks", thorough("mixed")])
@frozens
def test_half_by_half_is_the_whole(machine, shape, frozen):
    case = make(SHAPES[shape], torch.bfloat16, frozen=frozen, drop_rate=0.3)
    whole, apart, operations = case.copy(), case.copy(), machine.operations
    there_and_back(operations, whole)
    assert packing(machine.launches).count(True) == packing(machine.launches[:1]).count(True) == 1
    expected = sorted(run.kernel for run in machine.launches[1:])
    machine.launches.clear()
    for i in range(case.layers):
        for half in (Half.FIRST, Half.SECOND):
            operations.block_fwd(*apart.forward(i, i + 1, half))
    n, _, h, w = case.x.shape
    for i in reversed(range(case.layers)):
        width = SHAPES[shape].widths[i]
        apart.u = torch.zeros(n, width, h, w, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
        for half in (Half.SECOND, Half.FIRST):
            operations.block_bwd(*apart.backward(i, i + 1, half))
    same(apart, whole)
    packs = packing(machine.launches)
    assert packs.count(True) == case.layers
    assert sorted(run.kernel for run, packs in zip(machine.launches, packs, strict=True) if not packs) == expected
    for tensor in (apart.x, apart.g, apart.stats, apart.correction):
        assert surroundings(tensor).isnan().all()


@shapes
def test_what_is_not_kept_changes_nothing(machine, shape):
    """z in scratch, and recomputed; u in scratch; layer by layer."""
    case = make(SHAPES[shape], torch.bfloat16)
    whole, apart = there_and_back(machine.operations, case.copy()), case.without("z", "u").copy()
    for i in range(case.layers):
        machine.operations.block_fwd(*apart.forward(i, i + 1))
    for i in reversed(range(case.layers)):
        machine.operations.block_bwd(*apart.backward(i, i + 1))
    same(apart, whole, without="z")


def test_more_layers_than_one_launch_packs(machine):
    case = make(Shape(1, 2, 1, 3, 50 * (0,), 50 * (1,)), torch.bfloat16)
    whole, apart = case.copy(), case.copy()
    machine.operations.block_fwd(*whole.forward())
    assert packing(machine.launches) == 2 * [True] + 50 * [False]
    for i in range(case.layers):
        machine.operations.block_fwd(*apart.forward(i, i + 1))
    same(apart, whole)


@shapes
def test_gradients_that_are_not_wanted(machine, shape):
    """All but the first layer's weights."""
    case = make(SHAPES[shape], torch.bfloat16)
    few = case.copy()
    few.gradients[:] = [t if i % 5 == 4 and i < 10 else None for i, t in enumerate(few.gradients)]
    expected = dict(there_and_back(machine.operations, case).parts())
    found = dict(there_and_back(machine.operations, few).parts())
    assert 0 < sum("gradients" in name for name in found) < 3
    assert all(
        name == "u" or torch.equal(part.nan_to_num(7.0), expected[name].nan_to_num(7.0)) for name, part in found.items()
    )
