"""The modules of a DenseNet, with torchvision's names and children, that run fused where they can.

Every module also runs as its plain layers under ordinary autograd: when `backend="plain"`, when a graph is traced, and
when the fused path does not apply (`eligibility.py`), then with a warning that gives the reason.
"""

import warnings
from abc import abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Self

from . import backends, functional
from .buffer import convolved_format, memory_format
from .eligibility import (
    Predicate,
    is_traced,
    why_not,
    why_not_conv,
    why_not_norm,
    why_not_now,
    why_not_parts,
    why_not_pool,
)
from .running_stats import Transaction, transaction
from .uncompiled import uncompiled

Norm = Any  # nn.BatchNorm2d, or torchvision's FrozenBatchNorm2d, which need not be installed


# Buffers and children are looked up in their dictionaries, ten times as fast as attributes; a parameter may be
# parametrized, which only the attribute knows.
def uses_batch(module: Norm) -> bool:
    """Whether a norm takes statistics of the batch in its present mode."""
    return isinstance(module, nn.BatchNorm2d) and (module.training or module._buffers["running_mean"] is None)


def norm_of(module: Norm) -> functional.Norm:
    """The tensors of a norm in its present mode."""
    buffers = module._buffers
    mean, var = (None, None) if uses_batch(module) else (buffers["running_mean"], buffers["running_var"])
    return functional.Norm(mean, var, module.weight, module.bias, module.eps)


def _check_counts(**counts: int | None) -> None:
    """Refuse what is not a positive number, or None."""
    for name, count in counts.items():
        if count is not None and count < 1:
            raise ValueError(f"{name}: got {count}, expected at least 1")


# What the fused path takes children for, by their names.
_why_not_relu: Predicate = partial(why_not, cls=nn.ReLU)
_PLAIN_LAYER: dict[str, Predicate] = {
    "norm1": why_not_norm,
    "relu1": _why_not_relu,
    "conv1": partial(why_not_conv, kernel=3),
}
_BOTTLENECK_LAYER: dict[str, Predicate] = {
    "norm1": why_not_norm,
    "relu1": _why_not_relu,
    "conv1": partial(why_not_conv, kernel=1),
    "norm2": why_not_norm,
    "relu2": _why_not_relu,
    "conv2": partial(why_not_conv, kernel=3),
}
_TRANSITION: dict[str, Predicate] = {
    "norm": why_not_norm,
    "relu": _why_not_relu,
    "conv": partial(why_not_conv, kernel=1),
    "pool": partial(
        why_not_pool,
        cls=nn.AvgPool2d,
        kernel_size=2,
        stride=2,
        padding=0,
        ceil_mode=False,
        divisor_override=None,
    ),
}


class DenseLayer(nn.Module):
    """One layer: norm1 relu1 conv1(1x1) norm2 relu2 conv2(3x3), then dropout (Huang et al. 2017, section 3).

    With `bn_size=None` it is the paper's layer without bottleneck: norm1 relu1 conv1(3x3).

    Args:
        num_input_features: channels C before the layer.
        growth_rate: channels k the layer adds.
        bn_size: bottleneck width in units of k, or None.
        drop_rate: dropout probability of the new channels.
    """

    def __init__(
        self,
        num_input_features: int,
        growth_rate: int,
        bn_size: int | None = 4,
        drop_rate: float = 0.0,
    ):
        super().__init__()
        _check_counts(num_input_features=num_input_features, growth_rate=growth_rate, bn_size=bn_size)
        if not 0 <= drop_rate <= 1:
            raise ValueError(f"drop_rate: got {drop_rate}, expected a probability in [0, 1]")
        self.norm1 = nn.BatchNorm2d(num_input_features)
        self.relu1 = nn.ReLU(inplace=True)
        if bn_size is None:
            self.conv1 = nn.Conv2d(num_input_features, growth_rate, 3, padding=1, bias=False)
        else:
            width = bn_size * growth_rate
            self.conv1 = nn.Conv2d(num_input_features, width, 1, bias=False)
            self.norm2 = nn.BatchNorm2d(width)
            self.relu2 = nn.ReLU(inplace=True)
            self.conv2 = nn.Conv2d(width, growth_rate, 3, padding=1, bias=False)
        self.drop_rate = drop_rate

    @property
    def has_bottleneck(self) -> bool:
        return "conv2" in self._modules

    @property
    def growth_rate(self) -> int:
        conv = self.conv2 if self.has_bottleneck else self.conv1
        weight = conv._parameters.get("weight")  # which may have been cut; not evaluated where it is parametrized
        return conv.out_channels if weight is None else weight.shape[0]

    @property
    def norms(self) -> tuple[Norm, ...]:
        children = cast(dict[str, Any], self._modules)
        return (children["norm1"], children["norm2"]) if self.has_bottleneck else (children["norm1"],)

    def forward(self, *features: Tensor | Sequence[Tensor]) -> Tensor:
        """The new channels [N, k, H, W] from all channels before, given as one tensor, as several or as a list."""
        inputs: list[Any] = list(features)
        if len(inputs) == 1 and isinstance(inputs[0], list | tuple):
            inputs = list(inputs[0])
        x = torch.cat(inputs, 1)  # also of one input: relu1 may then overwrite what norm1, replaced, returns
        x = self.conv1(self.relu1(self.norm1(x)))
        if self.has_bottleneck:
            x = self.conv2(self.relu2(self.norm2(x)))
        if self.drop_rate > 0:
            x = F.dropout(x, p=self.drop_rate, training=self.training)
        return x

    def why_plain(self) -> str | None:
        """Why this layer cannot run fused, naming the submodule."""
        return why_not_parts(self, _BOTTLENECK_LAYER if self.has_bottleneck else _PLAIN_LAYER)

    def step(self, seed: Tensor | None) -> functional.Bottleneck | functional.Plain:
        """The layer's tensors in its present mode; `seed` is the dropout's, None without dropout."""
        children = cast(dict[str, Any], self._modules)
        norm1, weight1 = norm_of(children["norm1"]), children["conv1"].weight
        if self.has_bottleneck:
            norm2, weight2 = norm_of(children["norm2"]), children["conv2"].weight
            return functional.Bottleneck(norm1, weight1, norm2, weight2, self.drop_rate, seed)
        return functional.Plain(norm1, weight1, self.drop_rate, seed)


class Fusable(nn.Module):
    """What blocks and transitions share: a backend, a fused run, and plain layers with one warning for each reason."""

    backend: str
    _warned: set[str]

    def __init__(self, backend: str):
        super().__init__()
        self.backend = backends.check_name(backend)
        self._warned = set()

    def set_backend(self, backend: str) -> Self:
        """Run on `backend`: "auto", "native", "triton", "eager", or "plain" for the plain layers."""
        self.backend = backends.check_name(backend)
        return self

    def forward(self, x: Tensor) -> Tensor:
        if self.backend == "plain" or is_traced(x):
            return self.plain(x)
        return self._run(x)

    @uncompiled
    def _run(self, x: Tensor) -> Tensor:
        with transaction(self) as updates:
            if self.runs_plain(x):
                updates.guard(self)
                return self.plain(x)
            return self.fused(x, updates)

    def runs_plain(self, x: Tensor) -> bool:
        """Whether to run the plain layers; warns, once for each reason, unless they were asked for."""
        if self.backend == "plain" or x.shape[:1] == (0,):
            return True
        reason = why_not_now() or self.why_plain()
        if reason is not None and reason not in self._warned:
            self._warned.add(reason)
            warnings.warn(
                f"{type(self).__name__} runs its plain layers (same results, more memory and time): {reason}; "
                "set_backend('plain') silences this",
                stacklevel=2,
            )
        return reason is not None

    @abstractmethod
    def plain(self, x: Tensor) -> Tensor:
        """The layers one by one under ordinary autograd."""

    @abstractmethod
    def fused(self, x: Tensor, updates: Transaction) -> Tensor:
        """The layers as one stage; what their norms took from the batch goes to `updates`."""

    @abstractmethod
    def why_plain(self) -> str | None:
        """Why the module cannot run fused, naming the submodule; None if it can."""


def run_stage(
    x: Tensor,
    updates: Transaction,
    block: "DenseBlock | None" = None,
    consumer: functional.Consumer | None = None,
    consumer_norm: Norm | None = None,
    *,
    backend: str,
    stats: functional.Stats | None = None,
    extend: bool = False,
    following: "DenseBlock | None" = None,
    layout: torch.memory_format = torch.channels_last,
) -> functional.StageOutput:
    """`functional.dense_stage` on the tensors of modules, its batch statistics reported to `updates`.

    The output has what the block `following` wants of it, which may then `extend` it; without one it is for others to
    see, in the memory format `layout`.
    """
    result = functional.dense_stage(
        x,
        block.steps(x.device) if block is not None else (),
        consumer,
        stats=stats,
        extend=extend,
        output_stats=following is not None and any(map(uses_batch, following.norms)),
        output_room=following.growth if following is not None else 0,
        memory_format=layout if following is None else None,
        efficient=block is not None and block.efficient,
        backend=backend,
    )
    norms = [*block.norms] if block is not None else []
    norms += [consumer_norm] if consumer_norm is not None else []
    count = x.shape[0] * x.shape[2] * x.shape[3]
    for norm, taken in zip(norms, result.batch_stats, strict=True):
        if taken is not None:
            updates.report(norm, *taken, count, backend)
    return result


class DenseBlock(Fusable, nn.ModuleDict):
    """`denselayer1` ... `denselayerL` in one buffer.

    Args:
        num_layers: L.
        num_input_features: channels C0 of the input.
        bn_size, growth_rate, drop_rate: as in `DenseLayer`.
        efficient: recompute the bottleneck outputs in backward.
        backend: see `set_backend`.
    """

    def __init__(
        self,
        num_layers: int,
        num_input_features: int,
        bn_size: int | None,
        growth_rate: int,
        drop_rate: float = 0.0,
        efficient: bool = False,
        backend: str = "auto",
    ):
        super().__init__(backend)
        if num_layers < 0:
            raise ValueError(f"num_layers: got {num_layers}, expected at least 0")
        for i in range(num_layers):
            layer = DenseLayer(num_input_features + i * growth_rate, growth_rate, bn_size, drop_rate)
            self.add_module(f"denselayer{i + 1}", layer)
        self.efficient = efficient

    def set_efficient(self, efficient: bool = True) -> Self:
        """Recompute the bottleneck outputs in backward (True) or keep them (False)."""
        self.efficient = efficient
        return self

    def fused(self, x: Tensor, updates: Transaction) -> Tensor:
        """[N, C0, H, W] -> [N, C0 + L * k, H, W]."""
        return run_stage(x, updates, self, backend=self.backend, layout=memory_format(x)).y

    def plain(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.values():
            features.append(layer(features))
        return torch.cat(features, 1)

    def layers(self) -> list[DenseLayer]:
        return cast(list[DenseLayer], list(self.values()))

    def why_plain(self) -> str | None:
        for name, layer in self.items():
            reason = why_not(layer, DenseLayer)
            if reason is not None:
                return f"{name} {reason}"
            reason = cast(DenseLayer, layer).why_plain()
            if reason is not None:
                return f"{name}.{reason}"
        return None

    @property
    def growth(self) -> int:
        """Channels that all layers add."""
        return sum(layer.growth_rate for layer in self.layers())

    @property
    def norms(self) -> list[Norm]:
        return [norm for layer in self.layers() for norm in layer.norms]

    def steps(self, device: torch.device) -> list[functional.Bottleneck | functional.Plain]:
        """The layers' tensors, with a fresh dropout seed for each layer that drops."""
        drops = [layer.training and layer.drop_rate > 0 for layer in self.layers()]
        seeds: Sequence[Tensor | None] = [None] * len(drops)
        if any(drops):
            limits = torch.iinfo(torch.int64)
            drawn = torch.randint(limits.min, limits.max, (len(drops),), device=device)
            seeds = [seed if drop else None for seed, drop in zip(drawn, drops, strict=True)]
        return [layer.step(seed) for layer, seed in zip(self.layers(), seeds, strict=True)]


class Transition(Fusable, nn.Sequential):
    """norm relu conv(1x1) pool(2x2 average) between two blocks (Huang et al. 2017, section 3, "Pooling layers").

    Args:
        num_input_features, num_output_features: channels.
        backend: see `set_backend`.
    """

    def __init__(self, num_input_features: int, num_output_features: int, backend: str = "auto"):
        super().__init__(backend)
        _check_counts(num_input_features=num_input_features, num_output_features=num_output_features)
        self.norm = nn.BatchNorm2d(num_input_features)
        self.relu = nn.ReLU(inplace=True)
        self.conv = nn.Conv2d(num_input_features, num_output_features, 1, bias=False)
        self.pool = nn.AvgPool2d(2, 2)

    def fused(self, x: Tensor, updates: Transaction) -> Tensor:
        """[N, C, H, W] -> [N, C', H // 2, W // 2]."""
        step = self.step()
        layout = convolved_format(memory_format(x), step.weight)
        return run_stage(x, updates, None, step, self.norm, backend=self.backend, layout=layout).y

    def plain(self, x: Tensor) -> Tensor:
        return nn.Sequential.forward(self, x)

    def why_plain(self) -> str | None:
        if [name for name, _ in self.named_children()] != ["norm", "relu", "conv", "pool"]:
            return "its children are not norm, relu, conv, pool"
        return why_not_parts(self, _TRANSITION)

    def step(self) -> functional.Transition:
        return functional.Transition(norm_of(self.norm), self.conv.weight)
