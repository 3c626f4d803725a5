"""Faults in the CUDA kernels, which run as PTX, and in the host code of launches; each takes nvcc some seconds."""

from . import Fault, contract

FOLDER = "csrc/cuda"
OPERATIONS, CONV3X3 = "tests/cuda/test_operations.py", "tests/cuda/test_bn_relu_conv3x3.py"
MODES = contract("cuda and freeze_every_second", "test_modes.py")
DROPOUT = contract("cuda and stock_layers", "test_dropout.py")
FWD = (OPERATIONS, "-k", "conv1x1_fwd and (bf16 or order)")
BWD = (OPERATIONS, "-k", "conv1x1_bwd and (bf16 or order)")
STATS = (OPERATIONS, "-k", "groups_of_tiles or (channel_stats and bf16)")
EXACT = (CONV3X3, "-k", "integers")
BLOCK = ("tests/cuda/test_block.py", "-k", "exact_as_stock or more_layers")
FAULTS = [
    Fault(
        "a wait one group too short",
        f"{FOLDER}/bn_relu_conv1x1_fwd.cu",
        "cp_async_wait<kStages - 2>",
        "cp_async_wait<kStages - 1>",
        FWD,
    ),
    Fault(
        "no barrier before the products",
        f"{FOLDER}/bn_relu_conv1x1_fwd.cu",
        "cp_async_wait<kStages - 2>();\n      __syncthreads();",
        "cp_async_wait<kStages - 2>();",
        FWD,
    ),
    Fault(
        "a stage filled again too early",
        f"{FOLDER}/bn_relu_conv1x1_fwd.cu",
        "load(stage == 0 ? kRingBytes - kStageBytes : stage - kStageBytes)",
        "load(stage)",
        FWD,
    ),
    Fault(
        "rows past the end in the statistics",
        f"{FOLDER}/bn_relu_conv1x1_fwd.cu",
        "min(max(left + 7, 0) / 8, 2 * Traits::kTilesM)",
        "2 * Traits::kTilesM",
        FWD,
    ),
    Fault(
        "the first of a block's tiles forgotten by its statistics",
        f"{FOLDER}/bn_relu_conv1x1_fwd.cu",
        "count += added",
        "count = added",
        (OPERATIONS, "-k", "far_from_zero and conv1x1"),
    ),
    Fault(
        "the ring overwritten while the products read it",
        f"{FOLDER}/bn_relu_conv1x1_fwd.cu",
        "  cp_async_wait<0>();\n  __syncthreads();\n",
        "  cp_async_wait<0>();\n",
        FWD,
    ),
    Fault(
        "a weight's rows in another order than the accumulators'",
        f"{FOLDER}/bn_relu_conv1x1_fwd.cu",
        "first / 8 % Traits::kGroupTiles * 2 + first % 2",
        "first % 2 * 2 + first / 8 % Traits::kGroupTiles",
        FWD,
    ),
    Fault(
        "two registers of an operand exchanged",
        f"{FOLDER}/mma.cuh",
        "first[0] = r[0], first[1] = r[1], second[0] = r[2], second[1] = r[3];\n}\n// The same",
        "first[0] = r[0], first[1] = r[2], second[0] = r[1], second[1] = r[3];\n}\n// The same",
        FWD,
    ),
    Fault(
        "no fence before the ticket", f"{FOLDER}/common.cuh", "    __threadfence();\n    is_last", "    is_last", STATS
    ),
    Fault(
        "no barrier before the ticket",
        f"{FOLDER}/common.cuh",
        "  __syncthreads();\n  if (threadIdx.x == 0) {",
        "  if (threadIdx.x == 0) {",
        STATS,
    ),
    Fault(
        "a counter that is not left at zero",
        f"{FOLDER}/common.cuh",
        "atomicInc(counter, count - 1)",
        "atomicAdd(counter, 1u)",
        STATS,
    ),
    Fault(
        "products begun before all of dz is there",
        f"{FOLDER}/bn_relu_conv1x1_bwd.cu",
        "    __syncthreads();  // dz",
        "    // dz",
        BWD,
    ),
    Fault(
        "dweight begun before the activations are there",
        f"{FOLDER}/bn_relu_conv1x1_bwd.cu",
        "    __syncthreads();  // this tile",
        "    // this tile",
        BWD,
    ),
    Fault(
        "a wait for all but the tile needed",
        f"{FOLDER}/bn_relu_conv1x1_bwd.cu",
        "    cp_async_wait<0>();\n    __syncthreads();  // this tile",
        "    cp_async_wait<1>();\n    __syncthreads();  // this tile",
        BWD,
    ),
    Fault(
        "a weight kept before it is there",
        f"{FOLDER}/bn_relu_conv1x1_bwd.cu",
        "    cp_async_wait<1>();\n",
        "",
        BWD,
    ),
    Fault(
        "rows past the end with a gradient",
        f"{FOLDER}/bn_relu_conv1x1_bwd.cu",
        "r + first < left ? result : Quad<input_t>{}",
        "result",
        BWD,
    ),
    Fault(
        "an operand read untransposed",
        f"{FOLDER}/mma.cuh",
        "ldmatrix_x4_trans(raw, tile +",
        "ldmatrix_x4(raw, tile +",
        BWD,
    ),
    Fault(
        "partial weight gradients not all added",
        f"{FOLDER}/bn_relu_conv1x1_bwd.cu",
        "split < p.splits; split++",
        "split < p.splits - 1; split++",
        BWD,
    ),
    Fault(
        "the padding activated",
        f"{FOLDER}/conv3x3_main_loop.cuh",
        "if (pixel_index[i] >= 0) bn_relu.apply",
        "bn_relu.apply",
        EXACT,
    ),
    Fault(
        "a stage of 3x3 filled too early",
        f"{FOLDER}/conv3x3_main_loop.cuh",
        "copy(chunk + kStages - 1);\n    cp_async_commit();\n    if",
        "copy(chunk + kStages);\n    cp_async_commit();\n    if",
        EXACT,
    ),
    Fault(
        "a chunk activated before it is there",
        f"{FOLDER}/conv3x3_main_loop.cuh",
        "      cp_async_wait<kStages - 2>();\n      if (chunk + 1",
        "      if (chunk + 1",
        EXACT,
    ),
    Fault(
        "statistics of places without a pixel",
        f"{FOLDER}/bn_relu_conv3x3_fwd.cu",
        "if (inside >> k & 1) squares",
        "squares",
        (OPERATIONS, "-k", "conv3x3_fwd and bf16"),
    ),
    Fault(
        "a gradient where there is no pixel",
        f"{FOLDER}/conv3x3_wgrad.cuh",
        "m < 0 ? 0 : 16)",
        "16)",
        EXACT,
    ),
    Fault(
        "a warp's share of dweight lost",
        f"{FOLDER}/conv3x3_wgrad.cuh",
        "half >= 1; half /= 2",
        "half > 1; half /= 2",
        EXACT,
    ),
    Fault(
        "dweight's partials added by the first column of blocks alone",
        f"{FOLDER}/bn_relu_conv3x3_bwd.cu",
        "static_cast<int64_t>(blockIdx.y) * p.dweight_blocks + blockIdx.x",
        "static_cast<int64_t>(blockIdx.x)",
        EXACT,
    ),
    Fault(
        "no barrier behind the coefficients",
        f"{FOLDER}/conv3x3_main_loop.cuh",
        "p.chunks * kKStep<input_t>, p.C);\n    __syncthreads();",
        "p.chunks * kKStep<input_t>, p.C);",
        EXACT,
    ),
    Fault(
        "a layer's packed weight read from another's place",
        f"{FOLDER}/bn_relu_conv3x3_fwd.cu",
        "op.packed = weights.back().packed",
        "op.packed = weights.front().packed",
        BLOCK,
    ),
    Fault(
        "later layers' weights not packed",
        f"{FOLDER}/conv3x3_prepare.cu",
        "std::copy_n(weights + first, n,",
        "std::copy_n(weights, n,",
        BLOCK,
    ),
    Fault(
        "packed weights gone with the first layer",
        "csrc/block.cpp",
        "(convolutions, of_block)",
        "(convolutions, context)",
        BLOCK,
    ),
    Fault("frozen norms corrected", f"{FOLDER}/common.cuh", "  if (g.a != nullptr) {", "  {", MODES),
    Fault("a correction that overwrites a", f"{FOLDER}/common.cuh", "g.a[c] += scale", "g.a[c] = scale", MODES),
    Fault(
        "merged variances lack that of the tiles' means",
        f"{FOLDER}/common.cuh",
        "other.value[2] + distance * distance * (value[0] * weight)",
        "other.value[2]",
        STATS,
    ),
    Fault(
        "no dropout in backward",
        f"{FOLDER}/conv3x3_prepare.cu",
        "    if (p.dropout.threshold > 0) d.value[e] *= dropout_multiplier(p.dropout, element + e);\n",
        "",
        DROPOUT,
    ),
    Fault(
        "a neighbour of the slice written",
        f"{FOLDER}/bn_relu_conv3x3_fwd.cu",
        "y(p.y, c, p.G);",
        "y(p.y, c, p.G + 1);",
        EXACT,
    ),
    Fault(
        "a window without its last row",
        f"{FOLDER}/stem.cu",
        "h >= image.H || w < 0",
        "h >= image.H - 1 || w < 0",
        (OPERATIONS, "-k", "stem and bf16"),
    ),
    Fault(
        "a NaN that a later value replaces",
        f"{FOLDER}/stem.cu",
        " || y.value[e] != y.value[e])",
        ")",
        ("tests/cuda/test_stem.py",),
    ),
    Fault(
        "the head's average of one pixel less",
        f"{FOLDER}/head.cu",
        "input_t(total.value[0] / static_cast<float>(p.pixels))",
        "input_t(total.value[0] / static_cast<float>(p.pixels - 1))",
        (OPERATIONS, "-k", "head and bf16"),
    ),
    Fault(
        "a quad one row off",
        f"{FOLDER}/transition.cu",
        "line % pooled_h * 2) * W",
        "line % pooled_h * 2 + 1) * W",
        (OPERATIONS, "-k", "transition and bf16"),
    ),
    Fault(
        "a running variance that is biased",
        f"{FOLDER}/batch_norm.cu",
        "norm.unbias * norm.var[c]",
        "norm.var[c]",
        (OPERATIONS, "-k", "update_running_stats"),
    ),
    *(
        Fault(name, f"csrc/{file}", before, after, ("tests/cuda/test_context.py",))
        for name, file, before, after in (
            (
                "a stream of another device",
                "cuda_context.cpp",
                "cuda_stream(check.device().index(), ",
                "cuda_stream(0, ",
            ),
            (
                "a workspace of another device",
                "cuda_context.cpp",
                "workspace(check.device())",
                "workspace({check.device().type(), 0})",
            ),
            ("no device guard", "cuda_context.cpp", "guard(check.device().index())", "guard(0)"),
            ("the device asked for at each call", "cuda/device.cu", "d.multiprocessors == 0", "true"),
            ("shared memory not asked for", "cuda/device.cu", "dynamic_bytes <= allowed[at]", "dynamic_bytes > 0"),
            ("shared memory asked for at each launch", "cuda/device.cu", "  allowed[at] = dynamic_bytes;\n", ""),
            (
                "static shared memory not counted",
                "cuda/device.cu",
                " - static_cast<int>(attributes.sharedSizeBytes)",
                "",
            ),
            (
                "one allowance for all devices",
                "cuda/device.cu",
                "make_pair(kernel, device.index)",
                "make_pair(kernel, 0)",
            ),
        )
    ),
]
