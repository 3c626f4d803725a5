"""Dilated nets for segmentation: `output_stride`, and models of any library that were dilated by hand, against
torchvision's and the others' layers."""

import copy

import pytest
import torch
import torchvision.models as stock
from segmentation_models_pytorch.encoders import get_encoder
from segmentation_models_pytorch.encoders._utils import replace_strides_with_dilation
from torch import nn

import densenet_fast
from benchmarks.memory import measure
from densenet_fast import DenseNet
from densenet_fast.memory import Step
from densenet_fast.torchvision import DenseNet as Ours

from .contract.backends import Backend
from .contract.nets import Trio, buffers, gradients
from .contract.nets import step as step_of
from .conversion.models import Monai, Timm
from .oracle import away_from_start, error
from .pairs import BACKENDS

CONFIG = {"growth_rate": 4, "block_config": (2, 1, 2, 2), "num_init_features": 6, "num_classes": 5}
DILATIONS = {32: {}, 16: {4: 2}, 8: {3: 2, 4: 4}, 4: {2: 2, 3: 4, 4: 8}}  # of blocks, by the features' stride


def dilated(model, output_stride, pool=lambda pool: nn.Identity()):
    """A net of torchvision's children, dilated as published code does it: no pooling in front of a dilated block."""
    for i, dilation in DILATIONS[output_stride].items():
        transition = model.features.get_submodule(f"transition{i - 1}")
        transition.pool = pool(transition.pool)
        for module in model.features.get_submodule(f"denseblock{i}").modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d) and module.kernel_size[0] == 3:
                module.dilation = module.padding = (dilation,) * len(module.kernel_size)
    return model


def set_to_one(pool):
    pool.kernel_size = pool.stride = 1
    return pool


def check_step(ours, theirs, x):
    """A training step, inference on the statistics that it left, and the features' memory."""
    results = []
    for model in (ours, theirs):
        leaf = x.clone().requires_grad_()
        y = model(leaf)
        y = y if isinstance(y, list) else [y]
        sum(each.square().mean() for each in y).backward()
        results.append([*y, leaf.grad, *gradients(model).values(), *buffers(model).values()])
        with torch.no_grad():
            y = model.eval()(x)
        results[-1] += y if isinstance(y, list) else [y]
        model.train()
    for i, (got, right) in enumerate(zip(*results, strict=True)):
        assert error(got, right) < 1e-9, i


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("efficient", [False, True])
@pytest.mark.parametrize("output_stride", DILATIONS)
def test_output_stride_is_torchvisions_net_dilated_by_hand(output_stride, efficient):
    theirs = dilated(away_from_start(stock.DenseNet(**CONFIG).double()), output_stride)
    ours = Ours(**CONFIG, output_stride=output_stride, efficient=efficient).double()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    assert error(ours(x), copy.deepcopy(theirs)(x)) < 1e-10
    ours.load_state_dict(theirs.state_dict())
    check_step(ours, theirs, x)
    features, exact = ours.features(x), theirs.features(x)
    assert features.shape == (2, 14, 64 // output_stride, 96 // output_stride)
    assert features.stride() == exact.stride()


@pytest.mark.parametrize("backend", BACKENDS)
def test_float32_is_as_exact_as_the_plain_layers(backend):
    torch.manual_seed(1)
    exact = away_from_start(DenseNet(4, (2, 2, 2), num_init_features=6, output_stride=2))
    nets = Trio(copy.deepcopy(exact), copy.deepcopy(exact).set_backend("plain"), exact.double().set_backend("plain"))
    x, cotangent, found = torch.randn(2, 3, 12, 14), torch.randn(2, 10), []
    for model in (nets.ours.set_backend(backend), nets.stock, nets.exact):
        found.append((*step_of(model, x, cotangent, of_images=True), buffers(model)))
    for values in zip(*found, strict=True):
        Backend(backend).check(*values)


CONFIGS = {
    "without bottleneck": {"bn_size": None},
    "without bottleneck, recomputing": {"bn_size": None, "efficient": True},
    "volumes": {"spatial_dims": 3},
    "signals, recomputing": {"spatial_dims": 1, "efficient": True},
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("config", CONFIGS)
def test_other_nets(config):
    dims = CONFIGS[config].get("spatial_dims", 2)
    ours = away_from_start(DenseNet(4, (2, 1, 2), num_init_features=6, output_stride=1, **CONFIGS[config]).double())
    check_step(ours, copy.deepcopy(ours).set_backend("plain"), torch.randn(2, 3, *(9, 7, 8)[:dims]).double())


CONVERTED = {
    "torchvision": (lambda: stock.DenseNet(8, (2, 2, 2, 2), 16, num_classes=5), (3, 64, 64)),
    "timm": (lambda: Timm(8, (2, 2, 2, 2), num_classes=5), (3, 64, 64)),
    "monai, volumes": (lambda: Monai(3, 1, 5, 16, 8, (1, 1, 1, 2)), (1, 32, 32, 32)),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("first", ["converted", "dilated"])
@pytest.mark.parametrize("library", CONVERTED)
def test_converted_models_that_are_dilated_by_hand_run_fused(library, first):
    build, shape = CONVERTED[library]
    theirs = away_from_start(build().double())
    theirs.features.norm0.bias.data.sub_(1.5)  # else all maxima are positive, and its gradient cancels
    ours = copy.deepcopy(theirs)
    dilated(theirs, 8, set_to_one)
    if first == "converted":
        densenet_fast.convert(ours, on_unsupported="raise")
    dilated(ours, 8, set_to_one)
    densenet_fast.convert(ours, on_unsupported="raise")
    check_step(ours, theirs, torch.randn(2, *shape, dtype=torch.float64))


@pytest.mark.filterwarnings("error")
def test_what_smp_does_to_encoders():
    """It gives 1x1 convolutions a dilation, too."""
    theirs = away_from_start(get_encoder("densenet121", weights=None, depth=5).double())
    for part in (theirs.features.denseblock4, theirs.features.transition3):
        replace_strides_with_dilation(part, 2)
    theirs.features.transition3.pool = nn.Identity()
    ours = copy.deepcopy(theirs)
    assert not densenet_fast.convert(ours).left
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        for got, right in zip(ours.eval()(x), theirs.eval()(x), strict=True):
            assert error(got, right) < 1e-10


def of_one_side(model):
    conv = model.features.denseblock1.denselayer1.conv2
    conv.dilation, conv.padding = (2, 1), (2, 1)


def with_one_pixel_less(model):
    model.features.transition2.pool.stride = 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (of_one_side, r"denselayer1\.conv2 is not a plain 3x3 convolution"),
        (with_one_pixel_less, "Transition runs its plain layers .* pool has stride=1"),
    ],
)
def test_other_changes_run_plain(change, reason):
    model = Ours(**CONFIG).double()
    plain = copy.deepcopy(model).set_backend("plain")
    for each in (model, plain):
        change(each)
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with pytest.warns(UserWarning, match=reason):
        assert error(model(x), plain(x)) < 1e-10


@pytest.mark.parametrize("efficient", [False, True])
@pytest.mark.parametrize("output_stride", [8, 16])
def test_live_bytes_are_exactly_those_that_must_be_kept(output_stride, efficient):
    model = Ours(8, (3, 3, 3, 3), 16, output_stride=output_stride, efficient=efficient, backend="eager")
    x = torch.randn(2, 3, 64, 64)
    assert measure(model, x).live == Step.of(model, x.shape).kept()


def test_gradients_of_gradients():
    ours = away_from_start(DenseNet(4, (1, 1), num_init_features=6, output_stride=1).double())
    x, found = torch.randn(2, 3, 6, 7, dtype=torch.float64, requires_grad=True), []
    for model in (ours, copy.deepcopy(ours).set_backend("plain")):
        (first,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
        found.append(
            torch.autograd.grad(first.square().sum(), [x, model.features.denseblock2.denselayer1.conv2.weight])
        )
    assert all(error(got, right) < 1e-9 for got, right in zip(*found, strict=True))


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"output_stride": 64}, "got 64, expected 4, 8, 16, 32 or None in a net of 4 blocks with the large stem"),
        ({"output_stride": 6}, "output_stride: got 6, expected 4, 8, 16, 32"),
        ({"output_stride": 4, "small_inputs": True, "block_config": (2, 2)}, "got 4, expected 1, 2 or None .* small"),
    ],
)
def test_strides_that_a_net_cannot_have(config, text):
    with pytest.raises(ValueError, match=text):
        DenseNet(**({"block_config": (1, 1, 1, 1)} | config))


def test_a_dilation_of_nothing():
    with pytest.raises(ValueError, match="dilation: got 0, expected at least 1"):
        densenet_fast.DenseBlock(1, 4, 4, 2, dilation=0)
