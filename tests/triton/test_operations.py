"""What holds for every operation: schema, refusals, repeatability, the number of launches, layouts of weights."""

import pytest
import torch

from densenet_fast import backends, ops
from densenet_fast.backends.triton.launch import Device, recorded
from densenet_fast.functional import dense_stage

from ..native.cases import Geometry
from ..native.test_bad_input import bad_versions
from ..oracle import as_under_autocast, make_stage, parameters, require_grad
from .compare import FORMATS, arguments, call, check_error, copied
from .conftest import DEVICE

NAMES = [operation.name for operation in ops.OPERATIONS]
SMALL = Geometry(2, 5, 3, 12, 16, 4)
IMAGES = [n for n in NAMES if n != "update_running_stats"]


@pytest.mark.parametrize("form", FORMATS)
def test_inference_of_a_bottleneck_is_as_exact_as_eager_s(triton, eager, form):
    for geometry in (SMALL, Geometry(1, 9, 7, 37, 48, 12)):
        cases = [arguments("bottleneck_infer", geometry, FORMATS[form].dtype, DEVICE) for _ in range(3)]
        check_error(triton, eager, "bottleneck_infer", cases[0], FORMATS[form], *cases[1:])


@pytest.mark.parametrize("name", NAMES)
def test_opcheck(triton, name):
    args = arguments(name, SMALL, torch.float32, DEVICE, drop_rate=0.3)
    torch.library.opcheck(getattr(triton, name), tuple(copied(a) for a in args))


@pytest.mark.parametrize("name", IMAGES)
def test_two_runs_are_bitwise_equal(triton, name):
    args = arguments(name, Geometry(2, 9, 12, 40, 48, 12), torch.bfloat16, DEVICE, drop_rate=0.3)
    first, _ = call(getattr(triton, name), args)
    second, _ = call(getattr(triton, name), args)
    assert all(map(torch.equal, first, second))


@pytest.mark.parametrize("name", NAMES)
def test_bad_arguments_are_refused_before_anything_is_written(triton, name):
    args = arguments(name, Geometry(2, 5, 7, 24, 16, 4), torch.float32, DEVICE, drop_rate=0.3, accumulate=True)
    tried = 0
    for i, argument in enumerate(args):
        for what, bad in bad_versions(name, argument):
            if name == "channel_stats" and what == "sizes" and bad.numel() > 0 and bad.dim() == 4:
                continue  # the only argument sets the sizes
            changed = [copied(a) for a in args]
            changed[i] = bad
            before = [copied(a) for a in changed]
            with pytest.raises(RuntimeError, match=rf"densenet_fast::{name}: wrong ({what}).*: got .*, expected"):
                getattr(triton, name)(*changed)
            for old, new in zip(before, changed, strict=True):
                if isinstance(new, torch.Tensor):
                    assert torch.equal(old.nan_to_num(5.0), new.nan_to_num(5.0))
            tried += 1
    assert tried


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
@pytest.mark.parametrize("name", [n for n in NAMES if "conv" in n or n.startswith("transition") or "infer" in n])
def test_weights_in_any_layout(triton, name, layout):
    args = arguments(name, SMALL, torch.float32, DEVICE)
    expected, _ = call(getattr(triton, name), args)
    for i, argument in enumerate(args):
        if isinstance(argument, torch.Tensor) and argument.dim() == 4 and argument._base is None:
            if layout == "channels_last":
                args[i] = argument.contiguous(memory_format=torch.channels_last)
            else:
                args[i] = argument.transpose(0, 1).contiguous().transpose(0, 1)
    got = getattr(triton, name)(*args)
    got = list(got) if isinstance(got, tuple) else [] if got is None else [got]
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=False))


@pytest.mark.parametrize(("bottleneck", "efficient"), [(4, False), (4, True), (None, False)])
def test_launches_for_each_layer(bottleneck, efficient):
    """At most four forward and six backward, and one more where z is computed again."""
    counts = {}
    for layers in (1, 3):
        steps = as_under_autocast(make_stage(16, (8,) * layers, bottleneck=bottleneck), torch.bfloat16)
        steps = require_grad(steps)
        x = torch.randn(2, 16, 5, 6, dtype=torch.bfloat16, device=DEVICE)
        with recorded(Device(90, 4)) as forward:
            y = dense_stage(x, *steps, efficient=efficient, backend="triton").y
        with recorded(Device(90, 4)) as backward:
            torch.autograd.grad(y, parameters(steps), torch.randn_like(y))
        counts[layers] = len(forward), len(backward)
    forward, backward = ((b - a) / 2 for a, b in zip(counts[1], counts[3], strict=True))
    assert forward <= 4
    assert backward <= 6 + efficient
