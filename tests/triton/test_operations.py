"""What holds for every operation: schema, refusals, repeatability, stored statistics, layouts of weights."""

from contextlib import nullcontext
from itertools import permutations

import pytest
import torch

from densenet_fast import backends
from densenet_fast.contract import Norm, NormGradient
from densenet_fast.functional import dense_stage

from ..calls import NAMES, Geometry, error
from .compare import FORMATS, call
from .conftest import DEVICE

SMALL = Geometry(2, 5, 3, 12, 16, 4)
IMAGES = [n for n in NAMES if n != "update_running_stats"]
ACTIVATIONS = ("v", "x", "dx", "y", "dy", "g", "u")


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("conv3x3_fwd", "conv3x3_bwd")])
def test_opcheck(triton, name):
    """What the operator says of itself; of halves one is enough."""
    case = call(name, SMALL, drop_rate=0.3)
    flat = tuple(value for _, value in case.arguments())
    operator = getattr(torch.ops.densenet_fast, case.operation).triton
    torch.library.opcheck(operator, flat, test_utils=["test_schema", "test_faketensor"])


@pytest.mark.parametrize("name", IMAGES)
def test_two_runs_are_bitwise_equal(triton, name):
    case = call(name, Geometry(2, 9, 12, 40, 48, 12), "bfloat16", drop_rate=0.3)
    first, second = (case.copy().on(triton).results() for _ in range(2))
    assert all(torch.equal(value, second[result]) for result, value in first.items())


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", ["conv1x1_fwd", "conv3x3_fwd", "transition_fwd", "stem_fwd"])
def test_statistics_are_of_the_stored_values(triton, name, form):
    """Of rounded ones, each counted once: in several tiles and with strips and windows that end outside the image."""
    geometry = Geometry(2, 23, 13, 24, 16, 12)
    after = dict(call(name, geometry, form).on(triton).named())
    y, stats = after.get("y"), after["stats"]
    if name == "conv3x3_fwd":
        y, stats = after["x"][:, geometry.c : geometry.c + geometry.g], stats[:, geometry.c : geometry.c + geometry.g]
    elif name == "conv1x1_fwd":
        y, stats = after["z"][: 2 * 23 * 13 * 16].view(2, 23, 13, 16).permute(0, 3, 1, 2), stats[:, -16:]
    var, mean = torch.var_mean(y.double(), (0, 2, 3), correction=0)
    assert error(stats[0], mean) < 1e-6
    assert error(stats[1], var) < 1e-6


def bad_versions(operation: str, name: str, of: torch.Tensor):
    """(what is wrong, a tensor in the place of this one)."""
    if name.startswith("num_batches_tracked"):
        yield "dtype", of.double()
        yield "sizes", torch.stack([of, of])
        return
    running = name.startswith("running")
    if not running:
        yield "dtype", of.double() if of.is_floating_point() else of.int()
    yield "sizes", of[None]
    if name in ACTIVATIONS and of.dim() == 4:
        yield "sizes", of[:, :, :0]
        yield "strides", of.contiguous()
        beside = torch.cat([of] * 2, 3).contiguous(memory_format=torch.channels_last)
        yield "strides", beside[..., : of.shape[3]]
    elif name in ("stats", "correction"):
        yield "strides", of.t().contiguous().t()
    elif running or (name == "dgamma" or name == "z"):
        yield "strides", torch.stack([of, of], 1)[:, 0]
    elif name.startswith("dweight") and of.shape[2] == 3:
        yield "strides", of.contiguous(memory_format=torch.channels_last)
    if (operation, name) != ("update_running_stats", "stats"):  # which may have columns that no norm took
        yield "sizes", torch.cat([of, of], 1 if of.dim() > 1 else 0)


@pytest.mark.parametrize("name", NAMES)
def test_bad_tensors_are_refused_before_anything_is_written(triton, name):
    case = call(name, Geometry(2, 5, 7, 24, 16, 4), drop_rate=0.3)
    tried = 0
    for place, _, tensor in case.tensors():
        for what, bad in bad_versions(case.operation, place, tensor):
            changed = case.changed(lambda name, t, place=place, bad=bad: bad if name == place else t)
            before = changed.copy()
            with pytest.raises(RuntimeError, match=rf"densenet_fast::{case.operation}: wrong ({what}).*: got .*, exp"):
                changed.on(triton)
            for (_, _, old), (_, _, new) in zip(before.tensors(), changed.tensors(), strict=True):
                assert torch.equal(old.nan_to_num(5.0), new.nan_to_num(5.0))
            tried += 1
    assert tried > 3


def sharing(case):
    """(written, other) of every two activations or pairs of which one is written."""
    found = [
        (n, a.role.written or a.mutable, t) for n, a, t in case.tensors() if n in (*ACTIVATIONS, "stats", "correction")
    ]
    for (written, writes, _), (other, _, _) in permutations(found, 2):
        if writes and (written in ACTIVATIONS) == (other in ACTIVATIONS):
            yield written, other


@pytest.mark.parametrize("name", [n for n in IMAGES if n not in ("channel_stats", "head_fwd")])
def test_written_memory_that_is_also_read_is_refused(triton, name):
    case = call(name, Geometry(2, 5, 7, 24, 16, 4))
    pairs = [*sharing(case)]
    for written, other in pairs:
        tensors = dict(case.named())
        large, small = sorted((written, other), key=lambda n: -tensors[n].numel())
        for shift in (0, 1):
            offset = tensors[large].storage_offset() + shift
            moved = tensors[large].as_strided(tensors[small].shape, tensors[small].stride(), offset)
            changed = case.changed(lambda n, t, small=small, moved=moved: moved if n == small else t)
            told = rf"densenet_fast::{case.operation}: wrong memory of \w+: got memory that \w+ shares, expected"
            with pytest.raises(RuntimeError, match=told):
                changed.on(triton)
    assert pairs or name in ("conv1x1_fwd", "conv3x3_fwd", "plain_fwd", "layer_fwd")  # which write where they read


@pytest.mark.parametrize(("start", "fits"), [(0, True), (1, False), (8, False), (15, False), (16, True)])
def test_slices_of_one_buffer_lie_beside_each_other(triton, start, fits):
    buffer = torch.randn(2, 24, 5, 5, device=DEVICE).contiguous(memory_format=torch.channels_last)
    v, mean, correction = (
        torch.randn_like(buffer)[:, :8],
        torch.zeros(8, device=DEVICE),
        torch.zeros(2, 8, device=DEVICE),
    )
    with nullcontext() if fits else pytest.raises(RuntimeError, match="wrong memory of dx: got memory that x shares"):
        triton.bn_bwd_apply(v, buffer[:, 8:16], mean, correction, buffer[:, start : start + 8])


@pytest.mark.parametrize(("start", "fits"), [(0, False), (3, False), (4, True), (8, True), (9, False), (11, False)])
def test_a_vector_lies_between_the_rows_of_a_pair(triton, start, fits):
    x, dx = (torch.randn(1, 4, 1, 1, device=DEVICE) for _ in range(2))
    memory, vector = torch.zeros(24, device=DEVICE), torch.ones(4, device=DEVICE)
    dnorm = NormGradient(memory[start : start + 4], vector.clone(), memory.view(2, 12)[:, :4])
    with nullcontext() if fits else pytest.raises(RuntimeError, match="memory of dgamma: got memory that correction"):
        triton.head_bwd(x[:, :, 0, 0].clone(), x, Norm(vector, vector, None, None, 1e-5), dx, dnorm)


def test_other_dtypes_and_devices_are_refused_with_the_reason(monkeypatch):
    with pytest.raises(RuntimeError, match="float32, bfloat16 and float16, not in float64"):
        dense_stage(torch.randn(1, 3, 4, 4, dtype=torch.float64, device=DEVICE), backend="triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET=1"):
        dense_stage(torch.randn(1, 3, 4, 4), backend="triton")


def test_auto_never_takes_the_interpreter():
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        assert backends.choose("auto", torch.device("cpu"), dtype) != "triton"


@pytest.mark.parametrize("layout", ["channels_last", "transposed"])
@pytest.mark.parametrize("name", [n for n in NAMES if n.startswith(("conv", "plain", "transition"))])
def test_weights_in_any_layout(triton, name, layout):
    def laid_out(name, tensor):
        if not name.startswith("weight"):
            return tensor
        if layout == "channels_last":
            return tensor.contiguous(memory_format=torch.channels_last)
        return tensor.transpose(0, 1).contiguous().transpose(0, 1)

    case = call(name, SMALL)
    expected, got = case.copy().on(triton).results(), case.changed(laid_out).on(triton).results()
    assert all(torch.equal(value, expected[result]) for result, value in got.items())
