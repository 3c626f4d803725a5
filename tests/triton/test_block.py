"""A block in one operation, or in parts: its layers' launches, planned once; all checked before anything is written."""

from collections import defaultdict
from dataclasses import replace
from itertools import product

import pytest
import torch

from densenet_fast.backends import triton as operations
from densenet_fast.backends.triton import plan
from densenet_fast.backends.triton.launch import recorded
from densenet_fast.contract import Half
from densenet_fast.contract.block import TENSORS
from densenet_fast.functional import dense_stage

from .. import reference
from ..blocks import Case, Shape, make, surroundings
from ..calls import error
from ..oracle import as_under_autocast, leaves_to, make_stage, rms_error, stage
from ..rows import some, thorough
from .compare import FORMATS
from .conftest import DEVICE
from .plans import DEVICES
from .test_stages import all_values

SHAPES = {
    "bottlenecks": Shape(2, 6, 5, 5, (6, 6, 4), (3, 2, 4), behind=2),
    "plain": Shape(2, 6, 5, 5, (0, 0), (3, 2)),
    "mixed": Shape(2, 6, 5, 5, (6, 0, 6), (3, 2, 4)),
    "aligned": Shape(2, 6, 5, 8, (6, 0, 6), (4, 4, 4), behind=4),  # all rows on 16 bytes
}
ALL = SHAPES["mixed"]


def block(shape: Shape = ALL, dtype: torch.dtype = torch.float32, **options) -> Case:
    return make(shape, dtype, **options).copy(device=DEVICE)


def passed(backend, case: Case, forward=lambda run: run(), backward=lambda run: run()) -> Case:
    """A copy of the block after both directions, each called by a function that may split the call."""
    case = case.copy()
    forward(lambda *part: backend.block_fwd(*case.forward(*part)))
    case.correction.zero_()
    backward(lambda *part: backend.block_bwd(*case.backward(*part)))
    return case


def same(one: Case, other: Case) -> bool:
    """The same bits."""
    return all(torch.equal(a, b) for (_, a), (_, b) in zip(one.results(), other.results(), strict=True))


@pytest.mark.parametrize(
    ("shape", "options", "keep"),
    [
        ("bottlenecks", {}, True),
        ("plain", {"drop_rate": 0.3}, True),
        ("mixed", {"frozen": (True, False), "drop_rate": 0.3}, False),
        ("bottlenecks", {"frozen": (False, True), "affine": False}, False),
        ("bottlenecks", {"frozen": (True, True)}, True),
        ("aligned", {"drop_rate": 0.3}, False),
    ],
    ids=str,
)
def test_error_is_at_most_twice_eager_s(triton, eager, shape, options, keep):
    """Of everything that a forward and then a backward leave; and nothing else is touched."""
    errors = defaultdict(list)
    for _ in range(3):
        case = block(SHAPES[shape], **options)
        case = case if keep else case.without("z", "u")
        after = passed(triton, case)
        before, ours, theirs = (dict(of.results()) for of in (case, after, passed(eager, case)))
        for name, exact in passed(reference, case.copy(torch.float64, "cpu")).results():
            if exact.numel():
                errors[name.split(",")[0]].append(
                    (rms_error(ours[name].cpu(), exact), rms_error(theirs[name].cpu(), exact))
                )
                left = before[name].cpu().double() == exact
                assert torch.equal(ours[name].cpu()[left], before[name].cpu()[left]), name
        for memory in (after.x, after.stats, after.z, after.g, after.correction, *after.gradients):
            assert memory is None or surroundings(memory).isnan().all()
    for name, found in errors.items():  # few values each: those of all layers and blocks together
        our, their = (torch.tensor(side).square().mean().sqrt() for side in zip(*found, strict=True))
        assert our <= 2 * their + torch.finfo(torch.float32).eps, name


@pytest.mark.parametrize(
    ("layout", "frozen", "shape"),
    [
        ("contiguous", (False, True), "mixed"),
        ("contiguous", (False, False), "aligned"),
        thorough("channels_last", (False, False), "mixed"),
        ("transposed", (False, False), "mixed"),
    ],
    ids=str,
)
def test_a_block_is_its_layers_and_their_halves(triton, frozen, layout, shape):
    """To the bit, whole or in parts, on the tensors it was planned for and on others."""

    def laid_out(weight):
        if layout == "transposed":
            return weight.transpose(0, 1).contiguous().transpose(0, 1)
        return weight.contiguous(memory_format=torch.channels_last) if layout == "channels_last" else weight

    def by_layers(run):
        for i in range(3):
            run(i, i + 1)

    def by_layers_back(run):
        for i in reversed(range(3)):
            run(i, i + 1)

    def by_halves(run):
        for i in range(3):
            run(i, i + 1, Half.FIRST)
            run(i, i + 1, Half.SECOND)

    def by_halves_back(run):
        for i in reversed(range(3)):
            run(i, i + 1, Half.SECOND)
            run(i, i + 1, Half.FIRST)

    for _ in range(2):
        case = block(SHAPES[shape], drop_rate=0.2, frozen=frozen)
        tensors = [laid_out(t) if t is not None and t.dim() == 4 else t for t in case.block.tensors]
        case.block = case.block._replace(tensors=tensors)
        whole = passed(triton, case)
        assert same(whole, passed(triton, case, by_layers, by_layers_back))
        assert same(whole, passed(triton, case, by_halves, by_halves_back))
        assert same(whole, passed(triton, case, lambda run: (run(0, 2), run(2, 3)), lambda run: (run(1, 3), run(0, 1))))


def test_no_layers_and_halves_that_are_empty_do_nothing(triton):
    case = block()
    before = case.copy()
    triton.block_fwd(*case.forward(1, 1))
    triton.block_bwd(*case.backward(3, 3))
    triton.block_fwd(*case.forward(1, 2, Half.FIRST))  # of a layer without bottleneck
    triton.block_bwd(*case.backward(1, 2, Half.FIRST))
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(before.parts(), case.parts(), strict=True))


@pytest.mark.parametrize("dtype", [thorough(torch.float32), torch.bfloat16], ids=str)
@pytest.mark.parametrize("unwanted", ["gamma1", "beta1", "weight1", "gamma2", "beta2", "weight2", "all"])
def test_gradients_that_are_not_wanted_change_no_other(triton, unwanted, dtype):
    case = block(SHAPES["mixed"], dtype)
    left = [
        None if unwanted in (TENSORS[i % len(TENSORS)], "all") else gradient
        for i, gradient in enumerate(case.gradients)
    ]
    full, part = passed(triton, case), passed(triton, replace(case, gradients=left))
    expected = dict(full.results())
    for name, got in part.results():
        if unwanted in ("weight1", "all") and name not in ("x", "z", "stats[0] of x", "stats[1] of x"):
            assert error(got, expected[name]) < (1e-5 if dtype == torch.float32 else 5e-2), (
                name
            )  # another kernel's order
        else:
            assert torch.equal(got, expected[name]), name


@pytest.mark.parametrize(
    ("form", "frozen"),
    some(product(["float32", "bfloat16"], [range(5), (1, 3)]), always=[("bfloat16", (1, 3))]),
    ids=str,
)
def test_running_statistics_without_z_are_as_exact_as_stock(form, frozen):
    """Where nobody keeps z, the running norm2 is applied before z is rounded."""
    dtype, ratios = FORMATS[form].dtype, []
    for seed in range(5):
        torch.manual_seed(seed)
        with DEVICE:
            steps = as_under_autocast(make_stage(13, (12, 7), "head", frozen=frozen), dtype)
            exact_steps, x = leaves_to(steps, torch.float64), torch.randn(2, 13, 6, 5).to(dtype)
            cotangent = torch.randn(2, 32)
        exact = all_values(lambda x, s: stage(x, *s), exact_steps, x.double(), cotangent)
        stock = all_values(lambda x, s: stage(x, *s), steps, x, cotangent)
        ours = all_values(lambda x, s: dense_stage(x, *s, backend="triton", efficient=True).y, steps, x, cotangent)
        ratios.append([(rms_error(a, e), rms_error(b, e)) for a, b, e in zip(ours, stock, exact, strict=True)])
    for i in range(len(ratios[0])):
        our, their = (sorted(r[i][side] for r in ratios)[2] for side in (0, 1))
        assert our <= 2 * their + torch.finfo(dtype).eps, f"value {i}: {our:.2e}, stock {their:.2e}"


def at(case: Case, name: str, layer: int = 0) -> int:
    return len(TENSORS) * layer + TENSORS.index(name)


def with_tensor(name: str, change, layer: int = 0):
    def changed(case: Case) -> Case:
        tensors = list(case.block.tensors)
        i = at(case, name, layer)
        tensors[i] = change(tensors[i])
        return replace(case, block=case.block._replace(tensors=tensors))

    return changed


def with_gradient(name: str, change, layer: int = 0):
    def changed(case: Case) -> Case:
        gradients = list(case.gradients)
        gradients[at(case, name, layer)] = change(gradients[at(case, name, layer)])
        return replace(case, gradients=gradients)

    return changed


def shorter(case: Case, name: str) -> Case:
    return replace(case, block=case.block._replace(**{name: getattr(case.block, name)[:-1]}))


REFUSALS = [
    (
        "fwd",
        lambda c: replace(c, x=c.x[:, :10], stats=c.stats[:, :22]),
        "channels: got 10, 14 behind layer 3, expected from 1 to 10",
    ),
    ("fwd", lambda c: replace(c, block=c.block._replace(channels=4)), "sizes of gamma1: got [5], expected [4]"),
    ("fwd", lambda c: shorter(c, "numbers"), "lengths of tensors and numbers: got [30, 8], expected 10 and 3 a layer"),
    ("bwd", lambda c: shorter(c, "tensors"), "lengths of tensors and numbers: got [29, 9], expected 10 and 3 a layer"),
    ("fwd", with_tensor("weight1", lambda w: None), "weight1 of layer 0: got None, expected a tensor"),
    ("fwd", with_tensor("weight2", lambda w: w[0]), "sizes of weight2: got [6, 3, 3], expected a convolution's weight"),
    ("fwd", with_tensor("weight1", lambda w: w.half()), "dtype of weight1: got torch.float16, expected torch.float32"),
    ("fwd", with_tensor("var1", lambda v: torch.ones(5)), "mean1 and var1: got one alone, expected both or neither"),
    ("fwd", lambda c: replace(c, stats=c.stats[:, 1:]), "sizes of stats: got [2, 25], expected [2, 26]"),
    ("bwd", lambda c: replace(c, stats=c.stats[:, 1:]), "sizes of stats: got [2, 25], expected [2, 26]"),
    ("bwd", lambda c: replace(c, correction=c.correction[:, 1:]), "sizes of correction: got [2, 25], expected [2, 26]"),
    ("bwd", lambda c: replace(c, correction=c.correction.t().contiguous().t()), "strides of correction: got [1, 2]"),
    ("fwd", lambda c: replace(c, z=c.z[1:]), "sizes of z: got [767], expected [768]"),
    ("fwd", lambda c: replace(c, z=torch.zeros(2 * 768)[::2]), "strides of z: got [2], expected [1]"),
    ("bwd", lambda c: replace(c, z=c.z.half()), "dtype of z: got torch.float16, expected torch.float32"),
    ("bwd", lambda c: replace(c, u=c.u[:, :5]), "sizes of u: got [2, 5, 6, 5], expected [2, 6, 6, 5]"),
    ("bwd", lambda c: replace(c, u=c.u.contiguous()), "strides of u: got"),
    ("bwd", lambda c: replace(c, g=c.g[:, 1:]), "sizes of g: got [2, 13, 6, 5], expected [2, 14, 6, 5]"),
    ("bwd", lambda c: replace(c, gradients=c.gradients[1:]), "length of gradients: got 29, expected 30, as tensors"),
    ("bwd", with_gradient("weight1", lambda w: w[1:]), "sizes of dweight1: got [5, 5, 1, 1], expected [6, 5, 1, 1]"),
    ("bwd", with_gradient("weight2", lambda w: w.transpose(2, 3)), "strides of dweight2: got"),
    ("bwd", with_gradient("gamma2", lambda v: torch.stack([v, v], 1)[:, 0]), "strides of dgamma2: got [2]"),
    ("bwd", with_gradient("mean1", lambda v: torch.ones(5)), "gradient of mean1: got a tensor, expected None"),
    ("bwd", with_gradient("weight2", lambda v: torch.ones(2), 1), "gradient of weight2: got a tensor, expected None"),
    ("fwd", lambda c: replace(c, block=c.block._replace(seeds=c.block.seeds[1:])), "sizes of seeds: got [2], expected"),
    ("fwd", lambda c: replace(c, block=c.block._replace(seeds=c.block.seeds.int())), "dtype of seeds: got torch.int32"),
]


@pytest.mark.parametrize(("direction", "change", "told"), REFUSALS, ids=lambda v: v if isinstance(v, str) else "")
def test_bad_input_is_refused_before_anything_is_written(triton, direction, change, told):
    with DEVICE:
        case = change(block(drop_rate=0.2))
    before, arguments = case.copy(), case.forward() if direction == "fwd" else case.backward()
    with pytest.raises(RuntimeError) as caught:
        getattr(triton, f"block_{direction}")(*arguments)
    assert str(caught.value).startswith(f"densenet_fast::block_{direction}: wrong {told}")
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(before.parts(), case.parts(), strict=True))


PARTS = [
    (None, (2, 1, Half.BOTH), "begin and end: got [2, 1], expected a range of the 3 layers"),
    (None, (0, 4, Half.BOTH), "begin and end: got [0, 4], expected a range of the 3 layers"),
    (None, (-1, 2, Half.BOTH), "begin and end: got [-1, 2], expected a range of the 3 layers"),
    (None, (0, 3, 0), "halves: got 0, expected 1, 2 or both, 3"),
    (None, (0, 3, 4), "halves: got 4, expected 1, 2 or both, 3"),
    ("z", (0, 1, Half.FIRST), "z: got None, expected memory that the first half leaves to the second"),
    ("z", (0, 1, Half.SECOND), "z: got None, expected memory that the first half leaves to the second"),
    ("u", (0, 1, Half.SECOND), "u: got None, expected memory that the second half leaves to the first"),
    ("u", (2, 3, Half.FIRST), "u: got None, expected memory that the second half leaves to the first"),
]


@pytest.mark.parametrize(("without", "part", "told"), PARTS, ids=lambda v: str(v).split(":")[0])
def test_bad_parts_are_refused(triton, without, part, told):
    case = block().without(*([without] if without else []))
    for direction, arguments in (("fwd", case.forward(*part)), ("bwd", case.backward(*part))):
        if (direction, without) != ("fwd", "u"):
            with pytest.raises(RuntimeError) as caught:
                getattr(triton, f"block_{direction}")(*arguments)
            assert str(caught.value).startswith(f"densenet_fast::block_{direction}: wrong {told}")
    plain = block(SHAPES["plain"])  # which has neither
    triton.block_fwd(*plain.forward(0, 1, Half.SECOND))
    triton.block_bwd(*plain.backward(0, 1, Half.SECOND))


def test_layers_that_do_not_run_are_not_looked_at(triton):
    """But for their weights' sizes, from which the places of the others follow."""
    case = block()
    expected = passed(triton, case, lambda run: run(1, 3), lambda run: run(1, 3))
    tensors = [
        None if i < 10 and TENSORS[i] not in ("weight1", "weight2") else t for i, t in enumerate(case.block.tensors)
    ]
    part = replace(case, block=case.block._replace(tensors=tensors))
    got = passed(triton, part, lambda run: run(1, 3), lambda run: run(1, 3))
    of_tensors = {name for name, _ in expected.results()} - {name for name, _ in got.results()}
    assert of_tensors == {f"{name} of tensors, layer 0" for name in ("gamma1", "beta1", "gamma2", "beta2")}
    found = dict(got.results())
    assert all(torch.equal(found[name], e) for name, e in expected.results() if name not in of_tensors)


def test_tensors_that_share_memory_are_refused_although_the_plan_is_known(triton):
    case = block()
    passed(triton, case)
    aligned = case.x.storage_offset() // 4 * 4
    known = plan._plan.cache_info().misses
    z = case.x.as_strided(case.z.shape, case.z.stride(), aligned)
    with pytest.raises(RuntimeError, match=r"block_fwd: wrong memory of [xz]: got memory that [xz] shares"):
        triton.block_fwd(*replace(case, z=z).forward())
    with pytest.raises(RuntimeError, match="block_bwd: wrong memory of g: got memory that x shares"):
        triton.block_bwd(*replace(case, g=case.x).backward())
    assert plan._plan.cache_info().misses == known


def test_tensors_of_two_devices_are_refused():
    case = with_tensor("gamma1", lambda v: v.to("meta"))(block())
    with pytest.raises(RuntimeError, match=rf"wrong device of tensors: got meta, expected {DEVICE}"):
        operations.block_fwd(*case.forward())


def numbers(at: int, value: float):
    def changed(case: Case) -> Case:
        of = list(case.block.numbers)
        of[at] = value
        return replace(case, block=case.block._replace(numbers=of))

    return changed


def moved(t: torch.Tensor, by: int) -> torch.Tensor:
    """Its like in other memory, begun `by` elements later."""
    return torch.empty(t.numel() + by, dtype=t.dtype, device=t.device)[by:].view(t.shape)


CHANGES = {
    "eps": numbers(0, 1e-4),
    "drop_rate": numbers(2, 0.5),
    "no beta": with_tensor("beta1", lambda v: None),
    "running statistics": lambda c: with_tensor("var1", lambda v: moved(c.stats[0, :5], 0))(
        with_tensor("mean1", lambda v: moved(c.stats[0, :5], 0))(c)
    ),
    "batch": lambda c: replace(c, x=torch.cat([c.x] * 2).contiguous(memory_format=torch.channels_last), z=None),
    "row stride": lambda c: replace(c, x=c.x.contiguous(memory_format=torch.channels_last)),
    "alignment": lambda c: replace(c, x=c.x.as_strided(c.x.shape, c.x.stride(), c.x.storage_offset() + 1)),
    "alignment of a weight": with_tensor("weight1", lambda w: moved(w, 1)),
    "layout of a weight": with_tensor("weight2", lambda w: w.contiguous(memory_format=torch.channels_last)),
    "z not kept": lambda c: c.without("z"),
    "precision": lambda c: c,
    "not tracked": lambda c: c,
    "fewer layers": lambda c: c,
    "one half": lambda c: c,
}
PART = {"not tracked": (0, 3, 3, False), "fewer layers": (0, 2), "one half": (0, 3, 1)}


def seen(case: Case, *part):
    """All that a launch consists of, but for where its tensors begin."""

    def shown(value):
        if isinstance(value, tuple):
            return [shown(v) for v in value]
        return value.storage_offset() if isinstance(value, torch.Tensor) else value

    with recorded(DEVICES[90]) as launches:
        operations.block_fwd(*case.forward(*part))
    return [(e.kernel.__name__, e.grid, e.options, e.specialization, shown((*e.arguments.values(),))) for e in launches]


@pytest.mark.parametrize("change", CHANGES)
def test_a_plan_serves_nothing_it_was_not_made_for(change):
    same, also, changed = (make(ALL, drop_rate=0.3).copy(device="meta") for _ in range(3))
    changed, part = CHANGES[change](changed), PART.get(change, ())
    plan.forget()
    assert seen(same) == seen(also)
    assert plan._plan.cache_info().misses == 1
    if change == "precision":
        torch.backends.cudnn.conv.fp32_precision = "tf32"  # reset by conftest.py
    warm = seen(changed, *part)
    assert plan._plan.cache_info().misses == 2
    plan.forget()
    assert warm == seen(changed, *part)
