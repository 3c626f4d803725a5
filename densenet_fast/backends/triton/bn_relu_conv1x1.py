"""Kernels of ops/bn_relu_conv1x1.py on rows: x [M, C], z [M, K], M = N*H*W, at any row stride.

BN-ReLU runs in the prologue of the product and never reaches memory. Products are written transposed, weight times
pixels: what was computed is then the second operand, which Triton keeps in shared memory (docs/internals/triton.md).
"""

import triton
import triton.language as tl
from torch import Tensor

from ...ops._operation import image, vector
from . import tiles
from ._common import NewEmpty, cdiv, load_norm, relu, row_offset, store_stats, workspace
from ._reduce import Gradients, finish_bwd, merge_stats
from .arguments import Arguments, Norm
from .launch import device_of, launch


@triton.jit
def bn_relu_conv1x1_fwd_kernel(
    x,  # [M, C]
    mean,  # [C]
    var,  # [C]
    gamma,  # [C] or None
    beta,  # [C] or None
    eps,
    weight,  # [K, C]
    z_mean,  # [K] or None: the norm behind the convolution, applied with its ReLU to what is stored
    z_var,  # [K] or None
    z_gamma,  # [K] or None
    z_beta,  # [K] or None
    z_eps,
    z,  # [M, K] written
    partial,  # [cdiv(M, BLOCK_M), 2, K] statistics of z written, or None
    count,  # [cdiv(M, BLOCK_M)] written, or None
    M,
    C,
    K,
    x_stride,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One program for BLOCK_M pixels and BLOCK_K outputs."""
    tile = tl.program_id(0)
    start = tile * BLOCK_M
    m = tl.arange(0, BLOCK_M)
    k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    n = tl.minimum(M - start, BLOCK_M)
    x_at = x + row_offset(start, x_stride) + m[:, None] * x_stride
    acc = tl.zeros((BLOCK_K, BLOCK_M), dtype=tl.float32)
    for first in range(0, C, BLOCK_C):
        c = first + tl.arange(0, BLOCK_C)
        exists = c < C
        values = tl.load(x_at + c[None, :], mask=(m < n)[:, None] & exists[None, :], other=0.0)  # [BLOCK_M, BLOCK_C]
        w = tl.load(weight + k[:, None] * C + c[None, :], mask=(k < K)[:, None] & exists[None, :], other=0.0)
        shift, scale, b = load_norm(mean, var, gamma, beta, eps, c, exists)
        activated = relu((values.to(tl.float32) - shift[None, :]) * scale[None, :] + b[None, :])
        acc = tl.dot(w, tl.trans(activated.to(w.dtype)), acc, input_precision=PRECISION)
    if z_mean is not None:
        shift, scale, b = load_norm(z_mean, z_var, z_gamma, z_beta, z_eps, k, k < K)
        acc = relu((acc - shift[:, None]) * scale[:, None] + b[:, None])
    rounded = acc.to(z.dtype.element_ty)
    valid = (k < K)[:, None] & (m < n)[None, :]
    tl.store(z + row_offset(start, K) + k[:, None] + m[None, :] * K, rounded, mask=valid)
    if partial is not None:
        store_stats(partial, count, tile, rounded.to(tl.float32), valid, n, k, k < K, K, tl.program_id(1) == 0, 1)


def bn_relu_conv1x1_fwd(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
    weight: Tensor,
    stats: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    check = Arguments("bn_relu_conv1x1_fwd", "x", x)
    norm = check.norm(mean, var, gamma, beta, check.C)
    weight = check.weight("weight", weight, None, check.C, 1)
    z = image(x, weight.shape[0], check.H, check.W)
    z_stats = vector(x, weight.shape[0] if stats else 0), vector(x, weight.shape[0] if stats else 0)
    conv1x1(check, x, norm, eps, weight, None, 0.0, z, z_stats if stats else None, Tensor.new_empty)
    return z, *z_stats


def conv1x1(
    check: Arguments,
    x: Tensor,
    norm: Norm,
    eps: float,
    weight: Tensor,
    z_norm: Norm | None,
    z_eps: float,
    z: Tensor,
    z_stats: tuple[Tensor, Tensor] | None,
    new_empty: NewEmpty,
) -> None:
    """z [M, K] dense, through `z_norm` and ReLU if one is given, and its statistics into `z_stats` if they are wanted.
    Arguments checked."""
    outputs = weight.shape[0]
    kind = tiles.kind_of(x)
    tile = tiles.choose("bn_relu_conv1x1_fwd", device_of(x), kind, outputs)
    tile = tile if check.in_words() else tile.unpipelined()
    blocks = cdiv(check.M, tile.m)
    partial, count = workspace(x, blocks * 2 * outputs, blocks, new_empty=new_empty) if z_stats else (None, None)
    of_z = z_norm or (None, None, None, None)
    launch(
        bn_relu_conv1x1_fwd_kernel,
        (blocks, cdiv(outputs, tile.n)),
        **tile.options,
        x=x,
        mean=norm[0],
        var=norm[1],
        gamma=norm[2],
        beta=norm[3],
        eps=eps,
        weight=weight,
        z_mean=of_z[0],
        z_var=of_z[1],
        z_gamma=of_z[2],
        z_beta=of_z[3],
        z_eps=z_eps,
        z=z,
        partial=partial,
        count=count,
        M=check.M,
        C=check.C,
        K=outputs,
        x_stride=check.stride,
        **tile.blocks(tiles.PRECISION[kind]),
    )
    if z_stats and partial is not None and count is not None:
        merge_stats(partial, count, blocks, *z_stats, check.M)


@triton.jit
def load_correction(
    z_mean,  # [K]
    z_var,  # [K]
    z_gamma,  # [K] or None
    z_eps,
    z_a,  # [K]
    z_b,  # [K]
    k,  # [BLOCK_K]
    K,
):
    """mean, z_gamma * z_rstd, a, b of outputs k."""
    shift, scale, _ = load_norm(z_mean, z_var, z_gamma, None, z_eps, k, k < K)
    return shift, scale, tl.load(z_a + k, mask=k < K, other=0.0), tl.load(z_b + k, mask=k < K, other=0.0)


@triton.jit
def load_dz(
    u,  # [M, K]
    z,  # [M, K]
    start,
    exists,  # [BLOCK_M] which pixels
    k,  # [BLOCK_K]
    K,
    u_stride,
    z_stride,
    shift,  # [BLOCK_K]
    scale,  # [BLOCK_K]
    a,  # [BLOCK_K]
    b,  # [BLOCK_K]
    BLOCK_M: tl.constexpr,
):
    """The gradient at z, scale * u - a - b * (z - mean), [BLOCK_M, BLOCK_K] in u's dtype."""
    m = tl.arange(0, BLOCK_M)
    mask = exists[:, None] & (k < K)[None, :]
    u_tile = tl.load(u + row_offset(start, u_stride) + m[:, None] * u_stride + k[None, :], mask=mask, other=0.0)
    z_tile = tl.load(z + row_offset(start, z_stride) + m[:, None] * z_stride + k[None, :], mask=mask, other=0.0)
    centred = z_tile.to(tl.float32) - shift[None, :]
    dz = scale[None, :] * u_tile.to(tl.float32) - a[None, :] - b[None, :] * centred
    return tl.where(mask, dz, 0.0).to(u.dtype.element_ty)


@triton.jit
def add_to_dx(
    v,  # [BLOCK_C, BLOCK_M] gradient behind the ReLU
    dx_at,  # [BLOCK_C, BLOCK_M] addresses, added to
    x_tile,  # [BLOCK_C, BLOCK_M]
    mask,  # [BLOCK_C, BLOCK_M]
    shift,  # [BLOCK_C]
    scale,  # [BLOCK_C]
    offset,  # [BLOCK_C]
):
    """dx += scale * v before the ReLU; relu(bn(x)), and the sums of v and v * (x - mean)."""
    g = tl.load(dx_at, mask=mask, other=0.0)
    centred = x_tile.to(tl.float32) - shift[:, None]
    activated = relu(centred * scale[:, None] + offset[:, None]).to(g.dtype)
    v = tl.where(activated <= 0.0, 0.0, v)
    tl.store(dx_at, (g.to(tl.float32) + scale[:, None] * v).to(g.dtype), mask=mask)
    return activated, tl.sum(v, 1), tl.sum(v * centred, 1)


@triton.jit
def bn_relu_conv1x1_bwd_kernel(
    u,  # [M, K] gradient behind the norm of z
    z,  # [M, K]
    z_mean,  # [K]
    z_var,  # [K]
    z_gamma,  # [K] or None
    z_eps,
    z_a,  # [K]
    z_b,  # [K]
    x,  # [M, C]
    mean,  # [C]
    var,  # [C]
    gamma,  # [C] or None
    beta,  # [C] or None
    eps,
    weight,  # [K, C]
    dx,  # [M, C] added to
    sums,  # [splits, 2, C] written
    dweight,  # [splits, K, C] written
    splits,
    M,
    C,
    K,
    u_stride,
    z_stride,
    x_stride,
    dx_stride,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Both gradients in one pass: a program has BLOCK_C channels and every splits-th tile of BLOCK_M pixels, and keeps
    its slabs of the weight and of the weight's gradient in registers. All outputs fit in BLOCK_K."""
    split = tl.program_id(1)
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    k = tl.arange(0, BLOCK_K)
    m = tl.arange(0, BLOCK_M)
    of_w = (c < C)[:, None] & (k < K)[None, :]
    w = tl.load(weight + k[None, :] * C + c[:, None], mask=of_w, other=0.0)  # [BLOCK_C, BLOCK_K]
    shift, scale, offset = load_norm(mean, var, gamma, beta, eps, c, c < C)
    z_shift, z_scale, a, b = load_correction(z_mean, z_var, z_gamma, z_eps, z_a, z_b, k, K)
    dw = tl.zeros((BLOCK_C, BLOCK_K), dtype=tl.float32)
    sum_v = tl.zeros((BLOCK_C,), dtype=tl.float32)
    sum_vx = tl.zeros((BLOCK_C,), dtype=tl.float32)
    for start in range(split * BLOCK_M, M, splits * BLOCK_M):
        exists = m < M - start
        dz = load_dz(u, z, start, exists, k, K, u_stride, z_stride, z_shift, z_scale, a, b, BLOCK_M)
        mask = (c < C)[:, None] & exists[None, :]
        x_tile = tl.load(x + row_offset(start, x_stride) + m[None, :] * x_stride + c[:, None], mask=mask, other=0.0)
        dx_at = dx + row_offset(start, dx_stride) + m[None, :] * dx_stride + c[:, None]
        v = tl.dot(w, tl.trans(dz), input_precision=PRECISION)  # [BLOCK_C, BLOCK_M]
        activated, of_v, of_vx = add_to_dx(v, dx_at, x_tile, mask, shift, scale, offset)
        sum_v += of_v
        sum_vx += of_vx
        dw = tl.dot(activated, dz, dw, input_precision=PRECISION)
    sums_at = sums + split * 2 * C + c
    tl.store(sums_at, sum_v, mask=c < C)
    tl.store(sums_at + C, sum_vx, mask=c < C)
    tl.store(dweight + row_offset(split, K * C) + k[None, :] * C + c[:, None], dw, mask=of_w)


@triton.jit
def bn_relu_conv1x1_grads_kernel(
    u,  # [M, K] gradient behind the norm of z
    z,  # [M, K]
    z_mean,  # [K]
    z_var,  # [K]
    z_gamma,  # [K] or None
    z_eps,
    z_a,  # [K]
    z_b,  # [K]
    x,  # [M, C]
    mean,  # [C]
    var,  # [C]
    gamma,  # [C] or None
    beta,  # [C] or None
    eps,
    weight,  # [K, C]
    dx,  # [M, C] added to
    sums,  # [cdiv(M, BLOCK_M), 2, C] written
    dweight,  # [splits, K, C] written, or None
    splits,  # 0 without dweight
    M,
    C,
    K,
    u_stride,
    z_stride,
    x_stride,
    dx_stride,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Each gradient by programs of its own, BLOCK_C channels each: first, taking longest, the weight's, for BLOCK_K
    outputs and every splits-th tile of BLOCK_M pixels; then the input's, for one tile and all outputs."""
    slabs = tl.cdiv(C, BLOCK_C)
    outputs = tl.cdiv(K, BLOCK_K)
    c = tl.program_id(0) % slabs * BLOCK_C + tl.arange(0, BLOCK_C)
    part = tl.program_id(0) // slabs
    m = tl.arange(0, BLOCK_M)
    shift, scale, offset = load_norm(mean, var, gamma, beta, eps, c, c < C)
    if part < outputs * splits:
        if dweight is not None:
            split = part // outputs
            k = part % outputs * BLOCK_K + tl.arange(0, BLOCK_K)
            z_shift, z_scale, a, b = load_correction(z_mean, z_var, z_gamma, z_eps, z_a, z_b, k, K)
            dw = tl.zeros((BLOCK_K, BLOCK_C), dtype=tl.float32)
            for start in range(split * BLOCK_M, M, splits * BLOCK_M):
                exists = m < M - start
                dz = load_dz(u, z, start, exists, k, K, u_stride, z_stride, z_shift, z_scale, a, b, BLOCK_M)
                x_at = x + row_offset(start, x_stride) + m[:, None] * x_stride + c[None, :]
                values = tl.load(x_at, mask=exists[:, None] & (c < C)[None, :], other=0.0)  # [BLOCK_M, BLOCK_C]
                activated = relu((values.to(tl.float32) - shift[None, :]) * scale[None, :] + offset[None, :])
                dw = tl.dot(tl.trans(dz), activated.to(dz.dtype), dw, input_precision=PRECISION)
            dw_at = dweight + row_offset(split, K * C) + k[:, None] * C + c[None, :]
            tl.store(dw_at, dw, mask=(k < K)[:, None] & (c < C)[None, :])
    else:
        tile = part - outputs * splits
        first = tile * BLOCK_M
        exists = m < M - first
        v = tl.zeros((BLOCK_C, BLOCK_M), dtype=tl.float32)
        for i in range(outputs):
            k = i * BLOCK_K + tl.arange(0, BLOCK_K)
            w = tl.load(weight + k[None, :] * C + c[:, None], mask=(c < C)[:, None] & (k < K)[None, :], other=0.0)
            z_shift, z_scale, a, b = load_correction(z_mean, z_var, z_gamma, z_eps, z_a, z_b, k, K)
            dz = load_dz(u, z, first, exists, k, K, u_stride, z_stride, z_shift, z_scale, a, b, BLOCK_M)
            v = tl.dot(w, tl.trans(dz), v, input_precision=PRECISION)
        mask = (c < C)[:, None] & exists[None, :]
        x_tile = tl.load(x + row_offset(first, x_stride) + m[None, :] * x_stride + c[:, None], mask=mask, other=0.0)
        dx_at = dx + row_offset(first, dx_stride) + m[None, :] * dx_stride + c[:, None]
        _, sum_v, sum_vx = add_to_dx(v, dx_at, x_tile, mask, shift, scale, offset)
        sums_at = sums + row_offset(tile, 2 * C) + c
        tl.store(sums_at, sum_v, mask=c < C)
        tl.store(sums_at + C, sum_vx, mask=c < C)


def bn_relu_conv1x1_bwd(
    u: Tensor,
    z: Tensor,
    z_mean: Tensor,
    z_var: Tensor,
    z_gamma: Tensor | None,
    z_eps: float,
    z_a: Tensor,
    z_b: Tensor,
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
    weight: Tensor,
    batch_stats: bool,
    dx: Tensor,
    a: Tensor,
    b: Tensor,
    wgrad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    check = Arguments("bn_relu_conv1x1_bwd", "x", x)
    norm = check.norm(mean, var, gamma, beta, check.C)
    weight = check.weight("weight", weight, None, check.C, 1)
    z_norm = check.norm(z_mean, z_var, z_gamma, None, weight.shape[0], "z_")
    z_a, z_b = check.vector("z_a", z_a, weight.shape[0]), check.vector("z_b", z_b, weight.shape[0])
    a, b = check.vector("a", a, check.C, written=True), check.vector("b", b, check.C, written=True)
    into = Gradients.new(a, b, weight, wgrad)
    conv1x1_bwd(check, u, z, z_norm, z_eps, z_a, z_b, x, norm, eps, weight, batch_stats, dx, into, Tensor.new_empty)
    return into.results


def conv1x1_bwd(
    check: Arguments,
    u: Tensor,
    z: Tensor,
    z_norm: Norm,
    z_eps: float,
    z_a: Tensor,
    z_b: Tensor,
    x: Tensor,
    norm: Norm,
    eps: float,
    weight: Tensor,
    batch_stats: bool,
    dx: Tensor,
    into: Gradients,
    new_empty: NewEmpty,
) -> None:
    """Vectors and weight checked."""
    outputs, wgrad = weight.shape[0], into.dweight.numel() > 0
    u_stride, z_stride = check.image("u", u, outputs), check.image("z", z, outputs)
    dx_stride = check.image("dx", dx, check.C, written=True)
    device, kind = device_of(x), tiles.kind_of(x)
    in_words = check.in_words(u_stride, z_stride, dx_stride, outputs)
    both = tiles.find("bn_relu_conv1x1_bwd", device, kind, outputs) if wgrad and in_words else None
    if both and outputs > 64 and check.C % 8:  # rows of the weight off 16 bytes: their addresses take the registers
        both = both._replace(num_stages=1)
    tile = both or tiles.choose("bn_relu_conv1x1_grads", device, kind, outputs)
    tile = tile if in_words else tile.unpipelined()
    slabs, of_k = cdiv(check.C, tile.k), cdiv(outputs, tile.n)
    # Partial gradients take at most 3/20 of the rows' traffic, or x's where half of the machine would be idle.
    row = (2 * outputs + 3 * check.C) * x.element_size()
    half = min(device.processors // (2 * slabs * of_k), check.M * x.element_size() // (4 * outputs))
    most = max(3 * check.M * row // (20 * 4 * outputs * check.C), half)
    splits = tiles.splits(device, slabs * of_k, check.M, tile.m, most) if wgrad else 0
    rows = splits if both else cdiv(check.M, tile.m)
    sums, partial = workspace(x, rows * 2 * check.C, splits * weight.numel(), new_empty=new_empty)
    launch(
        bn_relu_conv1x1_bwd_kernel if both else bn_relu_conv1x1_grads_kernel,
        (slabs, splits) if both else (slabs * (of_k * splits + rows),),
        **tile.options,
        u=u,
        z=z,
        z_mean=z_norm[0],
        z_var=z_norm[1],
        z_gamma=z_norm[2],
        z_eps=z_eps,
        z_a=z_a,
        z_b=z_b,
        x=x,
        mean=norm[0],
        var=norm[1],
        gamma=norm[2],
        beta=norm[3],
        eps=eps,
        weight=weight,
        dx=dx,
        sums=sums,
        dweight=partial if wgrad else None,
        splits=splits,
        M=check.M,
        C=check.C,
        K=outputs,
        u_stride=u_stride,
        z_stride=z_stride,
        x_stride=check.stride,
        dx_stride=dx_stride,
        **tile.blocks(tiles.PRECISION[kind]),
    )
    finish_bwd(sums, rows, partial, splits, norm[1], norm[2], eps, batch_stats, check.M, into)
