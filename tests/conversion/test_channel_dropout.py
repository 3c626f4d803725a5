"""MONAI's dropout of whole channels of images: as nn.Dropout2d and nn.Dropout3d do it, draw for draw."""

import copy

import pytest
import torch
from torch import nn

import densenet_fast
from benchmarks.memory import measure

from ..oracle import away_from_start, error
from .models import Monai

SIZES = {1: (60,), 2: (64, 48), 3: (22, 20, 18)}


def pair(dims=2, blocks=(2, 2), dropout_prob=0.3, **options):
    """MONAI's net and its converted copy."""
    torch.manual_seed(0)
    theirs = away_from_start(Monai(dims, 1, 5, 8, 6, blocks, bn_size=2, dropout_prob=dropout_prob).double())
    theirs.features.norm0.bias.data.sub_(1.5)  # else all its maxima are positive, and its gradient cancels
    ours = copy.deepcopy(theirs)
    assert not densenet_fast.convert(ours, **options).left
    return theirs, ours


def images(dims=2):
    return torch.randn(3, 1, *SIZES[dims], dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def step(model, x):
    """Under one seed: output, gradients, buffers, and what is drawn next."""
    torch.manual_seed(2)
    leaf = x.clone().requires_grad_()
    y = model(leaf)
    y.square().sum().backward()
    return [y, leaf.grad, *[p.grad for p in model.parameters()], *model.buffers(), torch.rand(2)]


def check(theirs, ours, x):
    assert all(error(got, right) < 1e-9 for got, right in zip(step(ours, x), step(theirs, x), strict=True))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("efficient", [False, True])
@pytest.mark.parametrize("dims", [2, 3])
def test_a_step_is_monais_draw_for_draw(dims, efficient):
    theirs, ours = pair(dims, efficient=efficient)
    check(theirs, ours, images(dims))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("change", ["frozen norms", "all dropped", "another rate", "one layer's", "inference"])
def test_modes(change):
    theirs, ours = pair(dropout_prob=1.0 if change == "all dropped" else 0.3)
    x = images()
    check(theirs, ours, x)
    for model in (theirs, ours):
        model.zero_grad()
        for module in model.modules():
            if change == "frozen norms" and isinstance(module, nn.BatchNorm2d):
                module.eval()
            if change == "another rate" and isinstance(module, nn.Dropout2d):
                module.p = 0.6
        if change == "one layer's":
            model.features.denseblock1.denselayer1.layers.dropout.eval()
        if change == "inference":
            model.eval()
    check(theirs, ours, x)


@pytest.mark.filterwarnings("error")
def test_native_kernels_for_the_rest():
    theirs, ours = pair(backend="native")
    exact = step(theirs, images())
    own, stock = (step(model.float().requires_grad_(), images().float()) for model in (ours, copy.deepcopy(theirs)))
    for got, right, true in zip(own[:2], stock[:2], exact[:2], strict=True):
        assert error(got, true) <= 2 * error(right, true) + 1e-6


def test_kept_bytes_stay_linear():
    theirs, ours = pair(blocks=(6,))
    _, without = pair(blocks=(6,), dropout_prob=0.0)
    x = images()
    kept = measure(ours, x).live
    assert measure(theirs, x).live > 2 * kept
    masks, room = 3 * 6 * 6, 2 * 12  # and where layers run by halves, statistics have room for one more bottleneck
    assert kept - measure(without, x).live == 8 * (masks + room)


def test_gradients_of_gradients():
    theirs, ours = pair(blocks=(2,))
    x, found = images(), []
    for model in (theirs, ours):
        torch.manual_seed(2)
        leaf = x.clone().requires_grad_()
        (first,) = torch.autograd.grad(model(leaf).square().sum(), leaf, create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), leaf))
    assert error(found[1][0], found[0][0]) < 1e-9


def test_layers_that_drop_values_beside_layers_that_drop_channels_run_plain():
    theirs, ours = pair()
    for model in (theirs, ours):
        model.features.denseblock1.denselayer1.layers.dropout = nn.Dropout(0.5)
    with pytest.warns(UserWarning, match="some layers drop channels of images, others values"):
        check(theirs, ours, images())


@pytest.mark.thorough
def test_a_compiled_net_draws_the_same():
    torch.compiler.reset()
    _, ours = pair(blocks=(1, 1))  # whose draws have equal arguments
    compiled = torch.compile(copy.deepcopy(ours), fullgraph=True)
    found = []
    for call in (compiled, ours):
        torch.manual_seed(2)
        y = call(images())
        found.append([y, *torch.autograd.grad(y.square().sum(), list(call.parameters()))])
    assert all(error(got, right) < 1e-9 for got, right in zip(*found, strict=True))
