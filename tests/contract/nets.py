"""Small nets in every mode of their norms and weights, each three times: on a backend, on stock layers in the same
dtype, and on stock layers in float64."""

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from densenet_fast import DenseNet

from ..oracle import away_from_start
from .backends import Backend, Values


class Shape(NamedTuple):
    """Of a net: layers of its blocks, size of its images, whether it has a stem's pooling, which blocks recompute, and
    the number of images."""

    blocks: tuple[int, ...]
    size: int
    stem: bool
    recomputing: tuple[int, ...]
    batch: int = 2

    @property
    def config(self) -> dict:
        return {"block_config": self.blocks, "small_inputs": not self.stem}


SHAPES = {
    "": Shape((2, 2), 12, False, ()),
    "recomputing": Shape((2, 2), 12, False, (1, 2)),
    "stem": Shape((2, 2), 32, True, ()),
    "stem-recomputing": Shape((2, 2), 32, True, (1, 2)),
}
# Four images: of two, its last norms take statistics of eight values, and one rounding decides about the errors.
SMALLEST = {"smallest": Shape((1, 1), 16, True, (1,), 4)}
LAYER = Shape((1,), 6, False, ())  # in a block, and the head


def net(shape: Shape = LAYER, **config) -> DenseNet:
    torch.manual_seed(0)
    model = DenseNet(**({"growth_rate": 4, "num_init_features": 6} | shape.config | config))
    for i in shape.recomputing:
        model.features.get_submodule(f"denseblock{i}").set_efficient()
    return away_from_start(model)


class Trio(NamedTuple):
    ours: DenseNet
    stock: DenseNet
    exact: DenseNet

    def each(self, do: Callable[[DenseNet], object]) -> None:
        for model in self:
            do(model)


def trio(backend: Backend, change: Callable[[DenseNet], None] = lambda model: None, *args, **config) -> Trio:
    """The net, `change`d, three times."""
    model = net(*args, **config).to(backend.device, backend.dtype)
    change(model)
    ours, stock, exact = (copy.deepcopy(model) for _ in range(3))
    return Trio(backend.put(ours), stock.set_backend("plain"), exact.double().set_backend("plain"))


def images(
    model: DenseNet, shape: Shape = LAYER, *, seed: int = 0, margin: float = 1e-5, before=lambda model: None
) -> Tensor:
    """Random images, in float32, for which no value before a ReLU of the float64 `model` is within `margin` of
    zero: nearer, rounding decides whether a gradient passes, and errors are chance."""
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    for _ in range(100):
        x = torch.randn(shape.batch, 3, shape.size, shape.size, device=device, generator=generator)
        if not margin or _nearest_to_zero(copy.deepcopy(model), x.double(), before) > margin:
            return x
    raise AssertionError(f"of 100 batches all come within {margin} of a ReLU's kink")


@torch.no_grad()
def _nearest_to_zero(model: DenseNet, x: Tensor, before: Callable[[DenseNet], object]) -> float:
    nearest = []
    for norm in norms(model):
        norm.register_forward_hook(lambda module, inputs, y: nearest.append(y.abs().min().item()))
    before(model)
    model(x)
    return min(nearest)


def step(model: DenseNet, x: Tensor, cotangent: Tensor, of_images: bool = False) -> tuple[Values, Values]:
    """Output and gradients of a step in the dtype of the model, gradients of the images too if `of_images`."""
    dtype = model.classifier.weight.dtype
    x = x.to(dtype, copy=True).requires_grad_(of_images)
    y = model(x)
    model.zero_grad()
    y.backward(cotangent.to(dtype))
    return {"output": y.detach()}, {"images": x.grad, **gradients(model)}


def gradients(model: DenseNet) -> Values:
    return {name: p.grad for name, p in model.named_parameters()}


def buffers(model: DenseNet) -> Values:
    return dict(model.named_buffers())


def check_step(backend: Backend, nets: Trio, x: Tensor, before=lambda model: None, **options) -> None:
    """Output and gradients of a step, and the running statistics after it; `before` is called with each net."""
    cotangent = torch.randn(x.shape[0], 10, device=x.device)
    found = []
    for model in nets:
        before(model)
        found.append((*step(model, x, cotangent, **options), buffers(model)))
    for ours, stock, exact in zip(*found, strict=True):
        backend.check(ours, stock, exact)


def norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    return [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]


def freeze_every_second(model):
    for norm in norms(model)[::2]:
        norm.running_mean.normal_()
        norm.eval()


def freeze_all(model):
    for norm in norms(model):
        norm.eval()


def cumulative(model):
    for norm in norms(model):
        norm.momentum = None


def mixed_momenta(model):
    for i, norm in enumerate(norms(model)):
        norm.momentum = [None, 0.1, 0.5, 0.0, 1.0][i % 5]


def untracked(model):
    for norm in norms(model):
        norm.track_running_stats = False
        norm.running_mean = norm.running_var = norm.num_batches_tracked = None


def no_longer_tracked(model):
    """The buffers stay as they are, and are what eval takes."""
    for norm in norms(model):
        norm.running_mean.normal_()
        norm.track_running_stats = False


def without_affine(model):
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                bare = nn.BatchNorm2d(child.num_features, affine=False)
                setattr(parent, name, bare.to(child.running_mean.device, child.running_mean.dtype))


def own_eps(model):
    for i, norm in enumerate(norms(model)):
        norm.eps = 10.0 ** -(1 + i % 5)


def frozen_weights(model):
    for i, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(i % 3 == 0)


def frozen_first_block(model):
    model.features.conv0.requires_grad_(False)
    model.features.denseblock1.requires_grad_(False)


MODES = (
    freeze_every_second,
    freeze_all,
    cumulative,
    mixed_momenta,
    untracked,
    no_longer_tracked,
    without_affine,
    own_eps,
    frozen_weights,
    frozen_first_block,
)
