"""torch-cam's class activation maps on ours and on converted nets are those of stock."""

import sys

import pytest
import torch

from densenet_fast.torchvision import DenseNet

from ..oracle import error
from .models import BLOCKS, Torchvision
from .test_libraries import image, pair
from .test_tools import LAYERS, images, models

if sys.version_info < (3, 11):
    pytest.skip("torch-cam for Python 3.10 wants a numpy older than the other packages do", allow_module_level=True)

from torchcam.methods import GradCAM, ScoreCAM, SmoothGradCAMpp
from torchcam.methods._utils import locate_candidate_layer


@pytest.mark.filterwarnings("ignore:.*runs its plain layers")
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("method", [GradCAM, SmoothGradCAMpp, ScoreCAM])
def test_class_activation_maps(method, layer):
    maps = []
    for model in models():
        torch.manual_seed(0)  # SmoothGradCAMpp's noise
        with method(model, layer) as cam:
            maps.append(cam(1, model(images()[:1]))[0])
    assert maps[0].max() > 0
    for found in maps[1:]:
        torch.testing.assert_close(found, maps[0], rtol=0, atol=1e-10)


@pytest.mark.filterwarnings("ignore:.*runs its plain layers")  # while it listens to all of them
def test_it_finds_the_layer_by_itself():
    stock, converted = (model.eval() for model in pair(Torchvision(8, BLOCKS, 16, num_classes=5)))
    ours = DenseNet(8, BLOCKS, 16, num_classes=5).double().eval()
    ours.load_state_dict(stock.state_dict())
    maps, layers = [], []
    for model in (stock, converted, ours):
        layers.append(locate_candidate_layer(model.float(), (3, 64, 64)))
        with GradCAM(model, input_shape=(3, 64, 64)) as cam:
            maps.append(cam(1, model.double()(image()))[0])
    assert layers[0] == layers[1] == layers[2]
    for found in maps[1:]:
        assert error(found, maps[0]) < 1e-10
