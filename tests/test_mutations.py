"""The tests can fail: each seeded fault in the algorithm is seen by the comparison with the oracle."""

import pytest
import torch

from densenet_fast import backends
from densenet_fast.contract import DECLARATIONS
from densenet_fast.functional import dense_stage
from densenet_fast.models import DenseNet
from densenet_fast.modules import running_stats

from . import oracle
from .blocks import new_channels
from .oracle import error, make_stage, parameters, require_grad


def worst_error(efficient: bool = False) -> float:
    torch.manual_seed(0)
    steps = require_grad(make_stage(6, (4, 4, 4), "transition", drop_rate=0.2))
    x = torch.randn(3, 6, 6, 5, dtype=torch.float64, requires_grad=True)
    y = dense_stage(x, *steps, efficient=efficient, backend="eager").y
    expected = oracle.stage(x, *steps)
    cotangent = torch.randn_like(y)
    values = [y, *torch.autograd.grad(y, [x, *parameters(steps)], cotangent)]
    exact = [expected, *torch.autograd.grad(expected, [x, *parameters(steps)], cotangent)]
    return max(error(v, e) for v, e in zip(values, exact, strict=True))


# Of a backward operation, with its arguments by name as `contract.Operations` has them.
def dropped_correction(original, args):
    before = args["correction"].clone()
    original()
    args["correction"].copy_(before)


def correction_without_its_slope(original, args):
    original()
    args["correction"][1].zero_()


def uncorrected_slices(original, args):
    args["correction"].zero_()
    original()


def forgotten_dropout(original, args):
    original(block=args["block"]._replace(seeds=None))


def overwritten_gradient(original, args):
    args["g"].zero_()
    original()


def scribbled_gradient(original, args):
    original()
    args["g"][:, new_channels(args["block"], args["begin"], args["end"])] = 1e3


FAULTS = [
    *(
        (name, fault)
        for name in ("block_bwd", "transition_bwd")
        for fault in (dropped_correction, correction_without_its_slope)
    ),
    ("block_bwd", uncorrected_slices),
    ("block_bwd", forgotten_dropout),
    ("block_bwd", overwritten_gradient),
]


@pytest.mark.parametrize("efficient", [False, True])
def test_without_a_fault_there_is_no_error(efficient):
    assert worst_error(efficient) < 1e-11


@pytest.mark.parametrize(("name", "fault"), FAULTS, ids=lambda f: getattr(f, "__name__", f))
def test_a_fault_in_an_operation_is_seen(monkeypatch, name, fault):
    plant(monkeypatch, name, fault)
    assert worst_error() > 1e-4


@pytest.mark.parametrize("efficient", [False, True])
def test_nobody_reads_what_a_layer_leaves_in_the_gradient_of_its_channels(monkeypatch, efficient):
    plant(monkeypatch, "block_bwd", scribbled_gradient)
    assert worst_error(efficient) < 1e-11


def plant(monkeypatch, name, fault):
    operations = backends.operations("eager", torch.device("cpu"))
    right = getattr(operations, name)
    names = [parameter for parameter, _, _ in DECLARATIONS[name].parameters]

    def wrong(*values):
        args = dict(zip(names, values, strict=True))
        if "dnorm" in args:
            args["correction"] = args["dnorm"].correction
        fault(lambda **others: right(*[(args | others)[n] for n in names]), args)

    monkeypatch.setattr(operations, name, wrong)


def test_a_doubled_running_statistics_update_is_seen(monkeypatch):
    original = running_stats.Tracked.write

    def twice(*args):
        original(*args)
        original(*args)

    x = torch.randn(4, 3, 8, 8)
    once, doubled = DenseNet(4, (2, 2)), DenseNet(4, (2, 2))
    doubled.load_state_dict(once.state_dict())
    once(x)
    monkeypatch.setattr(running_stats.Tracked, "write", twice)
    doubled(x)
    assert not torch.equal(once.features.norm_final.running_mean, doubled.features.norm_final.running_mean)
    assert doubled.features.norm_final.num_batches_tracked == 2 * once.features.norm_final.num_batches_tracked
