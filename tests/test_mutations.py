"""The tests can fail: each seeded fault in the algorithm is seen by the comparison with the oracle."""

import pytest
import torch

from densenet_fast import backends, running_stats
from densenet_fast.functional import dense_stage
from densenet_fast.models import DenseNet

from . import oracle
from .oracle import error, make_stage, parameters, require_grad


def worst_error(efficient: bool = False) -> float:
    torch.manual_seed(0)
    steps = require_grad(make_stage(6, (4, 4, 4), "transition", drop_rate=0.2))
    x = torch.randn(3, 6, 6, 5, dtype=torch.float64, requires_grad=True)
    y = dense_stage(x, *steps, efficient=efficient).y
    expected = oracle.stage(x, *steps)
    cotangent = torch.randn_like(y)
    values = [y, *torch.autograd.grad(y, [x, *parameters(steps)], cotangent)]
    exact = [expected, *torch.autograd.grad(expected, [x, *parameters(steps)], cotangent)]
    return max(error(v, e) for v, e in zip(values, exact, strict=True))


def dropped_correction(original):
    def backward(*args):
        a, b = args[-3].clone(), args[-2].clone()
        result = original(*args)
        args[-3].copy_(a)
        args[-2].copy_(b)
        return result

    return backward


def correction_without_its_slope(original):
    def backward(*args):
        result = original(*args)
        args[-2].zero_()
        return result

    return backward


def uncorrected_slice(original):
    def backward(dy, y, y_mean, a, b, *rest):
        return original(dy, y, y_mean, torch.zeros_like(a), torch.zeros_like(b), *rest)

    return backward


def forgotten_dropout(original):
    def backward(*args):
        return original(*args[:12], 0.0, None, *args[14:])

    return backward


def overwritten_gradient(original):
    def backward(*args):
        args[-4].zero_()
        return original(*args)

    return backward


BACKWARDS = ("bn_relu_conv1x1_bwd", "bn_relu_conv3x3_bwd", "transition_bwd")
FAULTS = [
    *((name, fault) for name in BACKWARDS for fault in (dropped_correction, correction_without_its_slope)),
    ("bn_relu_conv3x3_bwd", uncorrected_slice),
    ("bn_relu_conv3x3_bwd", forgotten_dropout),
    ("bn_relu_conv1x1_bwd", overwritten_gradient),
]


@pytest.mark.parametrize("efficient", [False, True])
def test_without_a_fault_there_is_no_error(efficient):
    assert worst_error(efficient) < 1e-11


@pytest.mark.parametrize(("name", "fault"), FAULTS, ids=lambda f: getattr(f, "__name__", f))
def test_a_fault_in_an_operation_is_seen(monkeypatch, name, fault):
    operations = backends.operations("eager", torch.device("cpu"))
    monkeypatch.setattr(operations, name, fault(getattr(operations, name)))
    assert worst_error() > 1e-4


def test_a_doubled_running_statistics_update_is_seen(monkeypatch):
    original = running_stats._write

    def twice(*args):
        original(*args)
        original(*args)

    x = torch.randn(4, 3, 8, 8)
    once, doubled = DenseNet(4, (2, 2)), DenseNet(4, (2, 2))
    doubled.load_state_dict(once.state_dict())
    once(x)
    monkeypatch.setattr(running_stats, "_write", twice)
    doubled(x)
    assert not torch.equal(once.features.norm_final.running_mean, doubled.features.norm_final.running_mean)
    assert doubled.features.norm_final.num_batches_tracked == 2 * once.features.norm_final.num_batches_tracked
