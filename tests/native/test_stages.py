"""Whole stages and models on the native backend against PyTorch's own layers in float64."""

import pytest
import torch

import densenet_fast
from densenet_fast.functional import dense_stage

from ..oracle import leaves_to, make_stage, parameters, require_grad, rms_error, stage


def all_values(run, steps, x, cotangent):
    steps, x = require_grad(steps), x.clone().requires_grad_()
    y = run(x, steps)
    return [y, *torch.autograd.grad(y, [x, *parameters(steps)], cotangent.to(y.dtype))]


@pytest.mark.parametrize("bottleneck", [4, 3, None])
@pytest.mark.parametrize("consumer", [None, "transition", "head", "stem"])
@pytest.mark.parametrize("efficient", [False, True])
def test_stage_is_as_exact_as_stock(consumer, bottleneck, efficient):
    """Median over seeds of RMS errors, of the output and of every gradient."""
    ratios = []
    for seed in range(5):
        torch.manual_seed(seed)
        exact_steps = make_stage(13, (12, 12, 7), consumer, bottleneck=bottleneck)
        steps, x = leaves_to(exact_steps, torch.float32), torch.randn(3, 13, 11, 10)
        cotangent = torch.randn(stage(x.double(), *exact_steps).shape)
        exact = all_values(lambda x, s: stage(x, *s), leaves_to(steps, torch.float64), x.double(), cotangent)
        stock = all_values(lambda x, s: stage(x, *s), steps, x, cotangent)
        ours = all_values(lambda x, s: dense_stage(x, *s, backend="native", efficient=efficient).y, steps, x, cotangent)
        ratios.append([(rms_error(a, e), rms_error(b, e)) for a, b, e in zip(ours, stock, exact, strict=True)])
    for i in range(len(ratios[0])):
        our, their = (sorted(r[i][side] for r in ratios)[2] for side in (0, 1))
        assert our <= 2 * their + torch.finfo(torch.float32).eps, f"value {i}: {our:.2e}, stock {their:.2e}"


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("small_inputs", [True, False])
@pytest.mark.parametrize("bn_size", [4, None])
def test_model_equals_plain_in_float64(training, small_inputs, bn_size):
    config = {"growth_rate": 12, "block_config": (3, 4), "bn_size": bn_size, "small_inputs": small_inputs}
    model = densenet_fast.DenseNet(**config, backend="native").train(training)
    plain = densenet_fast.DenseNet(**config, backend="plain").train(training)
    plain.load_state_dict(model.state_dict())
    plain.double()
    x = torch.randn(4, 3, 37, 35)
    y, exact = model(x), plain(x.double())
    assert rms_error(y, exact) < 1e-5
    cotangent = torch.randn_like(y)
    y.backward(cotangent)
    exact.backward(cotangent.double())
    for (name, p), q in zip(model.named_parameters(), plain.parameters(), strict=True):
        # Not tight: pre-activations near zero fall either way, and norm0's gradient is the small rest of large terms.
        assert rms_error(p.grad, q.grad) < 0.1, name
    for (name, b), c in zip(model.named_buffers(), plain.buffers(), strict=True):
        assert rms_error(b.double(), c.double()) < 1e-5, name
