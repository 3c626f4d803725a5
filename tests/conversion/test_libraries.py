"""What the libraries' own tests ask of their DenseNets, asked of ours and of converted ones beside stock."""

import copy

import pytest
import torch
from monai.data import MetaTensor
from segmentation_models_pytorch.encoders.densenet import DenseNetEncoder
from timm.layers import BlurPool2d
from torch import nn

import densenet_fast
from densenet_fast.torchvision import DenseNet as Ours

from ..oracle import away_from_start, error
from ..rows import some
from .models import BLOCKS, MODELS, Monai, Timm, Torchvision, outputs, relative, step


def pair(stock):
    """A library's net and a converted copy, in float64 and away from weights at which gradients cancel."""
    torch.manual_seed(0)
    away_from_start(stock.double())
    if isinstance(norm0 := stock.features.norm0, nn.BatchNorm2d | nn.BatchNorm3d):
        norm0.bias.data.sub_(1.5)  # else all its maxima are positive
    converted = copy.deepcopy(stock)
    assert not densenet_fast.convert(converted).left
    return stock, converted


def image(channels=3, dims=2, size=64, n=2):
    return torch.randn(n, channels, *[size] * dims, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def check(found, expected):
    assert [t is None for t in found] == [t is None for t in expected]
    for got, right in zip(found, expected, strict=True):
        assert got is None or (got.shape == right.shape and error(got, right) < 1e-9)


# torchvision's


@pytest.mark.parametrize("recomputes", [False, True])
def test_torchvision_gradients_of_the_image_with_and_without_those_of_parameters(recomputes):
    stock, converted = pair(Torchvision(8, BLOCKS, 16, num_classes=50, memory_efficient=recomputes))
    ours = Ours(8, BLOCKS, 16, num_classes=50, memory_efficient=recomputes).double()
    ours.load_state_dict(stock.state_dict())
    results, x = [], image(size=75, n=1)
    for model in (stock, converted, ours):
        model.eval()
        leaf = x.clone().requires_grad_()
        model(leaf).sum().backward()
        gradients = [p.grad for p in model.parameters()]
        for parameter in model.parameters():
            parameter.requires_grad = False
        again = x.clone().requires_grad_()
        model(again).sum().backward()
        results.append([leaf.grad, again.grad, *gradients])
    for found in results[1:]:
        check(found, results[0])


# timm's

TIMM = {
    "plain": {},
    "deep stem": {"stem_type": "deep_tiered"},
    "blur pool": {"aa_layer": BlurPool2d},
    "dropout": {"drop_rate": 0.2},
}


@pytest.mark.parametrize("options", TIMM)
def test_timm_forward_backward_and_heads(options):
    results, x = [], image()
    for model in pair(Timm(8, BLOCKS, num_classes=42, **TIMM[options])):
        torch.manual_seed(5)
        y = model(x)
        y.mean().backward()
        found = [y, *[p.grad for p in model.parameters()]]
        assert all(p.grad is not None for p in model.parameters())
        model.eval()
        assert model.get_classifier().out_features == 42
        with torch.no_grad():
            features = model.forward_features(x)
            found += [features, model.forward_head(features), model.forward_head(features, pre_logits=True)]
            last, features = model.forward_intermediates(x)
            found += [last, *features]
            model.reset_classifier(0, "")
            found.append(model(x))
            model.reset_classifier(0, "avg")
            found.append(model(x))
            assert found[-1].shape == (2, model.num_features)
        results.append(found)
    check(*reversed(results))


@pytest.mark.parametrize("training", [True, False])
def test_timm_graphs_of_fx(training):
    results, x = [], image()
    for model in pair(Timm(8, BLOCKS, num_classes=5)):
        graph = torch.fx.symbolic_trace(model.train(training))
        y = graph(x)
        y.sum().backward()
        results.append([y, *[p.grad for p in graph.parameters()]])
    check(*reversed(results))


# MONAI's

MONAI = [
    (2, 2, 3, {"init_features": 16, "growth_rate": 8, "block_config": (2, 3)}),
    (2, 1, 5, {"init_features": 12, "growth_rate": 4, "block_config": (1, 2, 1), "norm": ("batch", {"eps": 1e-3})}),
    (3, 2, 3, {"init_features": 16, "growth_rate": 8, "block_config": (2, 1), "bn_size": 2}),
    (3, 1, 1, {"init_features": 8, "growth_rate": 4, "block_config": (1, 1, 1), "dropout_prob": 0.3}),
    (1, 2, 4, {"init_features": 8, "growth_rate": 4, "block_config": (2, 2)}),
]


@pytest.mark.parametrize(("dims", "channels", "classes", "options"), MONAI, ids=str)
def test_monai_shapes_and_values(dims, channels, classes, options):
    results, x = [], image(channels, dims, 48 if dims < 3 else 32)
    for model in pair(Monai(dims, channels, classes, **options)):
        torch.manual_seed(5)
        y = model(x)
        assert y.shape == (2, classes)
        y.sum().backward()
        with torch.no_grad():
            results.append([y, *[p.grad for p in model.parameters()], model.eval()(x)])
    check(*reversed(results))


@pytest.mark.parametrize("name", some(["ours", *MODELS], always=["ours", "torchvision", "monai, volumes"]))
def test_monai_images(name):
    """MetaTensors, which its loaders hand out and whose methods are not all a Tensor's: what is told of an image stays
    with what comes of it."""
    case = MODELS["torchvision" if name == "ours" else name]
    theirs, x = case.build().double(), case.images()
    ours = copy.deepcopy(theirs)
    if name == "ours":
        ours = Ours(8, BLOCKS, 16, num_classes=5).double()
        ours.load_state_dict(theirs.state_dict())
    else:
        densenet_fast.convert(ours)
    results = []
    for model in (ours, theirs):
        y = outputs(model, MetaTensor(x, meta={"patient": 7}))
        results.append([each.meta["patient"] for each in y])
        assert {type(each) for each in y} == {MetaTensor}
    assert results[0] == results[1]
    assert relative(*(each[0] + each[1] for each in (step(ours, MetaTensor(x)), step(theirs, x)))) < 1e-9


# segmentation_models_pytorch's


def encoder(depth=5):
    return DenseNetEncoder(
        [3, 16, 32, 20, 18, 17], depth, growth_rate=8, num_init_features=16, block_config=(2, 1, 1, 1)
    )


@pytest.mark.parametrize(("depth", "channels"), [(5, 1), (5, 4), (4, 3), (3, 3)])
def test_smp_features_of_an_encoder(depth, channels):
    stock = encoder(depth)
    stock.set_in_channels(channels, pretrained=True)
    results, x = [], image(channels)
    for model in pair(stock):
        y = model(x)
        sum(t.square().sum() for t in y).backward()
        assert [t.shape[2] for t in y] == [64 >> i for i in range(depth + 1)]
        results.append([*y, *[p.grad for p in model.parameters()]])
        with pytest.raises(ValueError, match="do not support dilated mode"):
            model.make_dilated(16)
    check(*reversed(results))


@pytest.mark.thorough
def test_smp_graphs_of_an_encoder():
    stock, converted = (model.eval() for model in pair(encoder()))
    x = image()
    torch.compiler.reset()
    compiled = torch.compile(converted, fullgraph=True, dynamic=True, backend="eager")
    exported = torch.export.export(converted, (x,), strict=True).module()
    with torch.no_grad():
        for run in (compiled, exported):
            check(run(x), stock(x))
