"""Bytes, from the allocator's own figures: what a forward leaves alive, exactly, and the peak over a step."""

from math import prod

import pytest
import torch
import torchvision.models as stock
from torch import nn

import densenet_fast
from benchmarks.memory import measure
from densenet_fast import DenseNet
from densenet_fast.contract.block import z_size
from densenet_fast.modules import DenseBlock, Transition
from densenet_fast.stage.buffer import channels_last, row_stride

FLOAT = 4


def kept_bytes(model: DenseNet, x: torch.Tensor, efficient: bool, frozen: str | None = None) -> int:
    """What must be alive after a float32 training forward, by the model of docs/memory.md: the image in NHWC, the
    stem's convolution, one buffer per block, z where it is not recomputed, statistics, and the classifier's input.
    Where layers run by halves, statistics have room for one more bottleneck. Of children of `features` up to `frozen`,
    nothing."""
    n, _, *size = x.shape
    floats = 0 if x.is_contiguous(memory_format=channels_last(x)) else x.numel()
    channels = model.features.conv0.out_channels
    if hasattr(model.features, "pool0"):
        size = [(s + 1) // 2 for s in size]
        floats += n * channels * prod(size) + 2 * channels
        size = [(s + 1) // 2 for s in size]
    for name, module in model.features.named_children():
        if isinstance(module, DenseBlock):
            layers = [(layer, hasattr(layer, "conv2")) for layer in module.values()]
            dilated = any(layer.get_submodule("conv2" if has else "conv1").dilation[0] != 1 for layer, has in layers)
            halves = model.spatial_dims != 2 or dilated
            widths = [layer.conv1.out_channels for layer, has_bottleneck in layers if has_bottleneck]
            channels += sum((layer.conv2 if has else layer.conv1).out_channels for layer, has in layers)
            floats += 2 * sum(widths) + (0 if efficient else z_size(widths, n * prod(size)))
            floats += n * row_stride(channels, torch.float32) * prod(size) + 2 * channels
            floats += 2 * max(widths, default=0) * halves
        elif isinstance(module, Transition):
            channels = module.conv.out_channels
            size = size if isinstance(module.pool, nn.Identity) else [s // 2 for s in size]
        floats = 0 if name == frozen else floats
    floats += n * channels + n * model.classifier.out_features
    return FLOAT * floats


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("efficient", [False, True])
@pytest.mark.parametrize(
    "config",
    [
        {"block_config": (3, 4, 2)},
        {"block_config": (3, 4), "small_inputs": False, "growth_rate": 32},
        {"block_config": (3, 3), "bn_size": None, "growth_rate": 7},
    ],
    ids=["small", "large", "plain layers"],
)
def test_live_bytes_are_exactly_those_that_must_be_kept(config, efficient, layout):
    model = DenseNet(**config, efficient=efficient, backend="eager")
    x = torch.randn(2, 3, 40, 40).contiguous(memory_format=layout)
    assert measure(model, x).live == kept_bytes(model, x, efficient)


@pytest.mark.parametrize("efficient", [False, True])
def test_memory_is_linear_in_depth(efficient):
    """Equal steps in depth cost equal bytes; stock keeps every layer's concatenation and its BN-ReLU."""

    def live(layers, backend):
        model = DenseNet(12, (layers,), efficient=efficient, backend=backend)
        return measure(model, torch.randn(2, 3, 8, 8)).live

    ours, theirs = ([live(n, backend) for n in (8, 16, 24)] for backend in ("eager", "plain"))
    assert ours[2] - 2 * ours[1] + ours[0] == 0
    eight_layers_over_eight = 8 * 8 * 12 * (2 * 8 * 8) * FLOAT
    assert theirs[2] - 2 * theirs[1] + theirs[0] >= 2 * eight_layers_over_eight


@pytest.mark.parametrize(("efficient", "live", "peak"), [(False, 28.5, 32.0), (True, 10.5, 22.0)])
def test_densenet121_at_224(efficient, live, peak):
    """Megabytes per image at batch 8; torchvision keeps 129.8 and, checkpointed, 62.4."""
    x = torch.randn(8, 3, 224, 224)
    memory = measure(densenet_fast.densenet121(efficient=efficient, backend="eager"), x)
    assert memory.live / 8e6 <= live
    assert memory.peak / 8e6 <= peak


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
