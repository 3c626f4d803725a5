"""Wrappers that make a backbone of a net, around ours and converted ones, beside stock: features at several strides,
pyramids, detectors."""

import copy

import pytest
import torch
from timm.models._features import FeatureGetterNet, FeatureHookNet, FeatureListNet
from timm.models.densenet import DenseNet as Timm
from torchvision.models import DenseNet as Torchvision
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.feature_extraction import create_feature_extractor

import densenet_fast
from densenet_fast import FeatureNet
from densenet_fast.modules import Fusable
from densenet_fast.torchvision import DenseNet as Ours

from ..oracle import away_from_start, error
from ..test_changes import stages

BLOCKS = (2, 3, 2, 2)
LAYERS = {"denseblock1": "0", "denseblock2": "1", "denseblock3": "2", "norm5": "3"}


def nets(library):
    """Stock, converted and ours with the same weights, in float64."""
    torch.manual_seed(0)
    stock = Timm(8, BLOCKS, num_classes=5) if library == "timm" else Torchvision(8, BLOCKS, 16, num_classes=5)
    away_from_start(stock.double()).features.norm0.bias.data.sub_(1.5)  # else all its maxima are positive
    converted, ours = copy.deepcopy(stock), Ours(8, BLOCKS, 16, num_classes=5).double()
    densenet_fast.convert(converted, on_unsupported="raise")
    ours.load_state_dict(stock.state_dict())
    return stock, converted, ours


def image():
    return torch.randn(2, 3, 64, 96, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def features_and_gradients(wrapped, seed=2):
    """Whatever `wrapped` returns of an image, and the gradients of all parameters, which are called alike."""
    y = wrapped(image())
    y = list(y.values()) if isinstance(y, dict) else y
    generator = torch.Generator().manual_seed(seed)
    sum((t * torch.randn(t.shape, dtype=t.dtype, generator=generator)).sum() for t in y).backward()
    return [*y, *[p.grad for p in wrapped.parameters()]]


def check(expected, *others):
    for found in others:
        assert [t is None for t in found] == [t is None for t in expected]
        assert all(error(a, b) < 1e-9 for a, b in zip(found, expected, strict=True) if a is not None)


@pytest.mark.parametrize("indices", [(0, 1, 2, 3, 4), (1, 2), (0, -1), 2, None], ids=str)
def test_a_list_of_features(indices):
    """As timm's own net gives it; what is known of the features; what is no longer there."""
    stock, _, ours = nets("timm")
    theirs, ours = FeatureGetterNet(stock, 5 if indices is None else indices), FeatureNet(ours, indices)
    check(features_and_gradients(theirs), features_and_gradients(ours))
    ours, theirs = ours.feature_info, theirs.feature_info
    assert list(ours.out_indices) == list(theirs.out_indices)
    assert ours.channels() == theirs.channels() == [each["num_chs"] for each in ours.get_dicts()]
    assert ours.reduction() == theirs.reduction()
    assert [ours[i]["module"] for i in ours.out_indices] == ours.module_name()
    assert len(ours) == 5


def test_a_list_of_features_is_in_their_order_whatever_that_of_the_indices():
    wrapped = FeatureNet(nets("timm")[-1], (-2, 1))
    assert [t.shape[1] for t in wrapped(image())] == wrapped.feature_info.channels() == [32, 36]


WRAPPERS = {
    "FeatureGetterNet": lambda model: FeatureGetterNet(model, (1, 3)),
    "FeatureListNet": lambda model: FeatureListNet(model, (1, 3), flatten_sequential=True),
    "FeatureHookNet": lambda model: FeatureHookNet(model, (1, 3)),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_timms_wrappers(wrapper):
    """What `features_only=True` of timm's create_model wraps a net in."""
    check(*[features_and_gradients(WRAPPERS[wrapper](model)) for model in nets("timm")])


def test_a_pruned_net_is_fused_and_costs_no_copy():
    *_, ours = nets("timm")
    assert ours.prune_intermediate_layers([1, -3]) == [1, 2]
    assert list(ours.features._modules)[-1] == "denseblock2"
    assert ours.num_features == 40
    assert isinstance(ours.get_classifier(), torch.nn.Identity)
    y, taps = ours.forward_intermediates(image(), [1, 2])
    assert y is taps[1]
    assert stages(y) == 3
    with pytest.raises(ValueError, match=r"indices: got \[3\], expected some from -3 to 2"):
        ours.prune_intermediate_layers([3])


@pytest.mark.parametrize("kind", ["layers", "pyramid"])
def test_torchvisions_getters(kind):
    results = []
    for model in nets("torchvision"):
        torch.manual_seed(3)
        wrapped = (
            IntermediateLayerGetter(model.features, LAYERS)
            if kind == "layers"
            else BackboneWithFPN(model.features, LAYERS, [32, 40, 36, 34], 16).double()
        )
        results.append(features_and_gradients(wrapped))
    check(*results)


@pytest.mark.parametrize("leaves", [[], [Fusable]], ids=["plain", "fused"])
def test_torchvisions_feature_extractor(leaves, recwarn):
    """Its graph has the plain layers, or whole blocks and transitions where it is told that they are leaves."""
    results = []
    for model in nets("torchvision"):
        names = [f"features.{name}" for name in LAYERS]
        wrapped = create_feature_extractor(model, names, tracer_kwargs={"leaf_modules": leaves})
        results.append(features_and_gradients(wrapped))
    check(*results)
    assert not [w for w in recwarn if "plain layers" in str(w.message)]


def test_a_detector():
    """A training step of Faster R-CNN, and what it finds."""
    results = []
    images, boxes = list(image().float()), torch.tensor([[4.0, 4.0, 40.0, 40.0], [20.0, 10.0, 60.0, 50.0]])
    targets = [{"boxes": boxes[i : i + 1], "labels": torch.tensor([1])} for i in range(2)]
    for model in nets("torchvision"):
        torch.manual_seed(3)
        backbone = BackboneWithFPN(model.float().features, LAYERS, [32, 40, 36, 34], 16)
        detector = FasterRCNN(backbone, 2, min_size=64, max_size=96, image_mean=[0.0] * 3, image_std=[1.0] * 3).double()
        torch.manual_seed(4)  # of its samples
        losses = detector([i.double() for i in images], [{**t, "boxes": t["boxes"].double()} for t in targets])
        sum(losses.values()).backward()
        found = detector.eval()([i.double() for i in images])
        results.append(
            [
                *losses.values(),
                *[p.grad for p in detector.parameters()],
                *[d["boxes"] for d in found],
                found[0]["scores"],
            ]
        )
    assert len(results[0][-1])
    check(*results)
