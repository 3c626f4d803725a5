"""Images of one and three dimensions, with the first half of their layers on each backend."""

import pytest
import torch

from .nets import LAYER, SHAPES, buffers, check_step, trio


def _negative(model):
    """Some of the stem's maxima. The norms behind it would else take its bias out, whose gradient would cancel."""
    if "norm0" in model.features._modules:
        model.features.norm0.bias.data.sub_(1.5)


@pytest.mark.parametrize("dims", [1, 3])
def test_volumes_and_signals(backend, dims):
    shape = LAYER if backend.stand_in else SHAPES["stem-recomputing"]
    nets = trio(backend, _negative, shape, spatial_dims=dims)
    size = 6 if backend.stand_in else 18
    x = torch.randn(2, 3, *[size] * dims, device=backend.device)
    check_step(backend, nets, x, of_images=True)
    nets.each(lambda model: model.eval())
    with torch.no_grad():
        backend.check(*({"output": model(x.to(model.classifier.weight.dtype))} for model in nets))
    backend.check(*map(buffers, nets))
