"""The oracle: stages as PyTorch's own layers and torch.cat, differentiated by autograd; and how errors are measured."""

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

from densenet_fast.functional import Bottleneck, Head, Norm, Plain, Stem, Transition

from .reference import dropout_mask


def batch_norm(x: Tensor, norm: Norm) -> Tensor:
    return F.batch_norm(x, norm.mean, norm.var, norm.gamma, norm.beta, norm.mean is None, 0.1, norm.eps)


def dropped(y: Tensor, drop_rate: float, seed: Tensor) -> Tensor:
    """Dropout by the mask that all backends make of a seed."""
    return y * dropout_mask(y.detach(), drop_rate, seed).to(y.device)


def dropout(y: Tensor, layer: Bottleneck | Plain) -> Tensor:
    return y if layer.seed is None else dropped(y, layer.drop_rate, layer.seed)


def layer(x: Tensor, step: Bottleneck | Plain) -> Tensor:
    a = F.relu(batch_norm(x, step.norm1))
    if isinstance(step, Plain):
        return dropout(F.conv2d(a, step.weight1, padding=1), step)
    z = F.conv2d(a, step.weight1)
    return dropout(F.conv2d(F.relu(batch_norm(z, step.norm2)), step.weight2, padding=1), step)


def stage(x: Tensor, layers: Sequence[Bottleneck | Plain], consumer: Transition | Head | Stem | None) -> Tensor:
    features = [x]
    for step in layers:
        features.append(layer(torch.cat(features, 1), step))
    x = torch.cat(features, 1)
    if consumer is None:
        return x
    a = F.relu(batch_norm(x, consumer.norm))
    if isinstance(consumer, Transition):
        return F.avg_pool2d(F.conv2d(a, consumer.weight), 2)
    if isinstance(consumer, Head):
        return a.mean((2, 3))
    return F.max_pool2d(a, 3, 2, 1)


def make_norm(channels: int, dtype: torch.dtype, frozen: bool = False, affine: bool = True) -> Norm:
    """A norm with weights away from 1 and 0, and a biased positive running variance where it is frozen."""
    return Norm(
        mean=torch.randn(channels, dtype=dtype) * 0.3 if frozen else None,
        var=torch.rand(channels, dtype=dtype) + 0.5 if frozen else None,
        gamma=torch.rand(channels, dtype=dtype) + 0.5 if affine else None,
        beta=torch.randn(channels, dtype=dtype) * 0.2 if affine else None,
        eps=1e-5,
    )


def make_weight(out: int, channels: int, kernel: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(out, channels, kernel, kernel, dtype=dtype) * (2 / (channels * kernel**2)) ** 0.5


def make_stage(
    c0: int,
    growths: Iterable[int],
    consumer: str | None = None,
    *,
    dtype: torch.dtype = torch.float64,
    bottleneck: int | None = 4,
    frozen: Iterable[int] = (),
    affine: bool = True,
    drop_rate: float = 0.0,
):
    """Steps of a stage with random tensors. `frozen`: numbers of the norms that use given statistics, in order."""
    frozen = set(frozen)
    count = iter(range(10_000))

    def norm(channels: int) -> Norm:
        return make_norm(channels, dtype, next(count) in frozen, affine)

    layers, c = [], c0
    for k in growths:
        seed = torch.randint(0, 1 << 60, ()) if drop_rate else None
        if bottleneck is None:
            layers.append(Plain(norm(c), make_weight(k, c, 3, dtype), drop_rate, seed))
        else:
            width = bottleneck * k
            layers.append(
                Bottleneck(
                    norm(c),
                    make_weight(width, c, 1, dtype),
                    norm(width),
                    make_weight(k, width, 3, dtype),
                    drop_rate,
                    seed,
                )
            )
        c += k
    if consumer == "transition":
        return layers, Transition(norm(c), make_weight(c // 2, c, 1, dtype))
    if consumer == "head":
        return layers, Head(norm(c))
    if consumer == "stem":
        return layers, Stem(norm(c))
    return layers, None


def parameters(steps) -> list[Tensor]:
    """The differentiable tensors of (layers, consumer), in order: gamma, beta and weights."""
    found: list[Tensor] = []
    for step in [*steps[0], *([] if steps[1] is None else [steps[1]])]:
        for name, value in step._asdict().items():
            if isinstance(value, Norm):
                found += [t for t in (value.gamma, value.beta) if t is not None]
            elif name.startswith("weight"):
                found.append(value)
    return found


def leaves_to(steps, dtype: torch.dtype):
    """A copy of the steps in another dtype, seeds left alone."""

    def convert(t):
        return t.detach().to(dtype) if isinstance(t, Tensor) and t.is_floating_point() else t

    return tree_map(convert, steps)


def as_under_autocast(steps, dtype):
    """Weights in `dtype`, norms in float32 at least."""
    narrow, wide = leaves_to(steps, dtype), leaves_to(steps, torch.float32)

    def mix(step, norms):
        return step._replace(**{n: v for n, v in norms._asdict().items() if n.startswith("norm")})

    layers = [mix(s, w) for s, w in zip(narrow[0], wide[0], strict=True)]
    return layers, None if narrow[1] is None else mix(narrow[1], wide[1])


def require_grad(steps):
    for t in parameters(steps):
        t.requires_grad_()
    return steps


def away_from_start(model: torch.nn.Module) -> torch.nn.Module:
    """Move all vectors off their initial 1 and 0. At the start some gradients all but cancel: there torchvision in one
    memory format differs from itself in the other by 1e-9, in float64."""
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point() and value.dim() == 1:
                value.add_(torch.rand_like(value) * 0.3)
    return model


def error(got: Tensor, exact: Tensor) -> float:
    """Largest deviation, relative to the largest exact value."""
    got, exact = got.detach().double(), exact.detach().double()
    return float((got - exact).abs().max() / exact.abs().max().clamp_min(1e-300))


def rms_error(got: Tensor, exact: Tensor) -> float:
    """Root mean square deviation, relative to the root mean square of the exact values."""
    got, exact = got.detach().double(), exact.detach().double()
    return float((got - exact).norm() / exact.norm().clamp_min(1e-300))


def tensors(tree) -> list[Tensor]:
    return [t for t in tree_flatten(tree)[0] if isinstance(t, Tensor)]
