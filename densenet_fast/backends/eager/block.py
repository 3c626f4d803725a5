"""A dense block, half a layer at a time."""

from torch import Tensor

from ...contract import Block, Half, Norm, NormGradient
from ...contract.block import TENSORS, Layer
from ._common import bn_affine, bn_relu, bn_relu_bwd, bn_scale, conv, conv_dgrad, conv_wgrad, image, pixels, rows
from .batch_norm import channel_stats, corrected_
from .dropout import dropout_mask


def block_fwd(
    x: Tensor, stats: Tensor, z: Tensor | None, block: Block, tracked: bool, begin: int, end: int, halves: int
) -> None:
    for layer in _layers(block, x)[begin:end]:
        features, norm1 = x[:, : layer.begin], layer.norm1.on(stats[:, : layer.begin])
        kept = None if z is None else _image(z, layer, x)
        if layer.weight2 is None:
            activated, weight = bn_relu(features, norm1), layer.weight1
        elif kept is None and not layer.norm2.uses_batch:
            activated, weight = _folded(features, norm1, layer), layer.weight2
        else:
            if halves & Half.FIRST:
                bottleneck = conv(bn_relu(features, norm1), layer.weight1)
                if layer.norm2.uses_batch:
                    channel_stats(bottleneck, stats[:, layer.of_z])
                kept = bottleneck if kept is None else kept.copy_(bottleneck)
            if not halves & Half.SECOND:
                continue
            activated, weight = bn_relu(kept, layer.norm2.on(stats[:, layer.of_z])), layer.weight2
        new = conv(activated, weight)
        if layer.seed is not None:
            rows(new).mul_(dropout_mask(rows(new), layer.drop_rate, layer.seed))
        x[:, layer.begin : layer.end].copy_(new)
        if tracked:
            channel_stats(new, stats[:, layer.begin : layer.end])


def _folded(features: Tensor, norm1: Norm, layer: Layer) -> Tensor:
    """relu(bn2(z)) with norm2, on running statistics, multiplied into the weight of the convolution that makes z."""
    scale, shift = bn_affine(layer.norm2)
    weight = (layer.weight1 * scale.view(-1, 1, 1, 1)).to(features.dtype)
    return conv(bn_relu(features, norm1), weight, shift.to(features.dtype)).relu_()


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
) -> None:
    for layer in reversed(_layers(block, x)[begin:end]):
        before = slice(layer.begin)
        norm1, of_norm1 = layer.norm1.on(stats[:, before]), _norm_gradient(layer, 1, correction[:, before], gradients)
        dweight1, dweight2 = (_gradient(layer, name, gradients) for name in ("weight1", "weight2"))
        features, into = x[:, before], g[:, before]
        if layer.weight2 is None:
            if halves & Half.SECOND:
                d = _at_convolution(g, correction, x, stats, layer)
                if dweight1 is not None:
                    dweight1.copy_(conv_wgrad(d, bn_relu(features, norm1), layer.weight1))
                bn_relu_bwd(conv_dgrad(d, layer.weight1), features, norm1, into, of_norm1)
            continue

        bottleneck = conv(bn_relu(features, norm1), layer.weight1) if z is None else _image(z, layer, x)
        norm2, of_z = layer.norm2.on(stats[:, layer.of_z]), correction[:, layer.of_z]
        if halves & Half.SECOND:
            d = _at_convolution(g, correction, x, stats, layer)
            if dweight2 is not None:
                dweight2.copy_(conv_wgrad(d, bn_relu(bottleneck, norm2), layer.weight2))
            found = conv_dgrad(d, layer.weight2)
            bn_relu_bwd(found, bottleneck, norm2, None, _norm_gradient(layer, 2, of_z, gradients))
            u = found if u is None else u.copy_(found)
        if halves & Half.FIRST:
            scale = bn_scale(norm2)
            scaled = rows(u).mul_(scale) if u.dtype == scale.dtype else rows(u) * scale
            dz = image(corrected_(scaled, bottleneck, norm2.mean, of_z).to(x.dtype), like=x)
            u = None
            if dweight1 is not None:
                dweight1.copy_(conv_wgrad(dz, bn_relu(features, norm1), layer.weight1))
            bn_relu_bwd(conv_dgrad(dz, layer.weight1), features, norm1, into, of_norm1)


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


def _gradient(layer: Layer, name: str, gradients: list[Tensor | None]) -> Tensor | None:
    return gradients[len(TENSORS) * layer.index + TENSORS.index(name)]


def _norm_gradient(layer: Layer, number: int, correction: Tensor, gradients: list[Tensor | None]) -> NormGradient:
    """Where the gradient of norm1 or norm2 goes; to nowhere what is not wanted."""
    norm = layer.norm1 if number == 1 else layer.norm2
    dgamma, dbeta = (_gradient(layer, f"{name}{number}", gradients) for name in ("gamma", "beta"))
    nowhere = correction.new_empty(correction.shape[1])
    return NormGradient(
        nowhere if dgamma is None else dgamma,
        nowhere if dbeta is None else dbeta,
        correction if norm.uses_batch else None,
    )
