"""The measure itself: tests/reference.py against PyTorch's layers, torch.cat and training norms under autograd."""

import pytest
import torch
import torch.nn.functional as F

from densenet_fast.contract import Half, Norm

from . import reference
from .blocks import Shape, make

SHAPES = {
    "bottlenecks": Shape(2, 5, 4, 6, (8, 5, 3), (3, 2, 4), behind=2),
    "plain": Shape(2, 5, 4, 6, (0, 0), (3, 2)),
    "mixed": Shape(2, 5, 4, 6, (8, 0, 5), (3, 2, 4)),
}


def stock(x, block, mask):
    """The block's output; `mask` gives dropout's."""
    features = x[:, : block.channels]
    for layer in block.layers(x.shape[1], x[:, 0].numel()):
        y = _conv(features, layer.norm1, layer.weight1)
        if layer.weight2 is not None:
            y = _conv(y, layer.norm2, layer.weight2)
        features = torch.cat([features, y if layer.seed is None else y * mask(y, layer)], 1)
    return features


def _conv(x, norm: Norm, weight):
    y = F.batch_norm(x, norm.mean, norm.var, norm.gamma, norm.beta, norm.mean is None, 0.0, norm.eps)
    return F.conv2d(F.relu(y), weight, padding=weight.shape[2] // 2)


@pytest.mark.parametrize("drop_rate", [0.0, 0.4])
@pytest.mark.parametrize("frozen", [(False, False), (True, False), (False, True), (True, True)], ids=str)
@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
@pytest.mark.parametrize("shape", SHAPES)
def test_reference_is_stock(shape, affine, frozen, drop_rate):
    case = make(SHAPES[shape], torch.float64, affine=affine, frozen=frozen, drop_rate=drop_rate)
    total = SHAPES[shape].total - SHAPES[shape].behind
    learnt = [i for i, t in enumerate(case.gradients) if t is not None]
    leaves = [case.x[:, : case.block.channels].clone().requires_grad_()]
    leaves += [case.block.tensors[i].clone().requires_grad_() for i in learnt]
    tensors = list(case.block.tensors)
    for i, leaf in zip(learnt, leaves[1:], strict=True):
        tensors[i] = leaf
    mask = lambda y, layer: reference.dropout_mask(y.detach(), layer.drop_rate, layer.seed)  # noqa: E731
    padded = F.pad(leaves[0], (0, 0, 0, 0, 0, case.x.shape[1] - case.block.channels))
    exact = stock(padded, case.block._replace(tensors=tensors), mask)
    gradients = torch.autograd.grad(exact, leaves, case.g[:, :total])

    case.stats[:, : case.block.channels] = reference.stats_of(case.x[:, : case.block.channels])
    case.correction.zero_()
    reference.block_fwd(*case.forward())
    reference.block_bwd(*case.backward())
    here = slice(0, case.block.channels)
    dx = reference.corrected(case.g[:, here], case.x[:, here], case.stats[0, here], case.correction[:, here])
    torch.testing.assert_close(case.x[:, :total], exact)
    torch.testing.assert_close(case.stats[:, :total], reference.stats_of(exact))
    torch.testing.assert_close(dx, gradients[0])
    for i, gradient in zip(learnt, gradients[1:], strict=True):
        torch.testing.assert_close(case.gradients[i], gradient)


@pytest.mark.parametrize("shape", SHAPES)
def test_halves_apart_and_recomputed_z_change_nothing(shape):
    case = make(SHAPES[shape], torch.float64)
    whole, apart, recomputed = case.copy(), case.copy(), case.copy()
    reference.block_fwd(*whole.forward())
    reference.block_fwd(*recomputed.without("z").forward())
    for i in range(case.layers):
        for half in (Half.FIRST, Half.SECOND):
            reference.block_fwd(*apart.forward(i, i + 1, half))
    reference.block_bwd(*whole.without("u").backward())
    reference.block_bwd(*recomputed.without("u", "z").backward())
    for i in reversed(range(case.layers)):
        width = SHAPES[shape].widths[i]
        apart.u = torch.empty(2, width, 5, 4, dtype=torch.float64)
        for half in (Half.SECOND, Half.FIRST):
            reference.block_bwd(*apart.backward(i, i + 1, half))
    expected = dict(whole.parts())
    for name, part in [*apart.parts(), *recomputed.parts()]:
        assert name in "zu" or torch.equal(part, expected[name]), name
