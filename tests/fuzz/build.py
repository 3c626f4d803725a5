"""The models of a case: ours, and the same net of torchvision's own layers, with equal weights, both changed alike.

torchvision has no small stem, no compression and no layer without bottleneck; `Stock` puts its blocks and transitions
together as its DenseNet does, and has a layer without bottleneck written after its own.
"""

import copy
import pickle
from collections.abc import Callable
from typing import NamedTuple
from zlib import crc32

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.densenet import _DenseBlock, _DenseLayer, _Transition
from torchvision.ops import FrozenBatchNorm2d

import densenet_fast
from densenet_fast.backends.eager.dropout import dropout_mask

from .cases import Case, Mode, Net


class _LayerWithoutBottleneck(nn.Module):
    def __init__(self, channels: int, growth: int):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(channels, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor | list[Tensor]) -> Tensor:
        return self.conv1(self.relu1(self.norm1(torch.cat([x] if isinstance(x, Tensor) else x, 1))))


class _Block(_DenseBlock):
    """torchvision's block; its dropout takes our masks, which are a function of one seed for each layer."""

    def __init__(self, net: Net, layers: int, channels: int):
        super().__init__(0, channels, 1, net.growth, 0.0)
        for i in range(layers):
            c = channels + i * net.growth
            layer = (
                _LayerWithoutBottleneck(c, net.growth)
                if net.bn_size is None
                else _DenseLayer(c, net.growth, net.bn_size, 0.0)
            )
            self.add_module(f"denselayer{i + 1}", layer)
        self.drop_rate = net.drop_rate

    def forward(self, init_features: Tensor) -> Tensor:
        if not self.drop_rate or not any(layer.training for layer in self.values()):
            return super().forward(init_features)
        limits = torch.iinfo(torch.int64)
        features = [init_features]
        for layer, seed in zip(self.values(), torch.randint(limits.min, limits.max, (len(self),)), strict=True):
            y = layer(features)
            n, k, h, w = y.shape
            rows = torch.empty(n * h * w, k, dtype=y.dtype)
            mask = dropout_mask(rows, self.drop_rate, seed).view(n, h, w, k).permute(0, 3, 1, 2)
            features.append(y * mask if layer.training else y)
        return torch.cat(features, 1)


class Stock(nn.Module):
    def __init__(self, net: Net):
        super().__init__()
        self.features = nn.Sequential()
        for name, channels in zip(net.children(), net.channels(), strict=True):
            self.features.add_module(name, self._child(net, name, channels))
        self.classifier = nn.Linear(channels, net.classes)
        self.inplace = True

    @staticmethod
    def _child(net: Net, name: str, channels: int) -> nn.Module:
        if name == "conv0":
            size = {"kernel_size": 3, "padding": 1} if net.small else {"kernel_size": 7, "stride": 2, "padding": 3}
            return nn.Conv2d(channels, net.init, bias=False, **size)
        if name.startswith("denseblock"):
            return _Block(net, net.blocks[int(name[-1]) - 1], channels)
        if name.startswith("transition"):
            return _Transition(channels, int(channels * net.compression))
        if name == "relu0":
            return nn.ReLU(inplace=True)
        return nn.MaxPool2d(3, stride=2, padding=1) if name == "pool0" else nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.features(x), inplace=self.inplace)
        return self.classifier(torch.flatten(F.adaptive_avg_pool2d(x, (1, 1)), 1))


def fast(net: Net) -> nn.Module:
    arguments = {"num_init_features": net.init, "bn_size": net.bn_size, "drop_rate": net.drop_rate}
    arguments |= {"num_classes": net.classes, "in_channels": net.in_channels}
    if net.torchvision:
        return densenet_fast.torchvision.DenseNet(net.growth, net.blocks, **arguments)
    return densenet_fast.DenseNet(
        net.growth, net.blocks, compression=net.compression, small_inputs=net.small, **arguments
    )


class Same(nn.Module):
    def forward(self, x):
        return x


def _frozen(norm: nn.Module) -> nn.Module:
    frozen = FrozenBatchNorm2d(norm.num_features)
    frozen.load_state_dict({k: v for k, v in norm.state_dict().items() if k != "num_batches_tracked"}, strict=False)
    return frozen


def _group_norm(norm: nn.Module) -> nn.Module:
    c = norm.num_features
    return nn.GroupNorm(2 if c % 2 == 0 else 1, c)


def _conv(conv: nn.Module, **changes) -> nn.Module:
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
    return nn.Conv2d(**{name: getattr(conv, name) for name in names} | {"bias": False} | changes)


def _dilated(conv: nn.Module) -> nn.Module:
    return _conv(conv, dilation=2, padding=tuple(2 * p for p in conv.padding))


def _grouped(conv: nn.Module) -> nn.Module:
    even = conv.in_channels % 2 == 0 and conv.out_channels % 2 == 0
    return _conv(conv, groups=2 if even else 1)


_ANY = {"Identity": lambda _: nn.Identity(), "Same": lambda _: Same(), "Sequential": nn.Sequential}
REPLACEMENTS: dict[str, dict[str, Callable[[nn.Module], nn.Module]]] = {
    "norm": _ANY
    | {
        "GroupNorm": _group_norm,
        "FrozenBatchNorm": _frozen,
        "InstanceNorm": lambda norm: nn.InstanceNorm2d(norm.num_features, affine=True, track_running_stats=True),
    },
    "relu": _ANY
    | {
        "LeakyReLU": lambda _: nn.LeakyReLU(0.1),
        "LeakyReLU_": lambda _: nn.LeakyReLU(0.1, inplace=True),
        "ReLU": lambda _: nn.ReLU(),
        "SiLU": lambda _: nn.SiLU(),
    },
    "conv": _ANY | {"bias": lambda conv: _conv(conv, bias=True), "dilated": _dilated, "grouped": _grouped},
    "pool": _ANY
    | {
        "AvgPool": lambda _: nn.AvgPool2d(3, 2, 1),
        "ceil": lambda _: nn.AvgPool2d(2, ceil_mode=True),
        "MaxPool": lambda _: nn.MaxPool2d(2),
    },
    "layer": {"Sequential": nn.Sequential},
    "block": {"Sequential": nn.Sequential},
    "transition": _ANY,
}


def stock(case: Case, dtype: torch.dtype) -> nn.Module:
    """torchvision's layers as the case has them, without hooks."""
    return _prepared(Stock(case.net), case).to(dtype)


def ours(case: Case, dtype: torch.dtype) -> nn.Module:
    """Our net as the case has it, without hooks and with the weights of `stock`."""
    net = fast(case.net)
    for i in case.net.efficient:
        net.features.get_submodule(f"denseblock{i}").set_efficient()
    return _prepared(net, case).to(dtype)


def _set_weights(model: nn.Module) -> None:
    """Numbers that a tensor's name decides. Norms as after some training: gammas of either sign, running statistics."""
    for name, tensor in model.state_dict().items():
        kind, generator = name.rpartition(".")[2], torch.Generator().manual_seed(crc32(name.encode()))
        if tensor.dim() == 4:
            tensor.normal_(std=(2 / tensor[0].numel()) ** 0.5, generator=generator)
        elif kind == "running_var" or (kind == "weight" and tensor.dim() == 1):
            tensor.uniform_(0.5 if kind == "running_var" else -0.7, 1.4, generator=generator)
        elif tensor.is_floating_point():
            tensor.normal_(std=0.3, generator=generator)


def _prepared(model: nn.Module, case: Case) -> nn.Module:
    _set_weights(model)
    for name, parameter in model.named_parameters():
        named = any(name == path or name.startswith(path + ".") for path in case.frozen)
        parameter.requires_grad_(named if case.only else not named)
    model.train(case.training)
    for mode in case.modes:
        _replace(model, mode.path, _moded(model.get_submodule(mode.path), mode))
    for change in sorted(case.changes, key=lambda change: -change.path.count(".")):
        seed(crc32(change.path.encode()))
        old = model.get_submodule(change.path)
        new = REPLACEMENTS[case.net.roles()[change.path]][change.kind](old)
        if change.kind != "Sequential":
            new.train(old.training)
        else:
            new.training = old.training
        _replace(model, change.path, new)
    return model


def _replace(model: nn.Module, path: str, new: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, new)


def _moded(norm: nn.BatchNorm2d, mode: Mode) -> nn.BatchNorm2d:
    new = nn.BatchNorm2d(norm.num_features, mode.eps, mode.momentum, mode.affine, mode.track != "no")
    new.load_state_dict({k: v for k, v in norm.state_dict().items() if k in new.state_dict()})
    if mode.affine:
        new.weight.requires_grad_(norm.weight.requires_grad)
        new.bias.requires_grad_(norm.bias.requires_grad)
        new.weight.data[0] *= not mode.zero_gamma
    if mode.track == "off":
        new.track_running_stats = False
    return new.train(norm.training if mode.training is None else mode.training)


def copied(model: nn.Module, how: str) -> nn.Module:
    return pickle.loads(pickle.dumps(model)) if how == "pickle" else copy.deepcopy(model) if how else model


def without_inplace(model: nn.Module) -> nn.Module:
    """The stock model with no in-place ReLU of its own."""
    for module in model.modules():
        if getattr(module, "inplace", False):
            module.inplace = False
    return model


def seed(number: int) -> None:
    """torch.manual_seed for the CPU alone: it records a stack for each other device, a tenth of the fuzzer's time."""
    torch.default_generator.manual_seed(number)


class Rounding(NamedTuple):
    """Numbers otherwise rounded: each changed by about `size` of itself, and rounded to `dtype`."""

    seed: int
    size: float
    dtype: torch.dtype

    def __call__(self, t: Tensor, number: int) -> Tensor:
        generator = torch.Generator().manual_seed(1000 * self.seed + number)
        noise = torch.randn(t.shape, generator=generator, dtype=torch.float64)
        return (t.detach().double() * (1 + self.size * noise)).to(self.dtype).to(t.dtype)


def image_like(
    case: Case, i: int, channels: int, dtype: torch.dtype, rounding: Rounding | None = None
) -> tuple[Tensor, Tensor]:
    """(leaf, view of it in the layout of the case): the leaf is what gets a gradient."""
    image = case.image
    g = torch.Generator().manual_seed(i)
    n, c = (2 * image.n if image.layout == "strided" else image.n), (1 if image.layout == "gray" else channels)
    margin = 2 if image.layout == "cropped" else 0
    leaf = torch.randn(n, c, image.h + margin, image.w + margin, generator=g).to(dtype)
    if rounding is not None:
        leaf = rounding(leaf, 999 - i)
    if image.layout == "channels_last":
        leaf = leaf.contiguous(memory_format=torch.channels_last)
    leaf.requires_grad_(image.needs_grad)
    x = leaf
    if image.layout == "strided":
        x = leaf[::2]
    elif image.layout == "gray":
        x = leaf.expand(-1, channels, -1, -1)
    elif image.layout == "cropped":
        x = leaf[:, :, 1:-1, 1:-1]
    return leaf, x
