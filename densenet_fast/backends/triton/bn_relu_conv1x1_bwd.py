"""Both gradients of BN-ReLU and the 1x1 convolution, on rows as in bn_relu_conv1x1_fwd.py.

One kernel has both where its accumulators fit in registers, else each gradient has programs of its own, in one launch.
"""

import triton
import triton.language as tl
from torch import Tensor

from ...contract import Norm, NormGradient
from . import tiles
from ._common import bn_relu, cdiv, load_norm, relu, row_offset
from ._partial import Partial
from ._reduce import finish_bwd, finish_norm, sums_into
from .arguments import Arguments, Pair


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
    u_tile = tl.load(u + row_offset(start, u_stride) + (m[:, None] * u_stride + k[None, :]), mask=mask, other=0.0)
    z_tile = tl.load(z + row_offset(start, z_stride) + (m[:, None] * z_stride + k[None, :]), mask=mask, other=0.0)
    if z_tile.dtype == tl.float32:
        constant = -a[None, :] - b[None, :] * (z_tile - shift[None, :])
    else:  # as in `bn_relu`
        constant = (b * shift - a)[None, :] - b[None, :] * z_tile.to(tl.float32)
    dz = scale[None, :] * u_tile.to(tl.float32) + constant
    # Outputs that do not exist have 0 already, pixels have not. To select takes more instructions than to multiply.
    return (dz * exists.to(tl.float32)[:, None]).to(u.dtype.element_ty)


@triton.jit
def add_to_dx(
    v,  # [BLOCK_C, BLOCK_M] gradient behind the ReLU
    g,  # [BLOCK_C, BLOCK_M] what is at dx_at
    dx_at,  # [BLOCK_C, BLOCK_M] addresses, written
    x_tile,  # [BLOCK_C, BLOCK_M]
    mask,  # [BLOCK_C, BLOCK_M]
    shift,  # [BLOCK_C]
    scale,  # [BLOCK_C]
    offset,  # [BLOCK_C]
    TIED: tl.constexpr,  # whether v's layout decides that of relu(bn(x))
):
    """dx = g + scale * v before the ReLU; relu(bn(x)), and the sums of v and v * (x - mean)."""
    centred = x_tile.to(tl.float32) - shift[:, None]
    normed = centred * scale[:, None] + offset[:, None]
    activated = relu(normed)
    if TIED:
        # Never true, and gone from the machine code; but Triton now gives `activated` the layout of v, in which it is
        # an operand as it lies. In the layout of x it works it out twice, and takes it through shared memory.
        activated = tl.where(v > float("inf"), 0.0, activated)
    activated = activated.to(g.dtype)
    # Rounded, so that it agrees with `activated`, which sm_90 would keep in registers for this: it spills.
    v = tl.where(normed.to(g.dtype) <= 0.0, 0.0, v)
    sum_vx, sum_v = tl.sum(v * centred, 1), tl.sum(v, 1)  # ahead of the store, which takes less time
    tl.store(dx_at, (g.to(tl.float32) + scale[:, None] * v).to(g.dtype), mask=mask)
    return activated, sum_v, sum_vx


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
    into,  # what takes the sums (_reduce.py)
    arrivals,
    a,  # [C] added to, or None
    b,  # [C] added to, or None
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
    its slab of the weight's gradient in registers. All outputs fit in BLOCK_K."""
    split = tl.program_id(1)
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    k = tl.arange(0, BLOCK_K)
    m = tl.arange(0, BLOCK_M)
    of_w = (c < C)[:, None] & (k < K)[None, :]
    w = tl.load(weight + k[None, :] * C + c[:, None], mask=of_w, other=0.0)  # [BLOCK_C, BLOCK_K]
    shift, scale, offset = load_norm(mean, var, gamma, beta, eps, c, c < C)
    z_shift, z_scale, of_a, of_b = load_correction(z_mean, z_var, z_gamma, z_eps, z_a, z_b, k, K)
    dw = tl.zeros((BLOCK_C, BLOCK_K), dtype=tl.float32)
    sum_v = tl.zeros((BLOCK_C,), dtype=tl.float32)
    sum_vx = tl.zeros((BLOCK_C,), dtype=tl.float32)
    for start in range(split * BLOCK_M, M, splits * BLOCK_M):
        exists = m < M - start
        dz = load_dz(u, z, start, exists, k, K, u_stride, z_stride, z_shift, z_scale, of_a, of_b, BLOCK_M)
        mask = (c < C)[:, None] & exists[None, :]
        x_tile = tl.load(x + row_offset(start, x_stride) + (m[None, :] * x_stride + c[:, None]), mask=mask, other=0.0)
        dx_at = dx + row_offset(start, dx_stride) + (m[None, :] * dx_stride + c[:, None])
        g = tl.load(dx_at, mask=mask, other=0.0)  # ahead of the product, which hides a part of the wait
        v = tl.dot(w, tl.trans(dz), input_precision=PRECISION)  # [BLOCK_C, BLOCK_M]
        activated, of_v, of_vx = add_to_dx(v, g, dx_at, x_tile, mask, shift, scale, offset, BLOCK_K <= 128)
        sum_v += of_v
        sum_vx += of_vx
        dw = tl.dot(activated, dz, dw, input_precision=PRECISION)
    tl.store(dweight + row_offset(split, K * C) + k[None, :] * C + c[:, None], dw, mask=of_w)
    slab = tl.program_id(0)
    finish_norm(into, arrivals, a, b, split, splits, slab, sum_v, sum_vx, var, gamma, eps, c, c < C, C, M, BLOCK_C)


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
    into,  # what takes the sums (_reduce.py)
    arrivals,
    a,  # [C] added to, or None
    b,  # [C] added to, or None
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
            z_shift, z_scale, of_a, of_b = load_correction(z_mean, z_var, z_gamma, z_eps, z_a, z_b, k, K)
            dw = tl.zeros((BLOCK_K, BLOCK_C), dtype=tl.float32)
            for start in range(split * BLOCK_M, M, splits * BLOCK_M):
                exists = m < M - start
                dz = load_dz(u, z, start, exists, k, K, u_stride, z_stride, z_shift, z_scale, of_a, of_b, BLOCK_M)
                x_at = x + row_offset(start, x_stride) + m[:, None] * x_stride + c[None, :]
                values = tl.load(x_at, mask=exists[:, None] & (c < C)[None, :], other=0.0)  # [BLOCK_M, BLOCK_C]
                activated = bn_relu(values, shift, scale, offset).to(dz.dtype)
                dw = tl.dot(tl.trans(dz), activated, dw, input_precision=PRECISION)
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
            z_shift, z_scale, of_a, of_b = load_correction(z_mean, z_var, z_gamma, z_eps, z_a, z_b, k, K)
            dz = load_dz(u, z, first, exists, k, K, u_stride, z_stride, z_shift, z_scale, of_a, of_b, BLOCK_M)
            v = tl.dot(w, tl.trans(dz), v, input_precision=PRECISION)
        mask = (c < C)[:, None] & exists[None, :]
        x_tile = tl.load(x + row_offset(first, x_stride) + m[None, :] * x_stride + c[:, None], mask=mask, other=0.0)
        dx_at = dx + row_offset(first, dx_stride) + m[None, :] * dx_stride + c[:, None]
        g = tl.load(dx_at, mask=mask, other=0.0)
        _, sum_v, sum_vx = add_to_dx(v, g, dx_at, x_tile, mask, shift, scale, offset, False)
        rows, slab = tl.cdiv(M, BLOCK_M), tl.program_id(0) % slabs
        finish_norm(into, arrivals, a, b, tile, rows, slab, sum_v, sum_vx, var, gamma, eps, c, c < C, C, M, BLOCK_C)


# What a slab of 128 channels takes in one pass, and one of 64, where two programs share a multiprocessor: modelled for
# sm_90. Of few channels the last slab of 128 would be half empty.
WIDE, NARROW = 7, 4


def conv1x1_bwd(
    check: Arguments,
    u: Tensor,
    z: Tensor,
    z_norm: Norm,
    z_correction: Pair,
    norm: Norm,
    weight: Tensor,
    dx: Tensor,
    dnorm: NormGradient,
    dweight: Tensor | None,
) -> Partial | None:
    """dx is added to. Returns what is still to be done for the weight's gradient."""
    plan, outputs, x = check.plan, weight.shape[0], check.x
    u_stride, z_stride, dx_stride = (
        check.image(name, image, channels)
        for name, image, channels in (("u", u, outputs), ("z", z, outputs), ("g", dx, check.C))
    )
    in_words = check.in_words(u_stride, z_stride, dx_stride, outputs)
    wanted = dweight is not None
    both = tiles.find("bn_relu_conv1x1_bwd", plan.device, plan.kind, outputs) if wanted and in_words else None
    resident = 1
    if both and both.outputs == 128 and NARROW * cdiv(check.C, 64) < WIDE * cdiv(check.C, 128):
        both = tiles.find("bn_relu_conv1x1_bwd_narrow", plan.device, plan.kind, outputs) or both
        resident = 128 // both.channels
    if both and outputs > 64 and check.C % 8:  # rows of the weight off 16 bytes: their addresses take the registers
        both = both._replace(num_stages=1)
    tile = both or plan.tile("bn_relu_conv1x1_grads", outputs)
    tile = tile if in_words else tile.unpipelined()
    slabs, of_k = cdiv(check.C, tile.channels), cdiv(outputs, tile.outputs)
    splits = 0
    if dweight is not None:
        row = (2 * outputs + 3 * check.C) * x.itemsize
        most = tiles.partial(3 * check.M * row // (20 * 4 * dweight.numel()), dweight)  # of the rows' traffic 3/20
        splits = tiles.splits(plan.device, slabs * of_k, check.M, tile.pixels, most, resident)
    rows = splits if both else cdiv(check.M, tile.pixels)
    weights = plan.empty(splits, outputs, check.C) if wanted else None
    into = sums_into(plan, dnorm, rows, slabs, room=not both or tile.outputs <= 128)
    plan.launch(
        bn_relu_conv1x1_bwd_kernel if both else bn_relu_conv1x1_grads_kernel,
        (slabs, splits) if both else (slabs * (of_k * splits + rows),),
        **tile.options,
        u=u,
        z=z,
        z_mean=z_norm.mean,
        z_var=z_norm.var,
        z_gamma=z_norm.gamma,
        z_eps=z_norm.eps,
        z_a=z_correction[0],
        z_b=z_correction[1],
        x=x,
        **norm._asdict(),
        weight=weight,
        dx=dx,
        **into,
        dweight=weights,
        splits=splits,
        M=check.M,
        C=check.C,
        K=outputs,
        u_stride=u_stride,
        z_stride=z_stride,
        x_stride=check.stride,
        dx_stride=dx_stride,
        **tile.blocks(plan.precision),
    )
    finish_bwd(plan, norm, check.M, **into)
    return None if dweight is None or weights is None else Partial(weights, dweight)
