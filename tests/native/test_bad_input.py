"""Every entry refuses what it cannot process, says what it got and expected, and has written nothing."""

import pytest
import torch

from densenet_fast import backends, ops
from densenet_fast.functional import dense_stage

from .cases import GEOMETRIES, clone, make

pytestmark = pytest.mark.entry
NAMES = [operation.name for operation in ops.OPERATIONS]
CPU = torch.device("cpu")


def bad_versions(name, argument):
    """(what is wrong, the argument made wrong)."""
    if isinstance(argument, list):
        if isinstance(argument[0], torch.Tensor):
            yield "sizes", [argument[0][:-1], *argument[1:]]
        yield "length", argument[:-1]
        return
    if not isinstance(argument, torch.Tensor):
        return
    if argument.is_floating_point():
        yield "dtype", argument.double()
    else:
        yield "dtype", argument.int()
    if argument.dim() == 4 and argument._base is not None:
        yield "sizes", argument[:, :, :0]
        if argument.shape[2] > 1 and argument.shape[1] > 1:
            yield "strides", argument.contiguous()
            yield (
                "strides",
                torch.cat([argument] * 2, 3).contiguous(memory_format=torch.channels_last)[..., : argument.shape[3]],
            )
    if argument.dim() > 0:
        yield "sizes", argument[None]
        yield "sizes", torch.cat([argument, argument], 1 if argument.dim() == 4 else 0)


@pytest.mark.parametrize("name", NAMES)
def test_bad_arguments_are_refused_before_anything_is_written(native, name):
    case = make(name, GEOMETRIES[0], drop_rate=0.3, accumulate=True)
    tried = 0
    for i, argument in enumerate(case.args):
        for what, bad in bad_versions(name, argument):
            args = [clone(a) for a in case.args]
            if i == 0 and what == "sizes" and name == "channel_stats" and bad.dim() != 5:
                continue  # the first argument sets the size
            args[i] = bad
            before = [a.clone() for a in args if isinstance(a, torch.Tensor)]
            with pytest.raises(RuntimeError, match=rf"densenet_fast::{name}: wrong ({what}).*: got .*, expected"):
                getattr(native, name)(*args)
            after = [a for a in args if isinstance(a, torch.Tensor)]
            for old, new in zip(before, after, strict=True):
                assert torch.equal(old.nan_to_num(5.0), new.nan_to_num(5.0))
            tried += 1
    assert tried


def test_overlapping_slices_are_refused(native):
    buffer = torch.randn(2, 24, 5, 5).contiguous(memory_format=torch.channels_last)
    vectors = torch.zeros(16), torch.ones(16), None, None, 1e-5
    for start in (8, 15):
        with pytest.raises(RuntimeError, match="memory"):
            native.bn_relu_conv3x3_fwd(
                buffer[:, :16], *vectors, torch.randn(4, 16, 3, 3), 0.0, None, buffer[:, start : start + 4], None, None
            )


def test_other_dtypes_are_eager_s_and_the_reason_is_told():
    assert backends.choose("auto", CPU, torch.float32) == "native"
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        assert backends.choose("auto", CPU, dtype) != "native"
        with pytest.raises(RuntimeError, match=str(dtype).removeprefix("torch.")):
            backends.choose("native", CPU, dtype)
    with pytest.raises(RuntimeError, match="it has kernels for CPU and CUDA, not for meta"):
        backends.choose("native", torch.device("meta"))


def test_an_explicit_native_request_in_float64_raises():
    with pytest.raises(RuntimeError, match="float32, not in float64"):
        dense_stage(torch.randn(1, 3, 4, 4, dtype=torch.float64), backend="native")


def test_an_unknown_instruction_set_is_refused():
    from densenet_fast import _C

    with pytest.raises(RuntimeError, match="got mmx, expected one of"):
        _C.use_instruction_set("mmx")
