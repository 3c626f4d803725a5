"""Every entry refuses what it cannot process, says what it got and expected, and has written nothing."""

import re

import pytest
import torch

from densenet_fast import backends
from densenet_fast.contract import Half
from densenet_fast.functional import dense_stage

from ..blocks import Shape, in_image, make
from ..calls import NAMES, Call
from ..calls import make as make_call
from .geometries import SMALL

pytestmark = pytest.mark.entry
CPU = torch.device("cpu")


def bad_versions(argument, tensor):
    """(what is wrong, the tensor made wrong)."""
    if "running" in argument:
        yield "dtype", tensor.int()
        yield "sizes", tensor[:-1]
        return
    if argument.startswith("num_batches_tracked"):
        yield "dtype", tensor.double()
        yield "sizes", torch.stack([tensor, tensor])
        return
    yield "dtype", tensor.double() if tensor.is_floating_point() else tensor.int()
    yield "sizes", tensor[None]
    yield "sizes", torch.cat([tensor, tensor], 1 if tensor.dim() == 4 else 0)
    if tensor.dim() == 2 and argument in ("stats", "correction"):
        yield "strides", tensor.t().contiguous().t()
        yield "strides", tensor[:1].expand(2, -1)
    if tensor.dim() == 4 and "weight" not in argument:
        yield "sizes", tensor[:, :, :0]
        yield "strides", tensor.contiguous()
        twice = torch.cat([tensor] * 2, 3).contiguous(memory_format=torch.channels_last)
        yield "strides", twice[..., : tensor.shape[3]]
    if argument.startswith("dweight"):
        yield "memory", torch.stack([tensor, tensor], 4)[..., 0]
    if argument in ("dgamma", "dbeta") or argument.startswith(("dgamma", "dbeta")):
        yield "strides", torch.stack([tensor, tensor], 1)[:, 0]


def refused(native, call: Call, told: str) -> None:
    before = [tensor.clone() for _, tensor in call.named()]
    with pytest.raises(RuntimeError, match=rf"^densenet_fast::{call.operation}: wrong {told}") as raised:
        call.on(native)
    assert re.search(": got .+, expected .+", str(raised.value).partition("\n")[0])
    for old, (name, new) in zip(before, call.named(), strict=True):
        assert torch.equal(old.nan_to_num(5.0), new.nan_to_num(5.0)), name


@pytest.mark.parametrize("name", NAMES)
def test_bad_tensors_are_refused_before_anything_is_written(native, name):
    call = make_call(name, SMALL, batch=not name.endswith("fwd"), drop_rate=0.3)
    first = next(iter(dict(call.named())))
    tried = 0
    for argument, declared, tensor in call.tensors():
        if declared.type == "Tensor":
            without = call.copy().changed(lambda a, t, argument=argument: None if a == argument else t)
            refused(native, without, f"{argument}: got None")
        for what, bad in bad_versions(argument, tensor):
            if what == "sizes" and bad.dim() == 4 and argument == "x" and name in ("channel_stats", first):
                continue  # x may have any size
            changed = call.copy().changed(lambda a, t, argument=argument, bad=bad: bad if a == argument else t)
            refused(native, changed, what)
            tried += 1
    assert tried > 3


@pytest.mark.parametrize("name", [n for n in NAMES if n.startswith(("conv", "plain", "layer"))])
@pytest.mark.parametrize("missing", ["mean", "var"])
def test_half_a_norm_is_refused(native, name, missing):
    call = make_call(name, SMALL, batch=False)
    present = [argument for argument, _ in call.named() if argument.split()[0].rstrip("12") == missing]
    for argument in present:
        refused(native, call.changed(lambda a, t, argument=argument: None if a == argument else t), missing)
    assert present


@pytest.mark.parametrize(
    ("name", "written"),
    [("transition_fwd", "y"), ("transition_bwd", "dx"), ("stem_bwd", "dx"), ("head_bwd", "dx"), ("bn_bwd_apply", "dx")],
)
def test_what_is_written_shares_no_memory_with_x(native, name, written):
    call = make_call(name, SMALL)
    x = dict(call.named())["x"]
    n, c, h, w = dict(call.named())[written].shape
    shared = x.as_strided((n, c, h, w), (h * w * c, 1, w * c, c))
    refused(native, call.changed(lambda argument, t: shared if argument == written else t), f"memory of {written}")


def test_slices_of_one_buffer_that_overlap_are_refused(native):
    buffer = torch.randn(2, 24, 5, 5).contiguous(memory_format=torch.channels_last)
    x, mean, correction = buffer[:, :12], torch.zeros(12), torch.zeros(2, 12)
    v = x.clone(memory_format=torch.channels_last)
    for start in (3, 11):
        with pytest.raises(RuntimeError, match="wrong memory of dx: got memory that x shares"):
            native.bn_bwd_apply(v, x, mean, correction, buffer[:, start : start + 12])
        with pytest.raises(RuntimeError, match="wrong memory of dx: got memory that v shares"):
            native.bn_bwd_apply(buffer[:, :12], v, mean, correction, buffer[:, start : start + 12])
    native.bn_bwd_apply(v, x, mean, correction, buffer[:, 12:])


SHAPE = Shape(2, 5, 4, 5, (6, 6), (3, 2), behind=2)
PLAIN = Shape(2, 5, 4, 5, (0,), (3,))


def some(*sizes):
    return torch.zeros(sizes)


# What is wrong with a block: the direction, what is given instead, what is told.
WRONG = {
    "channels": ("fwd", {"channels": 4}, r"sizes of gamma1: got \[5\], expected \[4\]"),
    "too many channels": (
        "fwd",
        {"channels": 9},
        "channels: got 9 and 5 of the layers, expected at least 1, and with the",
    ),
    "no channels": ("fwd", {"channels": 0}, "channels: got 0 and 5 of the layers"),
    "numbers": ("fwd", {"numbers": [0.0]}, "lengths of tensors and numbers: got 20 and 1, expected 10 and 3 for each"),
    "begin": ("fwd", {"begin": -1}, "begin and end: got -1 and 2, expected a range of 2 layers"),
    "end": ("bwd", {"end": 3}, "begin and end: got 0 and 3, expected a range of 2 layers"),
    "end before begin": ("bwd", {"begin": 2, "end": 1}, "begin and end: got 2 and 1"),
    "no half": ("fwd", {"halves": 0}, "halves: got 0, expected 1, 2 or 3"),
    "another half": ("bwd", {"halves": 4}, "halves: got 4, expected 1, 2 or 3"),
    "z of another size": ("fwd", {"z": some(240)}, r"sizes of z: got \[240\], expected \[512\]"),
    "z of two dimensions": ("bwd", {"z": some(2, 256)}, r"sizes of z: got \[2, 256\], expected \[512\]"),
    "z with gaps": ("fwd", {"z": some(512, 2)[:, 0]}, "memory of z: got a strided tensor"),
    "stats": ("fwd", {"stats": some(2, 23)}, r"sizes of stats: got \[2, 23\], expected \[2, 24\]"),
    "correction": ("bwd", {"correction": some(2, 12)}, r"sizes of correction: got \[2, 12\], expected \[2, 24\]"),
    "gradients": ("bwd", {"gradients": []}, "length of gradients: got 0, expected 20"),
    "u": ("bwd", {"u": some(2, 5, 5, 4)}, r"sizes of u: got \[2, 5, 5, 4\], expected \[2, 6, 5, 4\]"),
    "seeds": ("fwd", {"seeds": torch.zeros(3, dtype=torch.int64)}, r"sizes of seeds: got \[3\], expected \[2\]"),
    "first half without z": (
        "fwd",
        {"z": None, "halves": 1},
        "z: got None, expected a tensor where the halves run apart",
    ),
    "second half without z": ("fwd", {"z": None, "halves": 2}, "z: got None"),
    "backward half without z": ("bwd", {"z": None, "begin": 1, "halves": 2}, "z: got None"),
    "backward half without u": (
        "bwd",
        {"u": None, "begin": 1, "halves": 1},
        "u: got None, expected a tensor where the",
    ),
    "halves of two layers": (
        "bwd",
        {"halves": 2},
        "begin and end: got 0 and 2, expected one layer where the halves run",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_block_is_refused(native, wrong):
    direction, change, told = WRONG[wrong]
    case = make(SHAPE)
    given = [*(case.forward() if direction == "fwd" else case.backward())]
    *names, halves = ["x", "stats", "z", "block", "tracked", "begin", "end", "halves"]
    if direction == "bwd":
        *names, halves = ["g", "correction", "x", "stats", "z", "block", "gradients", "u", "begin", "end", "halves"]
    names.append(halves)
    for name, value in change.items():
        if name in names:
            given[names.index(name)] = value
        else:
            at = names.index("block")
            given[at] = given[at]._replace(**{name: value})
    refused(native, Call(f"block_{direction}", tuple(given)), told)


@pytest.mark.parametrize(
    ("shape", "place", "told"),
    [
        (SHAPE, 4, "weight1: got None, expected a tensor"),
        (SHAPE, 9, "gamma2: got a tensor, expected None"),  # then the layer has no bottleneck
    ],
)
def test_a_layer_without_a_weight_is_refused(native, shape, place, told):
    case = make(shape)
    case.block.tensors[place] = None
    refused(native, Call("block_fwd", case.forward()), told)


@pytest.mark.parametrize(
    ("shape", "place", "told"),
    [(SHAPE, 0, "dmean1"), (SHAPE, 6, "dvar2"), (PLAIN, 7, "dgamma2"), (PLAIN, 9, "dweight2")],
)
def test_gradients_of_what_has_none_are_refused(native, shape, place, told):
    case = make(shape)
    case.gradients[place] = some(5)
    refused(native, Call("block_bwd", case.backward()), f"{told}: got a tensor, expected None")


@pytest.mark.parametrize("drop_rate", [-0.1, 1.5, float("nan")])
def test_a_drop_rate_that_is_no_probability_is_refused(native, drop_rate):
    case = make(SHAPE, drop_rate=0.5)
    numbers = [drop_rate if i == 5 else number for i, number in enumerate(case.block.numbers)]
    case.block = case.block._replace(numbers=numbers)
    refused(native, Call("block_fwd", case.forward()), "drop_rate: got .*, expected a number between 0 and 1")


def test_memory_of_a_block_that_is_shared_is_refused(native):
    case = make(SHAPE)
    n, total, h, w = case.x.shape
    flat = case.x.as_strided((512,), (1,))
    refused(native, Call("block_fwd", (*case.forward()[:2], flat, *case.forward()[3:])), "memory of z")
    for name, told in (("g", "memory of g: got memory that x shares"), ("u", "memory of u: got memory that x shares")):
        shared = make(SHAPE)
        setattr(shared, name, shared.x if name == "g" else shared.x[:, 1:7])
        refused(native, Call("block_bwd", shared.backward()), told)
    shared = make(SHAPE)
    shared.u = shared.g[:, 2:8]
    refused(native, Call("block_bwd", shared.backward()), "memory of u: got memory that g shares")
    shared = make(SHAPE)
    shared.u = shared.z.as_strided((n, 6, h, w), (h * w * 6, 1, w * 6, 6), shared.z.storage_offset())
    refused(native, Call("block_bwd", shared.backward()), "memory of u: got memory that z shares")
    side = make(SHAPE)
    side.g = in_image(torch.randn(n, total, h, w), torch.float32, 8)
    native.block_bwd(*side.backward(1, 2, Half.SECOND))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"begins": [0, 1000]}, "begins: got 1000 for 16 channels, expected columns of stats, which has 41"),
        ({"begins": [-1, 0]}, "begins: got -1 for 24 channels"),
        ({"begins": [0]}, "length of a list: got 1, expected 2"),
        ({"momentum": [0.1] * 3}, "length of a list: got 3, expected 2"),
        ({"running_var": []}, "length of a list: got 0, expected 2"),
        ({"count": 1}, "count: got 1, expected at least 2"),
        ({"num_batches_tracked": [torch.tensor(3)]}, "length of num_batches_tracked: got 1, expected 2 or 0"),
    ],
    ids=str,
)
def test_wrong_updates_are_refused(native, change, told):
    call = make_call("update_running_stats", SMALL)
    names = [argument.name for argument, _ in call.arguments()]
    given = tuple(change.get(name, value) for name, value in zip(names, call.parameters, strict=True))
    refused(native, Call(call.operation, given), told)


def test_another_dtype_is_eager_s_and_the_reason_is_told():
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert backends.choose("auto", CPU, dtype) == "native"
    assert backends.choose("auto", CPU, torch.float64) == "eager"
    with pytest.raises(RuntimeError, match="float32, bfloat16 and float16, not in float64"):
        backends.choose("native", CPU, torch.float64)
    with pytest.raises(RuntimeError, match="it has kernels for CPU and CUDA, not for meta"):
        backends.choose("native", torch.device("meta"))


def test_an_explicit_native_request_in_float64_raises():
    with pytest.raises(RuntimeError, match="float16, not in float64"):
        dense_stage(torch.randn(1, 3, 4, 4, dtype=torch.float64), backend="native")


def test_an_unknown_instruction_set_is_refused():
    from densenet_fast import _C

    with pytest.raises(RuntimeError, match="got mmx, expected one of"):
        _C.use_instruction_set("mmx")
