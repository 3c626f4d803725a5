"""What those do with a net who build on it, against what torchvision's and timm's users get."""

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models.densenet import DenseNet as Timm
from timm.optim import param_groups_layer_decay
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from benchmarks.memory import measure
from densenet_fast import DenseNet
from densenet_fast.memory import Step
from densenet_fast.torchvision import DenseNet as Ours

from .oracle import error
from .pairs import CONFIG, image, pair
from .test_changes import stages


def test_features_and_head_apart():
    theirs, ours = pair()
    x = image()
    features = ours.forward_features(x)
    assert error(features, F.relu(theirs.features(x))) < 1e-10
    kept = features.clone()
    for given in (features, ours.features(x)):
        assert error(ours.forward_head(given), theirs(x)) < 1e-10
        assert error(ours.forward_head(given, pre_logits=True), kept.mean((2, 3))) < 1e-10
    assert torch.equal(features, kept)


def test_another_classifier():
    _, ours = pair()
    ours.eval()
    assert ours.num_features == ours.get_classifier().in_features
    x = image()
    ours.reset_classifier(3)
    assert ours.get_classifier().weight.dtype == torch.float64
    assert not ours.classifier.training
    assert ours(x).shape == (2, 3)
    ours.reset_classifier(0)
    assert error(ours(x), ours.forward_features(x).mean((2, 3))) < 1e-10


def freeze_by_hand(model, until):
    """As torchvision's users do."""
    for name, child in model.features.named_children():
        child.requires_grad_(False).eval()
        if name == until:
            return


def step(model, x, optimizer):
    optimizer.zero_grad()
    y = model.train()(x)
    y.square().mean().backward()
    optimizer.step()
    return y


def test_a_head_behind_a_norm_without_parameters():
    model = Ours(**CONFIG)
    channels = model.num_features
    model.features.norm5 = FrozenBatchNorm2d(channels)
    model.reset_classifier(7)
    assert model.classifier.weight.shape == (7, channels)


def test_what_cannot_be_had():
    model = Ours(**CONFIG)
    with pytest.raises(ValueError, match="num_classes: got -1, expected at least 0"):
        model.reset_classifier(-1)
    model.features = nn.Sequential(model.features)
    with pytest.raises(TypeError, match="features: got Sequential, expected the trunk"):
        model.forward_intermediates(image())


def test_a_frozen_net_that_is_wrapped():
    model = Ours(**CONFIG).freeze("transition1")
    model.features = nn.Sequential(model.features)
    model.train()
    assert not model.features[0].denseblock1.training
    assert model.features[0].denseblock2.training
    model.features = model.features[0]
    model.freeze(None)
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("until", ["conv0", "pool0", "denseblock1", "transition1", "denseblock2", "norm5"])
def test_a_frozen_net_trains_as_one_that_was_frozen_by_hand(until):
    theirs, ours = pair()
    assert ours.freeze(until) is ours
    optimizers = [torch.optim.SGD(m.parameters(), 0.1) for m in (theirs, ours)]
    for _ in range(3):
        x, results = image(), []
        for model, optimizer in zip((theirs, ours), optimizers, strict=True):
            model.train()
            if model is theirs:
                freeze_by_hand(theirs, until)
                model.train = lambda: theirs
            results.append(step(model, x, optimizer))
        assert error(results[1], results[0]) < 1e-9
    for name, value in ours.state_dict().items():
        assert error(value, theirs.state_dict()[name]) < 1e-8, name
    for name, parameter in ours.named_parameters():
        assert parameter.requires_grad == theirs.get_parameter(name).requires_grad


FROZEN = [("conv0", 3), ("pool0", 2), ("transition1", 1)]


@pytest.mark.parametrize("efficient", [False, True])
@pytest.mark.parametrize(("until", "rest"), FROZEN)
def test_what_is_frozen_keeps_nothing_and_has_no_backward(until, rest, efficient):
    model = Ours(**CONFIG, efficient=efficient, backend="eager").freeze(until)
    x = torch.randn(2, 3, 40, 40)
    assert stages(model(x)) == rest
    assert measure(model, x).live == Step.of(model, x.shape).kept()


def test_frozen_layers_in_front_of_a_transition_that_trains_keep_no_bottlenecks():
    model = Ours(**CONFIG, backend="eager").freeze("denseblock1")
    x = torch.randn(2, 3, 40, 40)
    kept = measure(model, x).live
    assert kept == Step.of(model, x.shape).kept()
    model.features.denseblock1.set_efficient()
    assert measure(model, x).live == kept


def test_thawing():
    model = Ours(**CONFIG).freeze("transition1")
    model.features.denseblock2.requires_grad_(False)  # by somebody else
    model.freeze("pool0").train()
    modes = {name: child.training for name, child in model.features.named_children()}
    assert not any(modes[name] for name in ("conv0", "norm0", "relu0", "pool0"))
    assert modes["denseblock1"]
    assert modes["norm5"]
    assert {n.split(".")[1] for n, p in model.named_parameters() if not p.requires_grad} == {
        "conv0",
        "norm0",
        "denseblock2",
    }
    copied = copy.deepcopy(model).eval().train()
    assert not copied.features.norm0.training
    assert copied.freeze(None).features.norm0.training
    assert copied.features.conv0.weight.requires_grad
    with pytest.raises(ValueError, match="until: got 'block9', expected None or a child of features: conv0, norm0"):
        model.freeze("block9")


@pytest.mark.filterwarnings("error")
def test_timms_freeze():
    theirs, ours = pair()
    names = [f"features.{name}" for name in ("conv0", "norm0", "denseblock1", "transition1")]
    x, found = image(), []
    for model in (theirs, ours):
        timm.utils.freeze(model, names)
        y = model.train()(x)
        y.square().sum().backward()
        found.append([y, *[p.grad for p in model.parameters() if p.grad is not None]])
    assert stages(found[1][0]) == 1
    assert all(error(got, right) < 1e-9 for got, right in zip(*reversed(found), strict=True))


@pytest.mark.parametrize("coarse", [False, True])
def test_timms_groups_of_learning_rates(coarse):
    """Those of timm's own net, to whose children the same names belong."""
    theirs, ours = Timm(4, (2, 1, 2)), DenseNet(4, (2, 1, 2), small_inputs=False, num_init_features=8)
    found = []
    for model in (theirs, ours):
        matcher = model.group_matcher
        model.group_matcher = lambda coarse, matcher=matcher, chosen=coarse: matcher(chosen)
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        groups = param_groups_layer_decay(model, weight_decay=0.05, layer_decay=0.75)
        found.append([(g["lr_scale"], g["weight_decay"], sorted(names[id(p)] for p in g["params"])) for g in groups])
    assert found[0] == found[1]


def test_learning_rates_of_children():
    theirs, ours = pair()
    x = image()
    for model in (theirs, ours):
        groups = [{"params": model.features.parameters(), "lr": 1e-3}, {"params": model.classifier.parameters()}]
        optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
        for _ in range(3):
            step(model, x, optimizer)
    assert all(error(p, q) < 1e-8 for p, q in zip(ours.parameters(), theirs.parameters(), strict=True))
    assert isinstance(ours.classifier, nn.Linear)
