"""A dense block, half a layer at a time."""

import torch
from torch import Tensor

from ...contract import Block, Half, NormGradient
from ...contract.block import TENSORS, Layer
from ._common import Affine, bn_relu_bwd, conv, conv_dgrad, conv_wgrad, image, pieces, pixels, rows
from .batch_norm import channel_stats, corrected, correction_at_zero
from .dropout import dropout_mask


def block_fwd(
    x: Tensor,
    stats: Tensor,
    z: Tensor | None,
    block: Block,
    tracked: bool,
    begin: int,
    end: int,
    halves: int,
    dilation: int = 1,
) -> None:
    """dilation: of the last convolution of each layer."""
    for layer in _layers(block, x)[begin:end]:
        features, norm1 = x[:, : layer.begin], layer.norm1.on(stats[:, : layer.begin])
        norm2 = layer.norm2.on(stats[:, layer.of_z])
        if layer.weight2 is None:
            if halves & Half.SECOND:
                _new_channels(Affine(norm1).relu(features), layer.weight1, layer, x, stats, tracked, dilation)
        elif z is None and not layer.norm2.uses_batch:
            folded = _folded(features, Affine(norm1), layer.weight1, Affine(norm2))
            _new_channels(folded, layer.weight2, layer, x, stats, tracked, dilation)
        else:
            bottleneck = None if z is None else _image(z, layer, x)
            if halves & Half.FIRST:
                bottleneck = conv(Affine(norm1).relu(features), layer.weight1, out=bottleneck)
                if layer.norm2.uses_batch:
                    channel_stats(bottleneck, stats[:, layer.of_z])
            if halves & Half.SECOND:
                assert bottleneck is not None
                _new_channels(Affine(norm2).relu(bottleneck), layer.weight2, layer, x, stats, tracked, dilation)


def _folded(features: Tensor, bn1: Affine, weight: Tensor, bn2: Affine) -> Tensor:
    """relu(bn2(z)) with norm2, on running statistics, multiplied into the weight of the convolution that makes z."""
    folded = (weight * bn2.scale.view(-1, *(weight.dim() - 1) * (1,))).to(features.dtype)
    return conv(bn1.relu(features), folded, bn2.shift.to(features.dtype)).relu_()


def _new_channels(
    activated: Tensor, weight: Tensor, layer: Layer, x: Tensor, stats: Tensor, tracked: bool, dilation: int
) -> None:
    """What a layer adds to the buffer x, and its statistics if `tracked`."""
    new = conv(activated, weight, dilation=dilation)
    if layer.seed is not None:
        rows(new).mul_(dropout_mask(rows(new), layer.drop_rate, layer.seed))
    x[:, layer.begin : layer.end].copy_(new)
    if tracked:
        channel_stats(new, stats[:, layer.begin : layer.end])


def block_bwd(
    g: Tensor,
    correction: Tensor,
    x: Tensor,
    stats: Tensor,
    z: Tensor | None,
    block: Block,
    gradients: list[Tensor | None],
    u: Tensor | None,
    begin: int,
    end: int,
    halves: int,
    dilation: int = 1,
) -> None:
    for layer in reversed(_layers(block, x)[begin:end]):
        features, bn1 = x[:, : layer.begin], Affine(layer.norm1.on(stats[:, : layer.begin]))
        of_norm1 = _norm_gradient(layer, 1, correction[:, : layer.begin], gradients)
        dweight1, into = _gradient(layer, "weight1", gradients), g[:, : layer.begin]
        if layer.weight2 is None:
            if halves & Half.SECOND:
                d = _at_convolution(g, correction, x, stats, layer)
                _convolution_bwd(d, features, bn1, layer.weight1, dweight1, into, of_norm1, dilation)
            continue
        bottleneck = conv(bn1.relu(features), layer.weight1) if z is None else _image(z, layer, x)
        bn2, of_z = Affine(layer.norm2.on(stats[:, layer.of_z])), correction[:, layer.of_z]
        if halves & Half.SECOND:
            d = _at_convolution(g, correction, x, stats, layer)
            dweight2, of_norm2 = _gradient(layer, "weight2", gradients), _norm_gradient(layer, 2, of_z, gradients)
            found = _convolution_bwd(d, bottleneck, bn2, layer.weight2, dweight2, None, of_norm2, dilation)
            u = found if u is None else u.copy_(found)
            del d, found
        if halves & Half.FIRST:
            assert u is not None
            d = _at_bottleneck(u, bottleneck, bn2, of_z)
            u = None
            del bottleneck
            _convolution_bwd(d, features, bn1, layer.weight1, dweight1, into, of_norm1)


def _convolution_bwd(
    d: Tensor,
    x: Tensor,
    bn: Affine,
    weight: Tensor,
    dweight: Tensor | None,
    dx: Tensor | None,
    dnorm: NormGradient,
    dilation: int = 1,
) -> Tensor:
    """From d behind the convolution of relu(bn(x)), all gradients before it; returned is that at the norm's output."""
    activated = None
    if dweight is not None:
        activated = bn.relu(x)
        dweight.copy_(conv_wgrad(d, activated, weight, dilation))
        if len(pieces(x)) > 1:
            activated = None  # beside v it would take more memory than piece by piece
    v = conv_dgrad(d, weight, dilation)
    bn_relu_bwd(v, x, bn, dx, dnorm, activated)
    return v


def _layers(block: Block, x: Tensor) -> list[Layer]:
    return list(block.layers(x.shape[1], pixels(x)))


def _image(z: Tensor, layer: Layer, x: Tensor) -> Tensor:
    """The bottleneck [N, K, H, W] of a layer, in z."""
    return image(z[layer.z].view(-1, layer.width), like=x)


def _at_convolution(g: Tensor, correction: Tensor, x: Tensor, stats: Tensor, layer: Layer) -> Tensor:
    """The gradient of what a layer's last convolution made, dense."""
    new = slice(layer.begin, layer.end)
    d = image(corrected(rows(g[:, new]), x[:, new], stats[0, new], correction[:, new]).to(x.dtype), like=x)
    if layer.seed is not None:
        rows(d).mul_(dropout_mask(rows(d), layer.drop_rate, layer.seed))
    return d


def _at_bottleneck(u: Tensor, z: Tensor, bn2: Affine, correction: Tensor) -> Tensor:
    """The gradient of what a layer's first convolution made, dense; u may be overwritten."""
    constant, to = correction_at_zero(bn2.mean, correction).neg_(), rows(u) if u.dtype == bn2.mean.dtype else None
    d = torch.addcmul(constant, rows(u), bn2.scale, out=to).addcmul_(rows(z), correction[1], value=-1)
    return image(d.to(z.dtype), like=z)


def _gradient(layer: Layer, name: str, gradients: list[Tensor | None]) -> Tensor | None:
    return gradients[len(TENSORS) * layer.number + TENSORS.index(name)]


def _norm_gradient(layer: Layer, number: int, correction: Tensor, gradients: list[Tensor | None]) -> NormGradient:
    """Where the gradient of norm1 or norm2 goes; to nowhere what is not wanted."""
    norm = layer.norm1 if number == 1 else layer.norm2
    dgamma, dbeta = (_gradient(layer, f"{name}{number}", gradients) for name in ("gamma", "beta"))
    return NormGradient(
        correction.new_empty((correction.shape[1],)) if dgamma is None else dgamma,
        correction.new_empty((correction.shape[1],)) if dbeta is None else dbeta,
        correction if norm.uses_batch else None,
    )
