"""A block's layers in one operation: the same as one by one, to the bit, and checked before anything is written."""

from types import SimpleNamespace

import pytest
import torch

from densenet_fast import backends
from densenet_fast.functional import dense_stage

from ..opcheck import opcheck
from ..oracle import make_stage, parameters, require_grad

C, K, G, TOTAL = 5, (6, 4), (3, 2), 12  # channels, widths, growths; TOTAL has room behind the layers


def arguments(running=(False, False), drop=0.0):
    """tensors, numbers of two layers."""
    tensors, numbers, c = [], [], C
    for k, g in zip(K, G, strict=True):
        for size, fixed, weight in ((c, running[0], torch.randn(k, c, 1, 1)), (k, running[1], torch.randn(g, k, 3, 3))):
            statistics = [torch.randn(size), torch.rand(size) + 0.5] if fixed else [None, None]
            tensors += [*statistics, torch.randn(size), torch.randn(size), weight]
        tensors.append(torch.tensor(17) if drop else None)
        numbers += [1e-5, 1e-3, drop]
        c += g
    return tensors, numbers


def image(channels, fill=torch.randn):
    return fill(2, channels, 6, 5).contiguous(memory_format=torch.channels_last)


@pytest.mark.entry
@pytest.mark.parametrize("running", [(False, False), (True, True)])
@pytest.mark.parametrize("keep_z", [True, False])
def test_opcheck(native, running, keep_z):
    tensors, numbers = arguments(running, drop=0.3)
    x, mean, var = image(TOTAL), torch.zeros(TOTAL), torch.ones(TOTAL)
    z = [image(k) for k in K if keep_z]
    z_mean, z_var = ([torch.ones(0 if running[1] else k) for k in K] for _ in range(2))
    forward = (x, mean, var, True, C, tensors, numbers, z, z_mean, z_var)
    opcheck(native.dense_block_fwd, forward)
    native.dense_block_fwd(*forward)
    g, a, b = image(TOTAL), torch.zeros(TOTAL), torch.zeros(TOTAL)
    gradients = []
    for i in range(2):
        weight1, weight2 = tensors[11 * i + 4], tensors[11 * i + 9]
        vectors = [torch.zeros(weight.shape[1]) for weight in (weight1, weight1, weight2, weight2)]
        gradients += [*vectors[:2], torch.zeros_like(weight1), *vectors[2:], torch.zeros(0)]
    backward = (g, a, b, x, mean, var, C, tensors, numbers, z, z_mean, z_var, gradients)
    opcheck(native.dense_block_bwd, backward)


@pytest.mark.parametrize("efficient", [False, True])
def test_one_operation_is_the_layers_one_by_one(native, monkeypatch, efficient):
    results = []
    for without in ((), ("dense_block_fwd", "dense_block_bwd")):
        ops = SimpleNamespace(**{name: f for name, f in vars(native).items() if name not in without})
        monkeypatch.setattr(backends, "operations", lambda *_, ops=ops: ops)
        torch.manual_seed(0)
        steps = require_grad(make_stage(13, (12, 12, 7), "transition", dtype=torch.float32))
        y = dense_stage(torch.randn(3, 13, 9, 10), *steps, backend="native", efficient=efficient).y
        results.append((y, *torch.autograd.grad(y, parameters(steps), torch.ones_like(y))))
    assert all(map(torch.equal, *results))


@pytest.mark.entry
@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"x": torch.zeros(1, 8, 2, 2), "mean": torch.zeros(8), "var": torch.ones(8)}, "channels: got 5 and 5 of the"),
        ({"channels": 4}, "sizes of gamma1: got [5], expected [4]"),
        ({"numbers": [0.0]}, "lengths of tensors and numbers: got 22 and 1"),
        ({"z_mean": []}, "lengths of z, z_mean and z_var: got 0, 0 and 2"),
        ({"z_var": [torch.zeros(6), torch.zeros(3)]}, "sizes of z_var: got [3], expected [4]"),
        ({"mean": torch.zeros(3)}, "sizes of mean: got [3]"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input_is_refused_before_anything_is_written(native, change, told):
    tensors, numbers = arguments()
    named = {
        "x": image(TOTAL),
        "mean": torch.zeros(TOTAL),
        "var": torch.ones(TOTAL),
        "tracked": True,
        "channels": C,
        "tensors": tensors,
        "numbers": numbers,
        "z": [],
        "z_mean": [torch.zeros(k) for k in K],
        "z_var": [torch.zeros(k) for k in K],
    }
    named |= change
    named["x"] = named["x"].contiguous(memory_format=torch.channels_last)
    before = named["x"].clone()
    with pytest.raises(RuntimeError, match=told.replace("[", r"\[").replace("]", r"\]")):
        native.dense_block_fwd(*named.values())
    assert torch.equal(named["x"], before)
