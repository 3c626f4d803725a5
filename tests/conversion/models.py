"""Small models of every library that convert() knows, as published: `MODELS[name].build()`, what images they take, and
a step of them."""

from collections.abc import Callable
from typing import NamedTuple

import segmentation_models_pytorch as smp
import timm
import torch
import torchxrayvision
from monai.networks.nets import DenseNet as Monai
from timm.layers import BlurPool2d, freeze_batch_norm_2d
from timm.models.densenet import DenseNet as Timm
from torch import Tensor, nn
from torchvision.models import DenseNet as Torchvision
from torchvision.ops.misc import FrozenBatchNorm2d

from . import copies

BLOCKS = (2, 3, 2, 2)


class Case(NamedTuple):
    build: Callable[[], nn.Module]
    channels: int = 3
    parts: int = 8  # trunk, blocks and transitions that run fused
    size: tuple[int, ...] = (64, 64)  # of the images
    moves_twice: bool = False  # running statistics, in a step that recomputes
    left: tuple[str, ...] = ()  # parts that cannot run fused

    def images(self, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.randn(3, self.channels, *self.size, dtype=dtype)


def _frozen_torchvision() -> nn.Module:
    """As detection backbones have it."""
    model = Torchvision(8, BLOCKS, 16, num_classes=5)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                frozen = FrozenBatchNorm2d(child.num_features)
                frozen.running_mean.normal_()
                frozen.running_var.uniform_(0.5, 2)
                setattr(module, name, frozen)
    return model


MODELS = {
    "torchvision": Case(lambda: Torchvision(8, BLOCKS, 16, num_classes=5)),
    "torchvision, wide": Case(lambda: Torchvision(12, (3, 2), 24, bn_size=2, num_classes=5), parts=4),
    "torchvision, frozen norms": Case(_frozen_torchvision),
    "timm": Case(lambda: Timm(8, BLOCKS, num_classes=5)),
    "timm, deep stem": Case(lambda: Timm(8, BLOCKS, num_classes=5, stem_type="deep_tiered")),
    "timm, blur pool": Case(lambda: Timm(8, BLOCKS, num_classes=5, aa_layer=BlurPool2d)),
    "timm, frozen norms": Case(lambda: freeze_batch_norm_2d(Timm(8, BLOCKS, num_classes=5))),
    "timm, features only": Case(
        lambda: timm.create_model("densenet121", features_only=True), parts=7, left=("features_conv0",)
    ),
    "monai": Case(lambda: Monai(2, 1, 5, 16, 8, BLOCKS), channels=1),
    "monai, three channels": Case(lambda: Monai(2, 3, 5, 24, 12, (3, 2), bn_size=2), parts=4),
    "monai, volumes": Case(lambda: Monai(3, 1, 5, 16, 8, (2, 3)), channels=1, parts=4, size=(20, 24, 16)),
    "monai, more volumes": Case(lambda: Monai(3, 2, 5, 24, 12, (3, 2, 2), bn_size=2), 2, parts=6, size=(40, 40, 40)),
    "monai, signals": Case(lambda: Monai(1, 2, 5, 16, 8, (2, 3)), channels=2, parts=4, size=(120,)),
    "torchxrayvision": Case(lambda: torchxrayvision.models.DenseNet(8, BLOCKS, 16, in_channels=1), channels=1),
    "torchxrayvision, wide": Case(
        lambda: torchxrayvision.models.DenseNet(12, (3, 2, 2), 24, bn_size=2, in_channels=1), channels=1, parts=6
    ),
    "smp, Unet": Case(lambda: smp.Unet("densenet121", encoder_weights=None)),
    "smp, FPN": Case(lambda: smp.FPN("densenet169", encoder_weights=None, decoder_dropout=0)),
    "a copy": Case(copies.net, parts=4),
    "a copy that recomputes": Case(lambda: copies.net(efficient=True), parts=4, moves_twice=True),
}


def relative(ours, theirs) -> float:
    """The largest difference of two lists of tensors, each relative to the tensor's norm."""
    return max(
        (torch.linalg.vector_norm(a - b) / (torch.linalg.vector_norm(b) + 1e-12)).item()
        for a, b in zip(ours, theirs, strict=True)
    )


def outputs(model, x) -> list[Tensor]:
    y = model(x)
    return list(y) if isinstance(y, list | tuple) else [y]


def step(model, x) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs, and the gradients of all parameters, taken together."""
    y = outputs(model, x)
    sum(each.square().mean() for each in y).backward()
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return [each.detach().clone() for each in y], [torch.cat(gradients)]
