"""Whole stages and models on the CUDA kernels against PyTorch's own layers in float64."""

import pytest
import torch

import densenet_fast
from densenet_fast import backends
from densenet_fast.functional import dense_stage

from ..oracle import as_under_autocast, leaves_to, make_stage, parameters, require_grad, rms_error, stage
from ..rows import thorough

SEEDS = 3


@pytest.fixture
def on_ptx(machine, monkeypatch):
    """Stages of the eager backend run the CUDA operations."""
    monkeypatch.setattr(backends, "operations", lambda *_: machine.operations)


def all_values(run, steps, x, cotangent):
    steps, x = require_grad(steps), x.clone().requires_grad_()
    y = run(x, steps)
    return [y, *torch.autograd.grad(y, [x, *parameters(steps)], cotangent.to(y.dtype))]


def ours(x, steps, efficient=False):
    return dense_stage(x, *steps, backend="eager", efficient=efficient).y


@pytest.mark.parametrize(
    ("consumer", "bottleneck", "efficient", "dtype"),
    [
        thorough(None, 4, False, torch.bfloat16),
        ("transition", 4, True, torch.bfloat16),
        thorough("transition", 4, False, torch.float32),
        ("head", 4, False, torch.float16),
        thorough("head", None, False, torch.bfloat16),
        ("stem", None, False, torch.float32),
    ],
    ids=str,
)
def test_stage_is_as_exact_as_stock(on_ptx, consumer, bottleneck, efficient, dtype):
    """Median over seeds of RMS errors, of the output and of every gradient."""
    ratios = []
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        steps = as_under_autocast(make_stage(13, (12, 7), consumer, bottleneck=bottleneck), dtype)
        x = torch.randn(2, 13, 7, 6).to(dtype)
        exact_steps = leaves_to(steps, torch.float64)
        cotangent = torch.randn(stage(x.double(), *exact_steps).shape)
        exact = all_values(lambda x, s: stage(x, *s), exact_steps, x.double(), cotangent)
        stock = all_values(lambda x, s: stage(x, *s), steps, x, cotangent)
        got = all_values(lambda x, s: ours(x, s, efficient), steps, x, cotangent)
        ratios.append([(rms_error(a, e), rms_error(b, e)) for a, b, e in zip(got, stock, exact, strict=True)])
    for i in range(len(ratios[0])):
        our, their = (sorted(r[i][side] for r in ratios)[SEEDS // 2] for side in (0, 1))
        assert our <= 2 * their + torch.finfo(dtype).eps, f"value {i}: {our:.2e}, stock {their:.2e}"


@pytest.mark.parametrize("training", [True, thorough(False)])
def test_model_equals_plain_in_float64(on_ptx, training):
    config = {"growth_rate": 8, "block_config": (2, 2), "small_inputs": False}
    model = densenet_fast.DenseNet(**config, backend="eager").train(training)
    plain = densenet_fast.DenseNet(**config, backend="plain").train(training)
    plain.load_state_dict(model.state_dict())
    plain.double()
    x = torch.randn(2, 3, 37, 35)
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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_graph_replays_a_step_on_a_gpu():
    model = densenet_fast.DenseNet(growth_rate=8, block_config=(2, 2), small_inputs=True, backend="native").cuda()
    x = torch.randn(8, 3, 32, 32, device="cuda")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            model(x).square().sum().backward()
            model.zero_grad(set_to_none=False)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        model(x).square().sum().backward()
    model.zero_grad(set_to_none=False)
    graph.replay()
    replayed = [p.grad.clone() for p in model.parameters()]
    model.zero_grad(set_to_none=False)
    model(x).square().sum().backward()
    assert all(torch.equal(a, p.grad) for a, p in zip(replayed, model.parameters(), strict=True))
