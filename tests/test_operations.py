"""The contract, operation by operation: schemas, fakes, slices of larger buffers, and what is not theirs to touch."""

import inspect

import pytest
import torch

from densenet_fast import backends, ops
from densenet_fast.functional import Norm

from .opcheck import opcheck
from .oracle import make_norm, make_weight

CPU = torch.device("cpu")


@pytest.fixture(params=[torch.float64, torch.float32, torch.bfloat16], ids=str)
def dtype(request):
    return request.param


def wide(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def buffer(channels, dtype, n=2, h=5, w=3):
    """An NHWC buffer with room before and behind the channels; the room is NaN."""
    whole = torch.full((n, channels + 8, h, w), float("nan"), dtype=dtype)
    whole = whole.contiguous(memory_format=torch.channels_last)
    inner = whole[:, 4 : 4 + channels]
    inner.copy_(torch.randn(n, channels, h, w))
    return whole, inner


def frozen_norm(channels, dtype) -> Norm:
    return make_norm(channels, wide(dtype), frozen=True)


def dense(n, c, h, w, dtype):
    return torch.randn(n, c, h, w).to(dtype).contiguous(memory_format=torch.channels_last)


def vectors(count, size, dtype):
    return [torch.rand(size, dtype=wide(dtype)) for _ in range(count)]


def arguments(name, dtype):
    """Arguments of one operation, and the whole buffers they are slices of."""
    c, k, g = 12, 16, 4
    whole_x, x = buffer(c, dtype)
    whole_dx, dx = buffer(c, dtype)
    whole_y, y = buffer(g, dtype)
    norm, norm2 = frozen_norm(c, dtype), frozen_norm(k, dtype)
    w1, w3 = make_weight(k, c, 1, dtype), make_weight(g, c, 3, dtype)
    z, u = dense(2, k, 5, 3, dtype), dense(2, k, 5, 3, dtype)
    dy = dense(2, g, 5, 3, dtype)
    seed = torch.tensor(3)
    whole_k, pooled_k = buffer(k, dtype, h=2, w=1)
    whole_c, pooled_c = buffer(c, dtype, h=3, w=2)
    wholes = [whole_x, whole_dx, whole_y, whole_k, whole_c]
    made = {
        "channel_stats": lambda: (x,),
        "bn_bwd_apply": lambda: (dx, x, norm.mean, *vectors(2, c, dtype)),
        "update_running_stats": lambda: (
            [torch.rand(3)],
            [torch.rand(3)],
            [torch.rand(3)],
            [torch.rand(3)],
            [8],
            [0.1],
        ),
        "bn_relu_conv1x1_fwd": lambda: (x, *norm, w1, True),
        "bn_relu_conv1x1_bwd": lambda: (
            *(u, z, *vectors(2, k, dtype), norm2.gamma, 1e-5, *vectors(2, k, dtype)),
            *(x, *norm, w1, True, dx, *vectors(2, c, dtype), True),
        ),
        "bn_relu_conv3x3_fwd": lambda: (x, *norm, w3, 0.3, seed, y, *vectors(2, g, dtype)),
        "bn_relu_conv3x3_bwd": lambda: (
            *(dy, y, *vectors(3, g, dtype), x, *norm, w3, 0.3, seed),
            *(True, dx, *vectors(2, c, dtype), True),
        ),
        "bottleneck_infer": lambda: (x, *norm, w1, *norm2, make_weight(g, k, 3, dtype), y),
        "transition_fwd": lambda: (x, *norm, w1, pooled_k, *vectors(2, k, dtype)),
        "transition_bwd": lambda: (dense(2, k, 2, 1, dtype), x, *norm, w1, True, dx, *vectors(2, c, dtype), True),
        "stem_fwd": lambda: (x, *norm, pooled_c, *vectors(2, c, dtype)),
        "stem_bwd": lambda: (dense(2, c, 3, 2, dtype), x, *norm, True, dx, *vectors(2, c, dtype)),
        "head_fwd": lambda: (x, *norm),
        "head_bwd": lambda: (torch.randn(2, c).to(dtype), x, *norm, True, dx, *vectors(2, c, dtype)),
    }
    return made[name](), wholes


NAMES = [operation.name for operation in ops.OPERATIONS]


@pytest.mark.parametrize("name", NAMES)
def test_schema_and_fake_tell_the_truth(name, dtype):
    operation = getattr(backends.operations("eager", CPU), name)
    args, _ = arguments(name, dtype)
    opcheck(operation, args)


@pytest.mark.parametrize("name", NAMES)
def test_only_the_slices_are_touched(name, dtype):
    """Results are finite although everything around the slices is NaN, and what is around stays NaN."""
    operation = getattr(backends.operations("eager", CPU), name)
    args, wholes = arguments(name, dtype)
    before = [whole.clone() for whole in wholes]
    results = operation(*args)
    for whole, old in zip(wholes, before, strict=True):
        around = torch.cat([whole[:, :4], whole[:, -4:]], 1)
        assert around.isnan().all()
        assert not whole[:, 4:-4].isnan().any()
        assert torch.equal(old.isnan(), whole.isnan())
    for result in results if isinstance(results, tuple) else [results]:
        assert result is None or not result.isnan().any()


@pytest.mark.parametrize("name", NAMES)
def test_eager_twin_has_the_contract_s_signature(name):
    from densenet_fast.backends import eager

    schema = getattr(backends.operations("eager", CPU), name)._schema
    assert list(inspect.signature(getattr(eager, name)).parameters) == [a.name for a in schema.arguments]


def test_a_layout_that_would_need_a_copy_is_an_error():
    """The contract's activations are NHWC; the functional layer sees to it, so an operation may insist."""
    x = torch.randn(2, 6, 5, 3)
    with pytest.raises(RuntimeError, match="view"):
        backends.operations("eager", CPU).bn_relu_conv1x1_fwd(
            x, *frozen_norm(6, x.dtype), make_weight(4, 6, 1, x.dtype), False
        )


def test_running_statistics_take_the_unbiased_variance():
    x = torch.randn(7, 3, dtype=torch.float64)
    module = torch.nn.BatchNorm1d(3, momentum=0.3, dtype=torch.float64)
    mean, var = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    module(x)
    batch_var, batch_mean = torch.var_mean(x, 0, correction=0)
    backends.operations("eager", CPU).update_running_stats([mean], [var], [batch_mean], [batch_var], [7], [0.3])
    torch.testing.assert_close((mean, var), (module.running_mean, module.running_var))
