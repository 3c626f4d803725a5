"""Tools around a model give on ours and on converted ones what they give on stock: class activation maps, feature
extraction, deep copies in threads."""

import copy
from functools import cache

import pytest
import torch
from pytorch_grad_cam import EigenCAM, GradCAM, GradCAMPlusPlus
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

import densenet_fast
from densenet_fast.torchvision import DenseNet

from .models import BLOCKS, Torchvision

LAYERS = ("features", "features.norm5", "features.denseblock3", "features.denseblock4.denselayer2")


@cache
def models():
    """Stock, converted and ours, with the same weights, in float64 and evaluation."""
    torch.manual_seed(0)
    stock = Torchvision(8, BLOCKS, 16, num_classes=5).double().eval()
    converted = copy.deepcopy(stock)
    densenet_fast.convert(converted)
    ours = DenseNet(8, BLOCKS, 16, num_classes=5).double().eval()
    ours.load_state_dict(stock.state_dict())
    return stock, converted, ours


def images():
    return torch.randn(2, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.filterwarnings("ignore:.*runs its plain layers")
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("method", [GradCAM, GradCAMPlusPlus, EigenCAM])
def test_grad_cam(method, layer):
    maps = []
    for model in models():
        with method(model, [model.get_submodule(layer)]) as cam:
            maps.append(torch.from_numpy(cam(images(), [ClassifierOutputTarget(1)] * 2)))
    assert maps[0].max() > 0
    for found in maps[1:]:  # grad-cam scales them in float32
        torch.testing.assert_close(found, maps[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("training", [False, True])
def test_feature_extraction(training):
    """The graph has the same nodes, and what is taken at any of them is the same."""
    stock, *others = (copy.deepcopy(model).train(training) for model in models())
    train_names, eval_names = get_graph_node_names(stock)
    taken = ["features.denseblock1", "features.denseblock2.denselayer1.conv1", "features.norm5", "flatten"]
    returned = [next(n for n in eval_names if n.startswith(name)) for name in taken]
    expected = create_feature_extractor(stock, returned)(images())
    for model in others:
        found = create_feature_extractor(model, returned)(images())
        assert list(found) == list(expected)
        for name in returned:
            torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-10)
    assert get_graph_node_names(others[0]) == (train_names, eval_names)
