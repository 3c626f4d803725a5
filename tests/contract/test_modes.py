"""Modes of norms and weights: outputs, gradients and running statistics as PyTorch's own layers have them."""

from itertools import product

import pytest
import torch

from .nets import MODES, check_step, images, trio


@pytest.mark.parametrize("change", MODES)
def test_modes_of_the_norms_and_weights(backend, change, shape):
    """A training step, and inference on the statistics that it left."""
    nets = trio(backend, change, shape)
    x = images(nets.exact, shape)
    check_step(backend, nets, x)
    nets.each(lambda model: model.eval())
    with torch.no_grad():
        backend.check(*({"output": model(x.to(model.classifier.weight.dtype))} for model in nets))


@pytest.mark.parametrize("frozen", list(product([False, True], repeat=3)), ids=str)
def test_frozen_parts_of_a_layer(backend, frozen):
    """Every combination of its weights and its norms, which both go on taking part in the gradients of others; half of
    them in training, so that every three of the four meet in every way."""

    def freeze(model):
        model.train(sum(frozen) % 2 == 0)
        for layer in model.features.denseblock1.values():
            parts = [layer.conv1], [layer.conv2], [layer.norm1, layer.norm2]
            for part, freezes in zip(parts, frozen, strict=True):
                for module in part:
                    module.requires_grad_(not freezes)

    nets = trio(backend, freeze)
    check_step(backend, nets, images(nets.exact))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_only_the_images_need_a_gradient(backend, training):
    nets = trio(backend, lambda model: model.train(training).requires_grad_(False))
    check_step(backend, nets, images(nets.exact), of_images=True)
