"""A dense block, half a layer at a time."""

import torch
from torch import Tensor

from ...contract import Block, Half, NormGradient
from ...contract.block import TENSORS, Layer
from ._common import Affine, Images, NormSums, conv, conv_dgrad, conv_wgrad, part, pieces, relu_bwd_, rows
from .batch_norm import corrected, row_stats
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
    images, x, first, second = Images.of(x), rows(x), halves & Half.FIRST > 0, halves & Half.SECOND > 0
    for layer in _layers(block, x)[begin:end]:
        features, norm1 = x[:, : layer.begin], Affine(layer.norm1.on(stats[:, : layer.begin]))
        if layer.weight2 is None:
            if second:
                _new_channels(norm1.relu(features), layer.weight1, layer, x, stats, tracked, images, dilation)
            continue
        of_z = stats[:, layer.of_z]
        if z is None and not layer.norm2.uses_batch:
            norm2 = Affine(layer.norm2.on(of_z))
            activated = _folded(features, norm1, layer.weight1, norm2, images)
        else:
            bottleneck = None if z is None else _rows(z, layer)
            if first:
                bottleneck = _bottleneck(features, norm1, layer.weight1, images, bottleneck)
                if layer.norm2.uses_batch:
                    row_stats(bottleneck, of_z)
            if not second:
                continue
            assert bottleneck is not None
            activated = Affine(layer.norm2.on(of_z)).relu(bottleneck)
        _new_channels(activated, layer.weight2, layer, x, stats, tracked, images, dilation)


def _folded(features: Tensor, bn1: Affine, weight: Tensor, bn2: Affine, images: Images) -> Tensor:
    """relu(bn2(z)) with norm2, on running statistics, multiplied into the weight of the convolution that makes z."""
    folded = (weight * bn2.scale.view(-1, *(weight.dim() - 1) * (1,))).to(features.dtype)
    return conv(bn1.relu(features), folded, images, bn2.shift.to(features.dtype)).relu_()


def _bottleneck(features: Tensor, bn1: Affine, weight: Tensor, images: Images, out: Tensor | None) -> Tensor:
    if out is None:
        out = features.new_empty((features.shape[0], weight.shape[0]))
    if images.in_products:
        transposed = weight.flatten(1).t()
        for i in pieces(features, images.size):
            torch.mm(bn1.relu(part(features, i)), transposed, out=part(out, i))
        return out
    return out.copy_(conv(bn1.relu(features), weight, images))


def _new_channels(
    activated: Tensor,
    weight: Tensor,
    layer: Layer,
    x: Tensor,
    stats: Tensor,
    tracked: bool,
    images: Images,
    dilation: int,
) -> None:
    """What a layer adds to the buffer x, and its statistics if `tracked`."""
    new = conv(activated, weight, images, dilation=dilation)
    if layer.seed is not None:
        new.mul_(dropout_mask(new, layer.drop_rate, layer.seed))
    x[:, layer.begin : layer.end].copy_(new)
    if tracked:
        row_stats(new, stats[:, layer.begin : layer.end])


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
    images, x, g, first, second = Images.of(x), rows(x), rows(g), halves & Half.FIRST > 0, halves & Half.SECOND > 0
    u = None if u is None else rows(u)
    for layer in reversed(_layers(block, x)[begin:end]):
        features, bn1 = x[:, : layer.begin], Affine(layer.norm1.on(stats[:, : layer.begin]))
        of_norm1 = _norm_gradient(layer, 1, correction[:, : layer.begin], gradients)
        dweight1, into = _gradient(layer, "weight1", gradients), g[:, : layer.begin]
        if layer.weight2 is None:
            if second:
                d = _at_convolution(g, correction, x, stats, layer)
                _convolution_bwd(d, features, bn1, layer.weight1, dweight1, into, of_norm1, images, dilation)
            continue
        bottleneck = _bottleneck(features, bn1, layer.weight1, images, None) if z is None else _rows(z, layer)
        bn2, of_z = Affine(layer.norm2.on(stats[:, layer.of_z])), correction[:, layer.of_z]
        if second:
            d = _at_convolution(g, correction, x, stats, layer)
            dweight2, of_norm2 = _gradient(layer, "weight2", gradients), _norm_gradient(layer, 2, of_z, gradients)
            found = _convolution_bwd(d, bottleneck, bn2, layer.weight2, dweight2, None, of_norm2, images, dilation)
            assert found is not None
            u = found if u is None else u.copy_(found)
            del d, found
        if first:
            assert u is not None
            d = _at_bottleneck(u, bottleneck, bn2, of_z)
            u = None
            del bottleneck
            _convolution_bwd(d, features, bn1, layer.weight1, dweight1, into, of_norm1, images)


def _convolution_bwd(
    d: Tensor,
    x: Tensor,
    bn: Affine,
    weight: Tensor,
    dweight: Tensor | None,
    dx: Tensor | None,
    dnorm: NormGradient,
    images: Images,
    dilation: int = 1,
) -> Tensor | None:
    """From d behind the convolution of relu(bn(x)), all gradients before it; returned is that at the norm's output, but
    of a product of matrices, which is made and used piece by piece."""
    parts = pieces(x, images.size)
    whole, of_weight, v = None, None, None
    if dweight is not None and not images.in_products:
        whole = bn.relu(x)
        dweight.copy_(conv_wgrad(d, whole, weight, images, dilation))
        if len(parts) > 1:
            whole = None  # beside v it would take more memory than piece by piece
    sums = NormSums(bn)
    for i in parts:
        of_x, of_d = part(x, i), part(d, i)
        activated = bn.relu(of_x) if whole is None else whole
        if dweight is not None and images.in_products:
            found = conv_wgrad(of_d, activated, weight, images, dilation)
            of_weight = found if of_weight is None else of_weight.add_(found)
        if images.in_products and weight.shape[-1] == 1:
            of_v = conv_dgrad(of_d, weight, images)
        else:
            v = conv_dgrad(d, weight, images, dilation) if v is None else v
            of_v = part(v, i)
        relu_bwd_(of_v, activated)
        sums.add(of_v, of_x, scratch=activated)
        if dx is not None:
            part(dx, i).addcmul_(of_v, bn.scale)
    if dweight is not None and of_weight is not None:
        dweight.copy_(of_weight)
    sums.write(dnorm, x.shape[0])
    return v


def _layers(block: Block, x: Tensor) -> list[Layer]:
    return list(block.layers(x.shape[1], x.shape[0]))


def _rows(z: Tensor, layer: Layer) -> Tensor:
    """The bottleneck [M, K] of a layer, in z."""
    return z[layer.z].view(-1, layer.width)


def _at_convolution(g: Tensor, correction: Tensor, x: Tensor, stats: Tensor, layer: Layer) -> Tensor:
    """The gradient of what a layer's last convolution made, dense."""
    new = slice(layer.begin, layer.end)
    d = corrected(g[:, new], x[:, new], stats[0, new], correction[:, new]).to(x.dtype)
    if layer.seed is not None:
        d.mul_(dropout_mask(d, layer.drop_rate, layer.seed))
    return d


def _at_bottleneck(u: Tensor, z: Tensor, bn2: Affine, correction: Tensor) -> Tensor:
    """The gradient of what a layer's first convolution made, dense; u may be overwritten."""
    a, b = correction.unbind()
    constant, to = torch.addcmul(a, b, bn2.mean, value=-1).neg_(), u if u.dtype == bn2.mean.dtype else None
    return torch.addcmul(constant, u, bn2.scale, out=to).addcmul_(z, b, value=-1).to(z.dtype)


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
