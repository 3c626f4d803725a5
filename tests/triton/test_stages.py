"""Whole stages and models on the triton backend against PyTorch's own layers in float64."""

import pytest
import torch
import torch.nn.functional as F

import densenet_fast
from densenet_fast.functional import dense_stage

from ..oracle import as_under_autocast, leaves_to, make_stage, parameters, require_grad, rms_error, stage
from ..rows import some
from .compare import FORMATS
from .conftest import DEVICE

SEEDS = 3
# form, consumer, width of the bottleneck over growth (None: layers without), z recomputed
CASES = [
    *(("float32", consumer, 4, False) for consumer in (None, "transition", "head", "stem")),
    ("float32", "transition", 4, True),
    ("float32", "head", None, False),
    *((form, "transition", 4, False) for form in ("tf32", "bfloat16", "float16")),
    ("bfloat16", "head", None, True),
]


class _TF32Convolution(torch.autograd.Function):
    """What PyTorch's convolutions do on a GPU where they may use TF32; on the CPU they never do."""

    @staticmethod
    def forward(ctx, x, weight, padding):
        ctx.save_for_backward(x, weight)
        ctx.padding = [padding, padding]
        return torch.conv2d(tf32(x), tf32(weight), padding=padding)

    @staticmethod
    def backward(ctx, dy):
        x, weight = map(tf32, ctx.saved_tensors)
        rest = ([1, 1], ctx.padding, [1, 1], False, [0, 0], 1, [True, True, False])
        dx, dweight, _ = torch.ops.aten.convolution_backward(tf32(dy), x, weight, None, *rest)
        return dx, dweight, None


def tf32(x):
    """float32 rounded to TF32's ten bits."""
    return ((x.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def stock_in_tf32(x, steps):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "conv2d", lambda x, weight, padding=0: _TF32Convolution.apply(x, weight, padding))
        return stage(x, *steps)


def all_values(run, steps, x, cotangent):
    steps, x = require_grad(steps), x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    y = run(x, steps)
    return [y, *torch.autograd.grad(y, [x, *parameters(steps)], cotangent.to(y.dtype))]


@pytest.mark.parametrize(("form", "consumer", "bottleneck", "efficient"), some(CASES, always=CASES[1:4] + CASES[-4:]))
def test_stage_is_as_exact_as_stock(form, consumer, bottleneck, efficient):
    """Median over seeds of RMS errors, of the output and of every gradient."""
    dtype, precision = FORMATS[form].dtype, FORMATS[form].precision
    torch.backends.cudnn.conv.fp32_precision = precision  # reset by conftest.py
    ratios = []
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        steps = as_under_autocast(make_stage(13, (12, 7), consumer, bottleneck=bottleneck), dtype)
        x = torch.randn(2, 13, 6, 5).to(dtype)
        exact_steps = leaves_to(steps, torch.float64)
        cotangent = torch.randn(stage(x.double(), *exact_steps).shape)
        exact = all_values(lambda x, s: stage(x, *s), exact_steps, x.double(), cotangent)
        emulated = form == "tf32" and DEVICE.type == "cpu"
        stock = all_values(stock_in_tf32 if emulated else lambda x, s: stage(x, *s), steps, x, cotangent)
        ours = all_values(lambda x, s: dense_stage(x, *s, backend="triton", efficient=efficient).y, steps, x, cotangent)
        ratios.append([(rms_error(a, e), rms_error(b, e)) for a, b, e in zip(ours, stock, exact, strict=True)])
    for i in range(len(ratios[0])):
        our, their = (sorted(r[i][side] for r in ratios)[SEEDS // 2] for side in (0, 1))
        assert our <= 2 * their + torch.finfo(dtype).eps, f"value {i}: {our:.2e}, stock {their:.2e}"


@pytest.mark.parametrize(
    ("small_inputs", "bn_size", "training"), [(False, 4, True), (True, None, True), (True, 4, False)]
)
def test_model_equals_plain_in_float64(small_inputs, bn_size, training):
    config = {"growth_rate": 12, "block_config": (2, 1), "bn_size": bn_size, "small_inputs": small_inputs}
    model = densenet_fast.DenseNet(**config, backend="triton").to(DEVICE).train(training)
    plain = densenet_fast.DenseNet(**config, backend="plain").to(DEVICE).train(training)
    plain.load_state_dict(model.state_dict())
    plain.double()
    x = torch.randn(2, 3, *((13, 11) if small_inputs else (37, 35)), device=DEVICE)
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


def test_model_without_gradient():
    """Inference takes the operation of its own."""
    config = {"growth_rate": 12, "block_config": (2, 2), "small_inputs": True}
    model = densenet_fast.DenseNet(**config, backend="triton").to(DEVICE).eval()
    plain = densenet_fast.DenseNet(**config, backend="plain").to(DEVICE).eval()
    plain.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 12, 12, device=DEVICE)
    with torch.no_grad():
        assert rms_error(model(x), plain.double()(x.double())) < 1e-5
