"""What holds for every operation: schema, refusals, repeatability, stored statistics, layouts of weights."""

from contextlib import nullcontext

import pytest
import torch

from densenet_fast import backends, ops
from densenet_fast.functional import dense_stage

from ..native.cases import Geometry, error
from ..native.test_bad_input import bad_versions
from ..opcheck import opcheck
from .compare import FORMATS, arguments, call, check_error, copied
from .conftest import DEVICE

NAMES = [operation.name for operation in ops.OPERATIONS]
SMALL = Geometry(2, 5, 3, 12, 16, 4)
IMAGES = [n for n in NAMES if n != "update_running_stats"]
WRITERS = [n for n in IMAGES if n.startswith(("bn_relu", "bottleneck", "transition", "stem")) or n == "head_bwd"]
WRITERS.remove("bn_relu_conv1x1_fwd")


@pytest.mark.parametrize("form", FORMATS)
def test_inference_of_a_bottleneck_is_as_exact_as_eager_s(triton, eager, form):
    for geometry in (SMALL, Geometry(1, 9, 7, 37, 48, 12)):
        cases = [arguments("bottleneck_infer", geometry, FORMATS[form].dtype, DEVICE) for _ in range(3)]
        check_error(triton, eager, "bottleneck_infer", cases[0], FORMATS[form], *cases[1:])


@pytest.mark.parametrize("name", NAMES)
def test_opcheck(triton, name):
    args = arguments(name, SMALL, torch.float32, DEVICE, drop_rate=0.3)
    opcheck(getattr(triton, name), tuple(copied(a) for a in args))


@pytest.mark.parametrize("name", IMAGES)
def test_two_runs_are_bitwise_equal(triton, name):
    args = arguments(name, Geometry(2, 9, 12, 40, 48, 12), torch.bfloat16, DEVICE, drop_rate=0.3)
    first, _ = call(getattr(triton, name), args)
    second, _ = call(getattr(triton, name), args)
    assert all(map(torch.equal, first, second))


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", ["bn_relu_conv1x1_fwd", "bn_relu_conv3x3_fwd", "transition_fwd", "stem_fwd"])
def test_statistics_are_of_the_stored_values(triton, name, form):
    """Of rounded ones, each counted once: in several tiles and with strips and windows that end outside the image."""
    args = arguments(name, Geometry(2, 23, 13, 24, 16, 12), FORMATS[form].dtype, DEVICE)
    (y, y_mean, y_var), _ = call(getattr(triton, name), args)
    var, mean = torch.var_mean(y.double(), (0, 2, 3), correction=0)
    assert error(y_mean, mean) < 1e-6
    assert error(y_var, var) < 1e-6


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


@pytest.mark.parametrize("name", WRITERS)
def test_written_memory_that_is_also_read_is_refused(triton, name):
    operation = getattr(triton, name)
    args = arguments(name, Geometry(2, 5, 7, 24, 16, 4), torch.float32, DEVICE, accumulate=True)
    images = {
        argument.name: i
        for i, (argument, a) in enumerate(zip(operation._schema.arguments, args, strict=True))
        if isinstance(a, torch.Tensor) and a.dim() == 4 and a._base is not None
    }
    written = images.pop("dx" if name.endswith("bwd") else "y")
    assert images
    for read in images.values():
        large, small = sorted((written, read), key=lambda i: -args[i].untyped_storage().nbytes())
        for shift in (0, 1):
            changed = list(args)
            offset = args[large].storage_offset() + shift
            changed[small] = args[large].as_strided(args[small].shape, args[small].stride(), offset)
            with pytest.raises(RuntimeError, match=rf"densenet_fast::{name}: wrong memory of .*: got .*, expected"):
                operation(*changed)


@pytest.mark.parametrize(("start", "fits"), [(0, True), (1, False), (8, False), (19, False), (20, True)])
def test_slices_of_one_buffer_lie_beside_each_other(triton, start, fits):
    buffer = torch.randn(2, 24, 5, 5, device=DEVICE).contiguous(memory_format=torch.channels_last)
    norm = torch.zeros(16, device=DEVICE), torch.ones(16, device=DEVICE), None, None, 1e-5
    rest = torch.randn(4, 16, 3, 3, device=DEVICE), 0.0, None, buffer[:, start : start + 4], None, None
    with nullcontext() if fits else pytest.raises(RuntimeError, match="wrong memory of y"):
        triton.bn_relu_conv3x3_fwd(buffer[:, 4:20], *norm, *rest)


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
