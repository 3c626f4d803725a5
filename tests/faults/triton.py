"""Faults in Triton's kernels, interpreted and as PTX."""

from . import Fault, contract

FOLDER = "densenet_fast/backends/triton"
MODES = contract("triton and freeze_every_second", "test_modes.py")
DROPOUT = contract("triton and stock_layers", "test_dropout.py")


def kernel(name: str, words: str = "") -> tuple[str, ...]:
    return (f"tests/triton/test_{name}.py", *(("-k", words) if words else ()))


FAULTS = [
    Fault(
        "merged variances lack that of the tiles' means",
        f"{FOLDER}/_reduce.py",
        "mask=mask, other=0.0) + n * deviation * deviation",
        "mask=mask, other=0.0)",
        kernel("operations", "stored_values"),
    ),
    Fault(
        "a tile's mean over all its places",
        f"{FOLDER}/_common.py",
        "tl.sum(tl.where(valid, z, 0.0), AXIS) / size",
        "tl.sum(tl.where(valid, z, 0.0), AXIS) / tl.sum(tl.zeros_like(z) + 1.0, AXIS)",
        kernel("operations", "stored_values"),
    ),
    Fault(
        "frozen norms corrected as if of the batch",
        f"{FOLDER}/_reduce.py",
        "        if BATCH_STATS:\n",
        "        if True:\n",
        MODES,
    ),
    Fault(
        "a correction that overwrites a",
        f"{FOLDER}/_reduce.py",
        "new_a = tl.load(a + c, mask=mask) + scale",
        "new_a = scale",
        MODES,
    ),
    Fault(
        "a correction by b with rstd once",
        f"{FOLDER}/_reduce.py",
        "+ scale * rstd * (sum_vx * rstd / count)",
        "+ scale * (sum_vx * rstd / count)",
        MODES,
    ),
    Fault(
        "the correction without a barrier",
        f"{FOLDER}/_reduce.py",
        "            tl.debug_barrier()  # every warp has loaded what one of them stores\n",
        "",
        kernel("ptx", "conv1x1_bwd and 37"),
    ),
    Fault(
        "partial weight gradients not all added",
        f"{FOLDER}/_reduce.py",
        "total = sum_rows(weights, S, size,",
        "total = sum_rows(weights, tl.maximum(S - 1, 1), size,",
        kernel("bn_relu_conv1x1"),
    ),
    Fault(
        "gamma left out",
        f"{FOLDER}/_common.py",
        "        scale *= tl.load(gamma + c, mask=mask, other=0.0)\n    offset",
        "        scale *= 1.0\n    offset",
        MODES,
    ),
    Fault(
        "a ReLU that swallows NaN",
        f"{FOLDER}/_common.py",
        "tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)",
        "tl.maximum(x, 0.0)",
        kernel("bn_relu_conv3x3", "bad_value"),
    ),
    Fault(
        "rows past the end counted in the statistics",
        f"{FOLDER}/bn_relu_conv1x1.py",
        "store_stats(partial, count, tile, rounded.to(tl.float32), valid, n, k,",
        "store_stats(partial, count, tile, rounded.to(tl.float32), valid, BLOCK_M + 0 * n, k,",
        kernel("operations", "stored_values and conv1x1"),
    ),
    Fault(
        "statistics of values that are not rounded",
        f"{FOLDER}/bn_relu_conv1x1.py",
        "store_stats(partial, count, tile, rounded.to(tl.float32), valid, n, k,",
        "store_stats(partial, count, tile, acc, valid, n, k,",
        kernel("operations", "stored_values and conv1x1"),
    ),
    Fault(
        "a z behind the block's end written",
        f"{FOLDER}/bn_relu_conv1x1.py",
        "    valid = (k < K)[:, None] & (m < n)[None, :]\n    tl.store(z",
        "    valid = (k < K)[:, None] & (m < n + 1)[None, :]\n    tl.store(z",
        kernel("ptx", "conv1x1_fwd and 37"),
    ),
    Fault(
        "dx overwritten instead of added to",
        f"{FOLDER}/bn_relu_conv1x1.py",
        "(g.to(tl.float32) + scale[:, None] * v)",
        "(scale[:, None] * v)",
        MODES,
    ),
    Fault(
        "z's correction left out",
        f"{FOLDER}/bn_relu_conv1x1.py",
        " - a[None, :] - b[None, :] * centred",
        "",
        MODES,
    ),
    Fault(
        "padding in front of the ReLU",
        f"{FOLDER}/bn_relu_conv3x3_fwd.py",
        "tl.where(mask, normed, 0.0).to(activated.dtype)  # padding follows the ReLU",
        "normed.to(activated.dtype)",
        kernel("bn_relu_conv3x3", "integers"),
    ),
    Fault(
        "an image's last row left out",
        f"{FOLDER}/bn_relu_conv3x3_fwd.py",
        "(h + kh >= 1) & (h + kh <= H)",
        "(h + kh >= 1) & (h + kh < H)",
        kernel("bn_relu_conv3x3", "integers"),
    ),
    Fault(
        "a strip's first column from the row before",
        f"{FOLDER}/bn_relu_conv3x3_fwd.py",
        "(inside & (w + column >= 1) & (w + column <= W))",
        "(inside & (w + column <= W))",
        kernel("bn_relu_conv3x3", "integers"),
    ),
    Fault(
        "a strip that ends in the next row",
        f"{FOLDER}/bn_relu_conv3x3_fwd.py",
        "mask = (exists & (w + j < W))[:, None] & (g < G)[None, :]\n        z = ",
        "mask = (exists & (w + j <= W))[:, None] & (g < G)[None, :]\n        z = ",
        kernel("ptx", "conv3x3_fwd and 37"),
    ),
    Fault(
        "no dropout in backward",
        f"{FOLDER}/bn_relu_conv3x3_bwd.py",
        "        value *= dropout_scale(seed, element, threshold, keep)\n",
        "",
        DROPOUT,
    ),
    Fault(
        "dropout's elements counted by the buffer's rows",
        f"{FOLDER}/bn_relu_conv3x3_fwd.py",
        "element = row_offset(start + pixel + j, G)",
        "element = row_offset(start + pixel + j, y_stride)",
        DROPOUT,
    ),
    Fault(
        "the gradient's border one row off",
        f"{FOLDER}/bn_relu_conv3x3_bwd.py",
        "(h_d >= 0) & (h_d < H) & (w_d >= 0)",
        "(h_d >= 0) & (h_d <= H) & (w_d >= 0)",
        kernel("bn_relu_conv3x3", "integers and bwd"),
    ),
    Fault(
        "the weight gradient's border one column off",
        f"{FOLDER}/bn_relu_conv3x3_bwd.py",
        "& (w + dw >= 0) & (w + dw < W)",
        "& (w + dw >= 0) & (w + dw <= W)",
        kernel("bn_relu_conv3x3", "integers and bwd"),
    ),
    Fault(
        "zeros behind d not written",
        f"{FOLDER}/bn_relu_conv3x3_bwd.py",
        "mask=rows[:, None] & (g < D)[None, :])",
        "mask=rows[:, None] & (g < G)[None, :])",
        kernel("bn_relu_conv3x3", "twice and bwd and 1x13x1"),
    ),
    Fault(
        "dx of a layer without bottleneck overwritten",
        f"{FOLDER}/bn_relu_conv3x3_bwd.py",
        "(before + scale[:, None] * v.to(tl.float32))",
        "(scale[:, None] * v.to(tl.float32))",
        kernel("bn_relu_conv3x3", "accumulate"),
    ),
    Fault(
        "a stem's window without its first row",
        f"{FOLDER}/stem.py",
        "(h + i >= 1) & (h + i <= H) & (w + j >= 1)",
        "(h + i >= 2) & (h + i <= H) & (w + j >= 1)",
        kernel("stem"),
    ),
    Fault(
        "the head's average over whole tiles",
        f"{FOLDER}/head.py",
        "(values - shift[None, :]) * scale[None, :] + b[None, :]), 0.0)",
        "(values - shift[None, :]) * scale[None, :] + b[None, :]), relu(b)[None, :])",
        kernel("head"),
    ),
    Fault(
        "a transition that averages an odd last column",
        f"{FOLDER}/transition.py",
        "(image < N) & (row < H // 2) & (column < W // 2)",
        "(image < N) & (row < H // 2)",
        kernel("transition"),
    ),
    Fault(
        "a running variance that is biased",
        f"{FOLDER}/batch_norm.py",
        "unbiased = [m * n / (n - 1) for m, n",
        "unbiased = [m for m, n",
        MODES,
    ),
    Fault(
        "neighbours in the buffer taken for channels",
        f"{FOLDER}/batch_norm.py",
        "valid = (m < n)[:, None] & (c < C)[None, :]",
        "valid = (m < n)[:, None] & (c <= C)[None, :]",
        kernel("ptx", "channel_stats and 37"),
    ),
    Fault(
        "memory that is shared is not refused",
        f"{FOLDER}/arguments.py",
        "if (written or other.written) and image.shares_memory_with(other, self._itemsize):",
        "if False:",
        kernel("operations", "also_read"),
    ),
    Fault(
        "a wrong dtype is not refused",
        f"{FOLDER}/arguments.py",
        "        if x.dtype != dtype:\n",
        "        if False:\n",
        kernel("operations", "bad_arguments"),
    ),
    Fault(
        "a weight in another layout read as it lies",
        f"{FOLDER}/arguments.py",
        "        return x.contiguous(memory_format=torch.channels_last)\n",
        "        return x\n",
        kernel("operations", "any_layout"),
    ),
]
