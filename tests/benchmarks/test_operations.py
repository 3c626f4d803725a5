"""Recorded calls, their check, and the bytes and operations that the package counts."""

import pytest
import torch
from densenet_fast.ops.traffic import Role, role, traffic

from benchmarks import operations
from benchmarks.compare import Workload
from benchmarks.subjects import net
from densenet_fast import backends, ops

CPU = torch.device("cpu")
FLOAT = 4


def workload(training):
    return Workload(net("bc-10-4", 8), 2, CPU, torch.float32, training)


@pytest.fixture(scope="module")
def calls():
    return operations.record(workload(False)) | operations.record(workload(True))


def test_every_operation_of_the_net_is_recorded(calls):
    # Three blocks of one layer, two transitions, one head; the stem of small nets has no norm.
    assert {name: len(found) for name, found in calls.items()} == {
        "channel_stats": 1,
        "bn_relu_conv1x1_fwd": 3,
        "bn_relu_conv3x3_fwd": 3,
        "transition_fwd": 2,
        "head_fwd": 1,
        "bottleneck_infer": 3,
        "head_bwd": 1,
        "bn_relu_conv3x3_bwd": 3,
        "bn_relu_conv1x1_bwd": 3,
        "transition_bwd": 2,
        "bn_bwd_apply": 3,
    }


@pytest.mark.parametrize(
    "name", [o.name for o in ops.OPERATIONS if o.name not in ("update_running_stats", "stem_fwd", "stem_bwd")]
)
def test_calls_can_be_repeated_and_are_right(calls, name):
    error, limit = operations.check(calls[name], name, "eager", CPU, torch.float32)
    assert 0 < error <= limit
    run = operations.runner(calls[name], name, "eager", CPU, torch.float32)
    assert run()["operation"] > 0
    assert operations.check(calls[name], name, "eager", CPU, torch.float32) == (error, limit)


@pytest.mark.parametrize("fault", ["value", "left out"])
def test_a_wrong_result_is_seen(calls, monkeypatch, fault):
    table = backends.operations("eager", CPU)
    right = table.bn_relu_conv3x3_fwd

    def wrong(*args):
        last = args[9][:, -1]
        before = last.clone()
        right(*args)
        last.copy_(before if fault == "left out" else last * 1.001)

    wrong._schema = right._schema
    exact = vars(table).copy()
    monkeypatch.setattr(operations.backends, "operations", lambda name, *_: type(table)(**exact | changed(name)))

    def changed(name):
        return {"bn_relu_conv3x3_fwd": wrong} if name == "wrong" else {}

    error, limit = operations.check(calls["bn_relu_conv3x3_fwd"], "bn_relu_conv3x3_fwd", "wrong", CPU, torch.float32)
    assert not error <= limit


def test_bytes_and_operations_of_a_layer_by_hand():
    """C 6, K 4, G 2 on 3 images of 5x7: the sums written out."""
    n, h, w, c, k, g = 3, 5, 7, 6, 4, 2
    pixels = n * h * w

    def image(channels):
        return torch.rand(n, channels, h, w).contiguous(memory_format=torch.channels_last)

    def norm(size):
        return torch.zeros(size), torch.ones(size), torch.ones(size), torch.zeros(size), 1e-5

    table = backends.operations("eager", CPU)
    w1, w3 = torch.rand(k, c, 1, 1), torch.rand(g, k, 3, 3)

    args = [image(c), *norm(c), w1, True]
    z = table.bn_relu_conv1x1_fwd(*args)
    cost = traffic(table.bn_relu_conv1x1_fwd, args, z)
    assert cost.bytes == FLOAT * (pixels * (c + k) + 4 * c + k * c + 2 * k)
    assert cost.flops == 2 * pixels * c * k

    args = [image(k), *norm(k), w3, 0.0, None, image(g), torch.empty(g), torch.empty(g)]
    cost = traffic(table.bn_relu_conv3x3_fwd, args, table.bn_relu_conv3x3_fwd(*args))
    assert cost.bytes == FLOAT * (pixels * (k + g) + 4 * k + 9 * k * g + 2 * g)
    assert cost.flops == 2 * pixels * 9 * k * g

    # u, z, x and dx are read, dx is written: u's remains are nobody's result.
    mean, var, gamma, _, eps = norm(k)
    dx, a, b = image(c), torch.zeros(c), torch.zeros(c)
    args = [image(k), image(k), mean, var, gamma, eps, torch.zeros(k), torch.zeros(k), image(c), *norm(c), w1]
    args += [True, dx, a, b, True]
    cost = traffic(table.bn_relu_conv1x1_bwd, args, table.bn_relu_conv1x1_bwd(*args))
    assert cost.bytes == FLOAT * (pixels * (2 * k + 3 * c) + 5 * k + 4 * c + 2 * k * c + (2 + 4) * c)
    assert cost.flops == 2 * 2 * pixels * c * k


def test_roles_follow_the_contract():
    table = backends.operations("eager", CPU)
    assert role(table.transition_bwd, "dx") == Role(read=False, written=True)
    assert role(table.bn_relu_conv3x3_bwd, "dx") == Role(read=True, written=True)
    assert role(table.bn_relu_conv1x1_bwd, "u") == Role(read=True, written=False)
    assert role(table.head_fwd, "x") == Role(read=True, written=False)
    assert role(table.stem_fwd, "y_mean") == Role(read=False, written=True)
