"""Kernels of ops/bn_relu_conv1x1.py on rows: x [M, C], z [M, K], M = N*H*W, at any row stride.

BN-ReLU runs in the prologue of the product and never reaches memory. Products are written transposed, weight times
pixels: what was computed is then the second operand, which Triton keeps in shared memory (docs/design.md, "The triton
backend").
"""

import triton
import triton.language as tl
from torch import Tensor

from ...ops._operation import image, vector
from . import tiles
from ._common import block_of, load_norm, relu, row_offset, store_stats, workspace
from ._reduce import finish_bwd, merge_stats
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
    return conv1x1(check, x, norm, eps, weight, None, 0.0, stats)


def conv1x1(
    check: Arguments,
    x: Tensor,
    norm: Norm,
    eps: float,
    weight: Tensor,
    z_norm: Norm | None,
    z_eps: float,
    stats: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """z, through `z_norm` and ReLU if one is given, and its statistics if wanted. Arguments checked."""
    outputs = weight.shape[0]
    z = image(x, outputs, check.H, check.W)
    z_mean, z_var = vector(x, outputs if stats else 0), vector(x, outputs if stats else 0)
    kind = tiles.kind_of(x)
    tile = tiles.choose("bn_relu_conv1x1_fwd", device_of(x), kind, outputs)
    blocks = triton.cdiv(check.M, tile.m)
    partial, count = workspace(x, blocks * 2 * outputs, blocks) if stats else (None, None)
    of_z = z_norm or (None, None, None, None)
    launch(
        bn_relu_conv1x1_fwd_kernel,
        (blocks, triton.cdiv(outputs, tile.n)),
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
        PRECISION=tiles.PRECISION[kind],
        BLOCK_M=tile.m,
        BLOCK_K=tile.n,
        BLOCK_C=tile.k,
    )
    if partial is not None and count is not None:
        merge_stats(partial, count, blocks, z_mean, z_var, check.M)
    return z, z_mean, z_var


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
    dx,  # [M, C] added to, if DGRAD
    sums,  # [SPLITS, 2, C] written, if DGRAD
    dweight,  # [SPLITS, K, C] written, if WGRAD
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
    DGRAD: tl.constexpr,
    WGRAD: tl.constexpr,
):
    """One program for BLOCK_C channels and every SPLITS-th tile of BLOCK_M pixels: its slab of the weight and of the
    weight's gradient stay in registers. K fits in BLOCK_K."""
    split = tl.program_id(1)
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    k = tl.arange(0, BLOCK_K)
    m = tl.arange(0, BLOCK_M)
    of_c = c < C
    of_k = k < K
    z_shift, z_scale, _ = load_norm(z_mean, z_var, z_gamma, None, z_eps, k, of_k)
    z_offset = tl.load(z_a + k, mask=of_k, other=0.0)
    z_slope = tl.load(z_b + k, mask=of_k, other=0.0)
    shift, scale, offset = load_norm(mean, var, gamma, beta, eps, c, of_c)
    w = tl.load(
        weight + k[None, :] * C + c[:, None], mask=of_c[:, None] & of_k[None, :], other=0.0
    )  # [BLOCK_C, BLOCK_K]
    dw = tl.zeros((BLOCK_C, BLOCK_K), dtype=tl.float32)
    sum_v = tl.zeros((BLOCK_C,), dtype=tl.float32)
    sum_vx = tl.zeros((BLOCK_C,), dtype=tl.float32)
    for start in range(split * BLOCK_M, M, tl.num_programs(1) * BLOCK_M):
        exists = m < M - start
        of_z = exists[:, None] & of_k[None, :]
        of_x = of_c[:, None] & exists[None, :]
        u_tile = tl.load(u + row_offset(start, u_stride) + m[:, None] * u_stride + k[None, :], mask=of_z, other=0.0)
        z_tile = tl.load(z + row_offset(start, z_stride) + m[:, None] * z_stride + k[None, :], mask=of_z, other=0.0)
        x_tile = tl.load(x + row_offset(start, x_stride) + m[None, :] * x_stride + c[:, None], mask=of_x, other=0.0)
        dz = z_scale[None, :] * u_tile.to(tl.float32) - z_offset[None, :]
        dz -= z_slope[None, :] * (z_tile.to(tl.float32) - z_shift[None, :])
        dz = tl.where(of_z, dz, 0.0).to(w.dtype)  # [BLOCK_M, BLOCK_K]
        centred = x_tile.to(tl.float32) - shift[:, None]
        activated = relu(centred * scale[:, None] + offset[:, None]).to(w.dtype)  # [BLOCK_C, BLOCK_M]
        if DGRAD:
            dx_at = dx + row_offset(start, dx_stride) + m[None, :] * dx_stride + c[:, None]
            g = tl.load(dx_at, mask=of_x, other=0.0)
            v = tl.dot(w, tl.trans(dz), input_precision=PRECISION)  # [BLOCK_C, BLOCK_M]
            v = tl.where(activated <= 0.0, 0.0, v)
            sum_v += tl.sum(v, 1)
            sum_vx += tl.sum(v * centred, 1)
            tl.store(dx_at, (g.to(tl.float32) + scale[:, None] * v).to(g.dtype), mask=of_x)
        if WGRAD:
            dw = tl.dot(activated, dz, dw, input_precision=PRECISION)
    if DGRAD:
        sums_at = sums + split * 2 * C + c
        tl.store(sums_at, sum_v, mask=of_c)
        tl.store(sums_at + C, sum_vx, mask=of_c)
    if WGRAD:
        dw_at = dweight + row_offset(split, K * C) + k[None, :] * C + c[:, None]
        tl.store(dw_at, dw, mask=of_c[:, None] & of_k[None, :])


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
    outputs = weight.shape[0]
    z_norm = check.norm(z_mean, z_var, z_gamma, None, outputs, "z_")
    u_stride, z_stride = check.image("u", u, outputs), check.image("z", z, outputs)
    dx_stride = check.image("dx", dx, check.C)
    z_a, z_b = check.vector("z_a", z_a, outputs), check.vector("z_b", z_b, outputs)
    a, b = check.vector("a", a, check.C, written=True), check.vector("b", b, check.C, written=True)

    device, kind = device_of(x), tiles.kind_of(x)
    tile = tiles.choose("bn_relu_conv1x1_bwd", device, kind, outputs)
    slabs = triton.cdiv(check.C, tile.k)
    splits = tiles.splits(device, slabs, check.M, tile.m, check.M * x.element_size() // (4 * outputs))
    sums, partial = workspace(x, splits * 2 * check.C, splits * weight.numel() if wgrad else 0)
    together = ((True, wgrad),)
    apart = ((True, False), (False, True))[: 1 + wgrad]
    for dgrad_part, wgrad_part in together if tiles.fuses(device, kind) else apart:
        launch(
            bn_relu_conv1x1_bwd_kernel,
            (slabs, splits),
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
            dweight=partial,
            M=check.M,
            C=check.C,
            K=outputs,
            u_stride=u_stride,
            z_stride=z_stride,
            x_stride=check.stride,
            dx_stride=dx_stride,
            PRECISION=tiles.PRECISION[kind],
            BLOCK_M=tile.m,
            BLOCK_K=block_of(outputs),
            BLOCK_C=tile.k,
            DGRAD=dgrad_part,
            WGRAD=wgrad_part,
        )
    dweight = weight.new_empty(weight.shape if wgrad else 0)
    dgamma, dbeta = finish_bwd(sums, splits, partial, splits, norm[1], gamma, eps, batch_stats, check.M, a, b, dweight)
    return dgamma, dbeta, dweight
