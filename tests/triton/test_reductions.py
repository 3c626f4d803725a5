"""What programs leave is merged by those that arrive last, or by a launch of its own where they are many; partial
gradients of a weight are added up by a later launch."""

import random
from types import SimpleNamespace

import pytest
import torch

from densenet_fast.backends.triton import _reduce, plan
from densenet_fast.backends.triton.launch import Device, recorded

from ..calls import Geometry
from . import plans
from .compare import FORMATS, call, check_error

GEOMETRY = Geometry(2, 13, 12, 38, 20, 12)  # several programs, of which the last has less
STATISTICS = ("channel_stats", "conv1x1_fwd", "conv3x3_fwd", "plain_fwd", "transition_fwd", "stem_fwd")
SUMS = ("conv1x1_bwd", "conv3x3_bwd", "plain_bwd", "transition_bwd", "stem_bwd", "head_bwd")
FEW = Device(90, 4)


@pytest.fixture
def rule(monkeypatch):
    """Sets a constant of the rule by which programs merge; plans are made anew."""

    def change(**constants):
        for name, value in constants.items():
            monkeypatch.setattr(_reduce, name, value)
        plan.forget()

    yield change
    plan.forget()


def kernels(launches):
    return [launch.kernel.__name__ for launch in launches]


@pytest.mark.parametrize(
    ("name", "device"),
    [
        (name, FEW)
        for name in STATISTICS + SUMS
        if name not in ("channel_stats", "transition_bwd", "plain_bwd", "stem_bwd")
    ]
    + [("conv1x1_bwd", Device(80, 4))],
    ids=str,
)
def test_error_where_groups_are_merged_and_then_these(triton, eager, rule, name, device):
    """Two rows to a group or a few more."""
    rule(ONE_GROUP=1)
    with recorded(device) as launches:
        check_error(triton, eager, FORMATS["float32"], *(call(name, GEOMETRY) for _ in range(3)))
    assert "clear_kernel" in kernels(launches)
    assert not {"merge_stats_kernel", "finish_bwd_kernel"} & {*kernels(launches)}


@pytest.mark.parametrize("name", STATISTICS + SUMS)
def test_error_where_a_launch_merges_what_many_programs_leave(triton, eager, rule, name):
    rule(WAVES=0)
    with recorded(FEW) as launches:
        check_error(triton, eager, FORMATS["float32"], *(call(name, GEOMETRY) for _ in range(3)))
    assert "clear_kernel" not in kernels(launches)
    assert ("merge_stats_kernel" if name in STATISTICS else "finish_bwd_kernel") in kernels(launches)


@pytest.mark.parametrize("group", [1, 64])
@pytest.mark.parametrize("name", ["conv1x1_fwd", "conv3x3_fwd", "conv1x1_bwd"])
def test_whoever_arrives_last_the_bits_are_the_same(executed, triton, rule, name, group):
    """And the counters are left at zero, so that a graph can run the launch again."""
    rule(ONE_GROUP=group)
    case, found = call(name, GEOMETRY, "bfloat16"), []
    for order in (list, reversed, lambda programs: random.Random(0).sample(programs, len(programs))):
        executed.order = order
        found.append(case.copy().on(triton).results())
        counters = [launch.arguments.get("arrivals") for launch, _ in executed.done]
        assert any(c is not None for c in counters)
        assert not any(c.any() for c in counters if c is not None)
    for other in found[1:]:
        assert all(torch.equal(other[of], value) for of, value in found[0].items())


@pytest.mark.parametrize("name", ["channel_stats", "head_bwd"])
def test_many_programs_keep_to_their_memory(executed, triton, eager, rule, name):
    """Those of several slabs of channels."""
    rule(WAVES=0)
    check_error(triton, eager, FORMATS["bfloat16"], call(name, GEOMETRY._replace(c=333), "bfloat16"))


@pytest.mark.parametrize("slabs", [1, 8])
@pytest.mark.parametrize("rows", [1, 64, 65, 131, 792, 793, 6336, 6337])
def test_how_programs_are_grouped(rows, slabs):
    """No program merges many more rows than it must, and all of many programs leave it to a launch."""
    counters = []
    arrivals, group, groups = _reduce._arrivals(
        SimpleNamespace(device=Device(90, 132), counters=lambda n: counters.append(n) or n), rows, slabs
    )
    if rows * slabs > 48 * 132:
        assert (arrivals, groups, counters) == (None, 0, [])
        return
    assert (groups - 1) * group < rows <= groups * group
    assert group <= max(64, rows**0.5 + 1)
    assert groups <= rows**0.5 + 1
    assert counters == [slabs * (groups + 1)]


def extent(tensor):
    """Its storage, and the bytes that it spans."""
    last = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
    begin = tensor.data_ptr()
    return tensor.untyped_storage()._cdata, begin, begin + (last + 1) * tensor.itemsize


def meet(one, other):
    (storage, begin, end), (other_storage, other_begin, other_end) = extent(one), extent(other)
    return storage == other_storage and begin < other_end and other_begin < end


WRITTEN = {  # by the kernels of a block's backward
    "bn_relu_conv1x1_fwd_kernel": ("z",),
    "bn_relu_conv3x3_correct_kernel": ("d",),
    "bn_relu_conv3x3_wgrad_kernel": ("weights",),
    "bn_relu_conv3x3_dgrad_kernel": ("u", "into"),
    "bn_relu_conv1x1_bwd_kernel": ("dx", "into", "dweight"),
    "bn_relu_conv1x1_grads_kernel": ("dx", "into", "dweight"),
}


@pytest.mark.parametrize("efficient", [False, True])
@pytest.mark.parametrize("growth", [12, 32])
@pytest.mark.parametrize("architecture", [80, 90])
def test_partial_gradients_stay_until_they_are_added_up(architecture, growth, efficient):
    """From the launch that leaves them to the one that adds them up, nothing writes there, not even this one."""
    net = plans.Net(2, 9, 16, growth, None, layers=3)
    _, launches = plans.step(net, plans.DEVICES[architecture], plans.FORMS["bf16"], True, efficient)
    added = 0
    for i, launch in enumerate(launches):
        partial = launch.arguments.get("weights")
        if partial is None or launch.arguments.get("dweight") is None:
            continue
        left_by = max(
            j
            for j in range(i)
            for name in ("dweight", "weights")
            if (given := launches[j].arguments.get(name)) is not None and extent(given) == extent(partial)
        )
        for later in launches[left_by + 1 : i + 1]:
            for name in WRITTEN.get(later.kernel.__name__, ()):
                if name == "weights" and later.arguments.get("dweight") is not None:
                    continue
                value = later.arguments[name]
                for tensor in value if isinstance(value, tuple) else (value,):
                    assert not isinstance(tensor, torch.Tensor) or not meet(tensor, partial), later.kernel.__name__
        added += 1
    assert added == 6
