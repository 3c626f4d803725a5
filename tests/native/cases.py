"""Arguments for every operation at a given geometry, as slices of larger buffers whose remainder is NaN."""

from typing import NamedTuple

import torch
from torch import Tensor

ROOM = 4  # channels of NaN before and behind every slice


class Geometry(NamedTuple):
    n: int
    h: int
    w: int
    c: int  # channels before the layer
    k: int  # bottleneck width
    g: int  # growth


# One pixel, one image, odd and even sizes, one column, growths 4 to 48, widths 4g and others, more than one block of
# channels (128, 256) and of rows. The CPU kernels divide few rows by channels: MANY_ROWS are too many for that.
MANY_ROWS = Geometry(3, 11, 9, 37, 20, 5)
GEOMETRIES = [
    Geometry(2, 5, 7, 24, 16, 4),
    Geometry(3, 8, 8, 37, 48, 12),
    Geometry(1, 13, 1, 9, 5, 3),
    Geometry(2, 1, 1, 30, 96, 24),
    Geometry(1, 2, 2, 66, 128, 32),
    Geometry(2, 7, 6, 301, 160, 40),
    Geometry(1, 17, 15, 150, 192, 48),
    Geometry(5, 3, 3, 1, 3, 2),
    MANY_ROWS,
    Geometry(2, 13, 11, 270, 136, 12),
    Geometry(2, 28, 28, 64, 128, 32),
]


class Case(NamedTuple):
    args: list
    written: list[int]  # positions of the arguments that are written


def image(n: int, c: int, h: int, w: int, exact: bool) -> Tensor:
    whole = torch.full((n, h, w, c + 2 * ROOM), float("nan")).permute(0, 3, 1, 2)
    inner = whole[:, ROOM : ROOM + c]
    inner.copy_(values((n, c, h, w), exact))
    return inner


def values(shape, exact: bool) -> Tensor:
    return torch.randint(-3, 4, shape).float() if exact else torch.randn(shape)


def whole_of(inner: Tensor) -> Tensor:
    """The buffer that `image` made around its result."""
    n, c, h, w = inner.shape
    stride = c + 2 * ROOM
    size, strides = (n, stride, h, w), (h * w * stride, 1, w * stride, stride)
    return torch.as_strided(inner, size, strides, inner.storage_offset() - ROOM)


def copy_of(inner: Tensor) -> Tensor:
    """The slice in a copy of its buffer."""
    whole = whole_of(inner)
    copy = (
        torch.full(whole.shape, float("nan"), dtype=whole.dtype)
        .contiguous(memory_format=torch.channels_last)
        .copy_(whole)
    )
    return copy[:, ROOM : ROOM + inner.shape[1]]


def norm(c: int, exact: bool, affine: bool = True) -> list:
    """mean, var, gamma, beta, eps; `exact` ones scale and shift by small integers."""
    if exact:
        gamma, beta = (torch.randint(-2, 3, (c,)).float(), torch.randint(-2, 3, (c,)).float())
        return [torch.randint(-2, 3, (c,)).float(), torch.ones(c), gamma, beta, 0.0]
    gamma, beta = (torch.rand(c) + 0.5, torch.randn(c)) if affine else (None, None)
    return [torch.randn(c) * 0.3, torch.rand(c) + 0.5, gamma, beta, 1e-5]


def make(name: str, geometry: Geometry, exact: bool = False, affine: bool = True, **options) -> Case:
    """Arguments of operation `name`. Options: drop_rate, batch_stats, accumulate
    (bn_relu_conv3x3_bwd adds to dx)."""
    n, h, w, c, k, g = geometry
    vector = lambda size: values((size,), exact)  # noqa: E731
    at = lambda channels: image(n, channels, h, w, exact)  # noqa: E731
    norm_c, norm_k = norm(c, exact, affine), norm(k, exact, affine)
    w1, w3 = values((k, c, 1, 1), exact), values((g, k, 3, 3), exact)
    stats = lambda size: [torch.zeros(size), torch.zeros(size)]  # noqa: E731
    batch_stats = options.get("batch_stats", True)

    def into(dx):
        """batch_stats, dx, a, b: the end of a backward's arguments."""
        size = k if dx is None else dx.shape[1]
        return [batch_stats, dx, vector(size), vector(size)]

    drop_rate = options.get("drop_rate", 0.0)
    seed = torch.tensor(-123456789012345678) if drop_rate else None
    dx3 = at(k) if options.get("accumulate") else None
    pooled = (n, c, (h + 1) // 2, (w + 1) // 2)
    variances = [[torch.rand(s) + 0.5 for s in (c, k)] for _ in range(2)]
    made = {
        "channel_stats": lambda: Case([at(c)], []),
        "bn_bwd_apply": lambda: Case([at(c), at(c), vector(c), vector(c), vector(c)], []),
        "update_running_stats": lambda: Case(
            [[vector(c), vector(k)], variances[0], [vector(c), vector(k)], variances[1], [7, 9], [0.1, 1.0]], [0, 1]
        ),
        "bn_relu_conv1x1_fwd": lambda: Case([at(c), *norm_c, w1, True], []),
        "bn_relu_conv1x1_bwd": lambda: Case(
            [at(k), at(k), *norm_k[:3], norm_k[4], vector(k), vector(k), at(c), *norm_c, w1, *into(at(c)), True],
            [0, 16, 17, 18],
        ),
        "bn_relu_conv3x3_fwd": lambda: Case([at(k), *norm_k, w3, drop_rate, seed, at(g), *stats(g)], [9, 10, 11]),
        "bn_relu_conv3x3_bwd": lambda: Case(
            [at(g), at(g), vector(g), vector(g), vector(g), at(k), *norm_k, w3, drop_rate, seed, *into(dx3), True],
            [15, 16, 17],
        ),
        "bottleneck_infer": lambda: Case([at(c), *norm_c, w1, *norm_k, w3, at(g)], [13]),
        "transition_fwd": lambda: Case([at(c), *norm_c, w1, image(n, k, h // 2, w // 2, exact), *stats(k)], [7, 8, 9]),
        "transition_bwd": lambda: Case(
            [image(n, k, h // 2, w // 2, exact), at(c), *norm_c, w1, *into(at(c)), True], [9, 10, 11]
        ),
        "stem_fwd": lambda: Case([at(c), *norm_c, image(*pooled, exact), *stats(c)], [6, 7, 8]),
        "stem_bwd": lambda: Case([image(*pooled, exact), at(c), *norm_c, *into(at(c))], [8, 9, 10]),
        "head_fwd": lambda: Case([at(c), *norm_c], []),
        "head_bwd": lambda: Case([values((n, c), exact), at(c), *norm_c, *into(at(c))], [8, 9, 10]),
    }
    return made[name]()


def applies(name: str, geometry: Geometry) -> bool:
    return not name.startswith("transition") or min(geometry.h, geometry.w) > 1


def clone(argument, dtype=None):
    """A copy that keeps an image's buffer, or a plain copy in `dtype`."""
    if isinstance(argument, list):
        return [clone(a, dtype) for a in argument]
    if not isinstance(argument, Tensor):
        return argument
    if dtype is not None:
        return argument.to(dtype) if argument.is_floating_point() else argument.clone()
    return (
        copy_of(argument)
        if argument.dim() == 4 and argument.shape[2:] != (3, 3) and is_slice(argument)
        else (argument.clone())
    )


def is_slice(argument: Tensor) -> bool:
    return argument._base is not None


def run(operation, case: Case, dtype=None) -> tuple[list[Tensor], list]:
    """Results and then the arguments that are written (bn_relu_conv1x1_bwd's u, whose content is undefined, left
    out); and all arguments after the call."""
    args = [clone(a, dtype) for a in case.args]
    results = operation(*args)
    values = list(results) if isinstance(results, tuple) else [] if results is None else [results]
    for i in case.written:
        if args[i] is not None and not (i == 0 and "conv1x1_bwd" in str(operation)):
            values += args[i] if isinstance(args[i], list) else [args[i]]
    return values, args


def error(got: Tensor, exact: Tensor) -> float:
    """Largest error relative to the largest exact value."""
    if exact.numel() == 0:
        return 0.0
    size = exact.double().abs().max().item()
    return (got.double() - exact.double()).abs().max().item() / (size or 1.0)
