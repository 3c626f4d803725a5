"""DenseNets as projects carry them about: blocks of classes that densenet_fast does not know."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint


class Layer(nn.Module):
    """Takes the features before it one by one, and recomputes its bottleneck if it is told to."""

    def __init__(self, channels, growth, width, drop_rate, efficient=False):
        super().__init__()
        self.norm1, self.relu1 = nn.BatchNorm2d(channels), nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.norm2, self.relu2 = nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, growth, 3, padding=1, bias=False)
        self.drop_rate = drop_rate
        self.efficient = efficient

    def bottleneck(self, *features):
        return self.conv1(self.relu1(self.norm1(torch.cat(features, 1))))

    def forward(self, *features):
        if self.efficient and any(f.requires_grad for f in features):
            z = checkpoint(self.bottleneck, *features, use_reentrant=False)
        else:
            z = self.bottleneck(*features)
        return F.dropout(self.conv2(self.relu2(self.norm2(z))), self.drop_rate, self.training)


class Block(nn.Module):
    layer = Layer

    def __init__(self, layers, channels, growth=4, width=8, drop_rate=0.0, efficient=False):
        super().__init__()
        for i in range(layers):
            self.add_module(
                f"denselayer{i + 1}", self.layer(channels + i * growth, growth, width, drop_rate, efficient)
            )

    def forward(self, x):
        features = [x]
        for layer in self.children():
            features.append(layer(*features))
        return torch.cat(features, 1)


class Scaled(Layer):
    """Looks like a layer and computes something else."""

    def forward(self, *features):
        return super().forward(*features) * 1.001


class ScaledBlock(Block):
    layer = Scaled


class FlaggedBlock(Block):
    """Does something else if it is told to."""

    def forward(self, x, twice=False):
        return super().forward(2 * x if twice else x)


class DropsChannels(Layer):
    def forward(self, *features):
        z = self.conv2(self.relu2(self.norm2(self.bottleneck(*features))))
        return F.dropout2d(z, self.drop_rate, self.training)


class DropsChannelsBlock(Block):
    layer = DropsChannels


class Gained(Layer):
    """Computes something else when it is told to, or when its last child does."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.gain = 1.0
        self.last = nn.Dropout2d(0.0)

    def forward(self, *features):
        return self.last(super().forward(*features)) * self.gain


class GainedBlock(Block):
    layer = Gained

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.gain = 1

    def forward(self, x):
        return super().forward(x) * self.gain


class Masked(Layer):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.register_buffer("mask", torch.ones(self.conv2.out_channels, 1, 1))

    def forward(self, *features):
        return super().forward(*features) * self.mask


class MaskedBlock(Block):
    layer = Masked


class Times(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("factor", torch.ones(()))

    def forward(self, x):
        return x * self.factor


class TimesLast(Layer):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.last = Times()

    def forward(self, *features):
        return self.last(super().forward(*features))


class TimesLastBlock(Block):
    layer = TimesLast


def net(block=Block, **options) -> nn.Module:
    """A small DenseNet with a transition that is an ordinary nn.Sequential."""
    transition = nn.Sequential()
    transition.add_module("norm", nn.BatchNorm2d(16))
    transition.add_module("relu", nn.ReLU())
    transition.add_module("conv", nn.Conv2d(16, 8, 1, bias=False))
    transition.add_module("pool", nn.AvgPool2d(2))
    net = nn.Sequential()
    net.add_module("conv0", nn.Conv2d(3, 8, 3, padding=1, bias=False))
    net.add_module("denseblock1", block(2, 8, **options))
    net.add_module("transition1", transition)
    net.add_module("denseblock2", block(3, 8, **options))
    net.add_module("norm_final", nn.BatchNorm2d(20))
    return nn.Sequential(net, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(20, 5))
