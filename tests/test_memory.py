"""Bytes, from the allocator's own figures: what a forward leaves alive, exactly, and the peak over a step."""

import pytest
import torch
import torchvision.models as stock

import densenet_fast
from benchmarks.memory import measure
from densenet_fast import DenseNet
from densenet_fast.memory import Step

from .rows import thorough

FLOAT = 4


@pytest.mark.parametrize("layout", [thorough(torch.contiguous_format), torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("efficient", [False, True])
@pytest.mark.parametrize(
    "config",
    [
        {"block_config": (3, 4, 2)},
        {"block_config": (3, 4), "small_inputs": False, "growth_rate": 32},
        {"block_config": (3, 3), "bn_size": None, "growth_rate": 7},
        {"block_config": (3, 3), "bn_size": None, "growth_rate": 7, "small_inputs": False, "num_init_features": 22},
    ],
    ids=["small", "large", "plain layers", "plain layers behind the large stem"],
)
def test_live_bytes_are_exactly_those_that_must_be_kept(config, efficient, layout):
    model = DenseNet(**config, efficient=efficient, backend="eager")
    x = torch.randn(2, 3, 40, 40).contiguous(memory_format=layout)
    assert measure(model, x).live == Step.of(model, x.shape, nhwc=layout == torch.channels_last).kept()


@pytest.mark.parametrize("frozen", [("conv0",), ("norm0",), ("conv0", "norm0")], ids=" and ".join)
@pytest.mark.parametrize("efficient", [False, True])
@pytest.mark.parametrize("dtype", [thorough(torch.float32), torch.bfloat16], ids=str)
def test_live_bytes_with_a_frozen_stem(dtype, efficient, frozen):
    model = DenseNet(12, (3, 4), small_inputs=False, efficient=efficient, backend="eager")
    for name in frozen:
        model.features.get_submodule(name).requires_grad_(False)
    x = torch.randn(2, 3, 40, 40)
    call = torch.autocast("cpu", torch.bfloat16, enabled=dtype != torch.float32)(model)
    assert measure(model, x, call=call).live == Step.of(model, x.shape, dtype).kept()


@pytest.mark.parametrize("efficient", [False, True])
def test_live_bytes_under_autocast(efficient):
    model = DenseNet(12, (3, 4), small_inputs=False, efficient=efficient, backend="eager")
    x = torch.randn(2, 3, 40, 40)
    live = measure(model, x, call=torch.autocast("cpu", torch.bfloat16)(model)).live
    assert live == Step.of(model, x.shape, torch.bfloat16).kept()


@pytest.mark.parametrize("efficient", [(), (1,), (1, 2, 3)], ids=str)
@pytest.mark.parametrize(
    ("backend", "dtype"), [("eager", torch.float32), ("native", torch.float32), ("native", torch.bfloat16)]
)
def test_peak_is_the_model_s(backend, dtype, efficient):
    """Of nets whose blocks recompute, or do not."""
    model = DenseNet(32, (6, 12, 8), small_inputs=False, num_init_features=64, backend=backend)
    for i in efficient:
        getattr(model.features, f"denseblock{i}").set_efficient()
    x = torch.randn(2, 3, 96, 96)
    found = measure(model, x, call=torch.autocast("cpu", torch.bfloat16, enabled=dtype != torch.float32)(model))
    step = Step.of(model, x.shape, dtype)
    assert found.live == step.kept()
    assert step.peak(backend) == pytest.approx(found.peak, rel=0.03)


def test_a_backend_that_there_is_not_has_no_peak():
    step = Step.of(DenseNet(4, (2,)), (1, 3, 16, 16))
    with pytest.raises(ValueError, match=r"^unknown backend: got 'foo', expected one of native, triton, eager$"):
        step.peak("foo")


@pytest.mark.parametrize("efficient", [False, thorough(True)])
def test_memory_is_linear_in_depth(efficient):
    """Equal steps in depth cost equal bytes; stock keeps every layer's concatenation and its BN-ReLU."""

    def live(layers, backend):
        model = DenseNet(12, (layers,), efficient=efficient, backend=backend)
        return measure(model, torch.randn(2, 3, 8, 8)).live

    ours, theirs = ([live(n, backend) for n in (4, 8, 12)] for backend in ("eager", "plain"))
    assert ours[2] - 2 * ours[1] + ours[0] == 0
    four_layers_over_four = 4 * 4 * 12 * (2 * 8 * 8) * FLOAT
    assert theirs[2] - 2 * theirs[1] + theirs[0] >= 2 * four_layers_over_four


@pytest.mark.thorough
@pytest.mark.parametrize(("efficient", "live", "peak"), [(False, 26.4, 31.6), (True, 6.0, 16.8)])
def test_densenet121_at_224(efficient, live, peak):
    """Megabytes per image at batch 8; torchvision keeps 129.8 and, checkpointed, 62.4."""
    x = torch.randn(8, 3, 224, 224)
    memory = measure(densenet_fast.densenet121(efficient=efficient, backend="eager"), x)
    assert memory.live / 8e6 <= live
    assert memory.peak / 8e6 <= peak


@pytest.mark.thorough
def test_stock_is_measured_as_published():
    """The measure itself, on torchvision: 129.8 MB per image live after the forward."""
    memory = measure(stock.densenet121(), torch.randn(8, 3, 224, 224))
    assert memory.live / 8e6 == pytest.approx(129.8, abs=0.05)


def test_inference_keeps_nothing_but_the_output():
    model = DenseNet(block_config=(3, 3)).eval().requires_grad_(False)
    x = torch.randn(2, 3, 16, 16)
    with torch.autograd.profiler.profile(use_device=None, profile_memory=True) as profile:
        y = model(x)
    held = sum(e.nbytes() for e in profile.kineto_results.events() if e.name() == "[memory]")
    assert held == y.numel() * FLOAT
