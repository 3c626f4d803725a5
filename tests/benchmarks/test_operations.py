"""Recorded calls, their check, and the bytes and operations that the package counts."""

import pytest
import torch

from benchmarks import operations
from benchmarks.compare import Workload
from benchmarks.subjects import net
from densenet_fast.contract import DECLARATIONS
from densenet_fast.contract.traffic import traffic

from ..calls import Geometry, make

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
        "block_fwd": 3,
        "transition_fwd": 2,
        "head_fwd": 1,
        "head_bwd": 1,
        "block_bwd": 3,
        "transition_bwd": 2,
        "bn_bwd_apply": 3,
    }


@pytest.mark.parametrize("name", [n for n in DECLARATIONS if n not in ("update_running_stats", "stem_fwd", "stem_bwd")])
def test_calls_can_be_repeated_and_are_right(calls, name):
    error, limit = operations.check(calls[name], name, "eager", CPU, torch.float32)
    assert 0 < error <= limit
    run = operations.runner(calls[name], name, "eager", CPU, torch.float32)
    assert run()["operation"] > 0
    assert operations.check(calls[name], name, "eager", CPU, torch.float32) == (error, limit)


@pytest.mark.parametrize("fault", ["value", "left out"])
def test_a_wrong_result_is_seen(calls, monkeypatch, fault):
    right = operations.operator

    def operator(backend, operation, device, dtype):
        eager = right("eager", operation, device, dtype)

        def wrong(x, *others):
            last = x[:, -1]
            before = last.clone()
            eager(x, *others)
            last.copy_(before if fault == "left out" else last * 1.001)

        return wrong if backend == "wrong" else eager

    for call in calls["block_fwd"]:  # a step has left the right values where they are not to be found
        call.fresh[0][:, -1] = 0
    monkeypatch.setattr(operations, "operator", operator)
    error, limit = operations.check(calls["block_fwd"], "block_fwd", "wrong", CPU, torch.float32)
    assert not error <= limit


@pytest.mark.parametrize(("channel", "is_seen"), [(0, True), (-1, False)], ids=["input", "layer"])
def test_what_a_layer_leaves_in_the_gradient_of_its_channels_is_no_result(calls, monkeypatch, channel, is_seen):
    right = operations.operator

    def operator(backend, operation, device, dtype):
        eager = right("eager", operation, device, dtype)

        def scribbling(g, *others):
            eager(g, *others)
            g[:, channel] = 7

        return scribbling if backend == "scribbling" else eager

    monkeypatch.setattr(operations, "operator", operator)
    error, limit = operations.check(calls["block_bwd"], "block_bwd", "scribbling", CPU, torch.float32)
    assert (error > limit) == is_seen


def test_bytes_and_operations_of_a_layer_by_hand():
    """C 6, K 4, G 2 on 3 images of 5x7: the sums written out."""
    n, h, w, c, k, g = 3, 5, 7, 6, 4, 2
    pixels = n * h * w

    def cost(name):
        call = make(name, Geometry(n, h, w, c, k, g), torch.float32)
        return traffic(call.operation, [value for _, value in call.arguments()])

    of_fwd1 = FLOAT * (pixels * (c + k) + 4 * c + k * c + 2 * k)
    of_fwd3 = FLOAT * (pixels * (k + g) + 4 * k + 9 * k * g + 2 * g)
    assert cost("conv1x1_fwd") == (of_fwd1, 2 * pixels * c * k)
    assert cost("conv3x3_fwd") == (of_fwd3, 2 * pixels * 9 * k * g)
    assert cost("layer_fwd") == (of_fwd1 + of_fwd3, 2 * pixels * (c * k + 9 * k * g))
    # u, z, x and g are read, g is written: u's remains are nobody's result.
    of_bwd1 = FLOAT * (pixels * (2 * k + 3 * c) + 5 * k + 4 * c + 2 * k * c + (2 + 4) * c)
    of_bwd3 = FLOAT * (pixels * (2 * g + 2 * k) + 3 * g + 4 * k + 2 * 9 * k * g + (2 + 4) * k)
    assert cost("conv1x1_bwd") == (of_bwd1, 2 * 2 * pixels * c * k)
    assert cost("conv3x3_bwd") == (of_bwd3, 2 * 2 * pixels * 9 * k * g)


def test_bytes_of_a_transition_by_hand():
    n, h, w, c, k = 3, 6, 8, 6, 4
    call = make("transition_fwd", Geometry(n, h, w, c, k, 2), torch.float32)
    cost = traffic("transition_fwd", [value for _, value in call.arguments()])
    pooled = n * h * w // 4
    assert cost.bytes == FLOAT * (n * h * w * c + pooled * k + 4 * c + k * c + 2 * k)
    assert cost.flops == 2 * pooled * c * k
