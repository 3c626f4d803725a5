"""A dense block, half a layer at a time."""

from torch import Tensor

from ...contract import Block, Half, Norm, NormGradient
from ...contract.block import TENSORS, Layer
from ._common import bn_affine, bn_relu, bn_relu_bwd, bn_scale, conv, conv_dgrad, conv_wgrad, image, pixels, rows
from .batch_norm import channel_stats, corrected_
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
                _new_channels(bn_relu(features, norm1), layer.weight1, layer, x, stats, tracked, dilation)
        elif z is None and not layer.norm2.uses_batch:
            folded = _folded(features, norm1, layer.weight1, norm2)
            _new_channels(folded, layer.weight2, layer, x, stats, tracked, dilation)
        else:
            if halves & Half.FIRST:
                bottleneck = conv(bn_relu(features, norm1), layer.weight1)
                if layer.norm2.uses_batch:
                    channel_stats(bottleneck, stats[:, layer.of_z])
                if z is not None:
                    bottleneck = _image(z, layer, x).copy_(bottleneck)
            elif z is not None:
                bottleneck = _image(z, layer, x)
            if halves & Half.SECOND:
                _new_channels(bn_relu(bottleneck, norm2), layer.weight2, layer, x, stats, tracked, dilation)


def _folded(features: Tensor, norm1: Norm, weight: Tensor, norm2: Norm) -> Tensor:
    """relu(bn2(z)) with norm2, on running statistics, multiplied into the weight of the convolution that makes z."""
    scale, shift = bn_affine(norm2)
    folded = (weight * scale.view(-1, 1, 1, 1)).to(features.dtype)
    return conv(bn_relu(features, norm1), folded, shift.to(features.dtype)).relu_()


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
        features, norm1 = x[:, : layer.begin], layer.norm1.on(stats[:, : layer.begin])
        of_norm1 = _norm_gradient(layer, 1, correction[:, : layer.begin], gradients)
        dweight1, into = _gradient(layer, "weight1", gradients), g[:, : layer.begin]
        if layer.weight2 is None:
            if halves & Half.SECOND:
                d = _at_convolution(g, correction, x, stats, layer)
                _convolution_bwd(d, features, norm1, layer.weight1, dweight1, into, of_norm1, dilation)
            continue
        bottleneck = conv(bn_relu(features, norm1), layer.weight1) if z is None else _image(z, layer, x)
        norm2, of_z = layer.norm2.on(stats[:, layer.of_z]), correction[:, layer.of_z]
        if halves & Half.SECOND:
            d = _at_convolution(g, correction, x, stats, layer)
            dweight2, of_norm2 = _gradient(layer, "weight2", gradients), _norm_gradient(layer, 2, of_z, gradients)
            found = _convolution_bwd(d, bottleneck, norm2, layer.weight2, dweight2, None, of_norm2, dilation)
            u = found if u is None else u.copy_(found)
            del d, found
        if halves & Half.FIRST:
            assert u is not None
            d = _at_bottleneck(u, bottleneck, norm2, of_z)
            u = None
            del bottleneck
            _convolution_bwd(d, features, norm1, layer.weight1, dweight1, into, of_norm1)


def _convolution_bwd(
    d: Tensor,
    x: Tensor,
    norm: Norm,
    weight: Tensor,
    dweight: Tensor | None,
    dx: Tensor | None,
    dnorm: NormGradient,
    dilation: int = 1,
) -> Tensor:
    """From d behind the convolution of relu(bn(x)), all gradients before it; returned is that at the norm's output."""
    if dweight is not None:
        dweight.copy_(conv_wgrad(d, bn_relu(x, norm), weight, dilation))
    v = conv_dgrad(d, weight, dilation)
    bn_relu_bwd(v, x, norm, dx, dnorm)
    return v


def _layers(block: Block, x: Tensor) -> list[Layer]:
    return list(block.layers(x.shape[1], pixels(x)))


def _image(z: Tensor, layer: Layer, x: Tensor) -> Tensor:
    """The bottleneck [N, K, H, W] of a layer, in z."""
    return image(z[layer.z].view(-1, layer.width), like=x)


def _at_convolution(g: Tensor, correction: Tensor, x: Tensor, stats: Tensor, layer: Layer) -> Tensor:
    """The gradient of what a layer's last convolution made, dense."""
    new = slice(layer.begin, layer.end)
    wide = rows(g[:, new]).to(stats.dtype, copy=True)
    d = image(corrected_(wide, x[:, new], stats[0, new], correction[:, new]).to(x.dtype), like=x)
    if layer.seed is not None:
        rows(d).mul_(dropout_mask(rows(d), layer.drop_rate, layer.seed))
    return d


def _at_bottleneck(u: Tensor, z: Tensor, norm2: Norm, correction: Tensor) -> Tensor:
    """The gradient of what a layer's first convolution made, dense; u may be overwritten."""
    scale = bn_scale(norm2)
    scaled = rows(u).mul_(scale) if u.dtype == scale.dtype else rows(u) * scale
    return image(corrected_(scaled, z, norm2.mean, correction).to(z.dtype), like=z)


def _gradient(layer: Layer, name: str, gradients: list[Tensor | None]) -> Tensor | None:
    return gradients[len(TENSORS) * layer.number + TENSORS.index(name)]


def _norm_gradient(layer: Layer, number: int, correction: Tensor, gradients: list[Tensor | None]) -> NormGradient:
    """Where the gradient of norm1 or norm2 goes; to nowhere what is not wanted."""
    norm = layer.norm1 if number == 1 else layer.norm2
    dgamma, dbeta = (_gradient(layer, f"{name}{number}", gradients) for name in ("gamma", "beta"))
    nowhere = correction.new_empty((correction.shape[1],))
    return NormGradient(
        nowhere if dgamma is None else dgamma,
        nowhere if dbeta is None else dbeta,
        correction if norm.uses_batch else None,
    )
