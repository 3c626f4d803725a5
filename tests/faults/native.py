"""Faults in the C++ kernels for the CPU; each takes a build."""

from . import Fault, contract

MODES = contract("native and freeze_every_second", "test_modes.py")
DROPOUT = contract("native and stock_layers", "test_dropout.py")
STATISTICS, SUMS = "csrc/cpu/statistics.h", "csrc/cpu/sums.h"
LOAD = "csrc/cpu/load.h"
OPERATIONS = "tests/native/test_operations.py"

THREADS = ("tests/native/test_threads.py", "-k")


def of(name: str, words: str = "") -> tuple[str, ...]:
    return (OPERATIONS, "-k", f"{name} and ({words})" if words else name)


FAULTS = [
    Fault(
        "a batch that is not counted",
        "csrc/batch_norm.cpp",
        "++*n.num_batches_tracked;",
        "{}",
        of("update_running_stats"),
    ),
    Fault(
        "merged variances lack that of the parts' means",
        STATISTICS,
        "m2[c] += part_m2[c] + d * d * weight;",
        "m2[c] += part_m2[c];",
        of("conv1x1_fwd"),
    ),
    Fault(
        "the last rows left out of the variance",
        STATISTICS,
        "        const vec d = load(q, p) - m;\n        s0 += d * d;\n",
        "",
        of("channel_stats"),
    ),
    Fault(
        "frozen norms corrected",
        "csrc/block.cpp",
        "batch ? correction(column) : Arguments::Pair{};",
        "correction(column);",
        MODES,
    ),
    Fault(
        "a correction by b with rstd once",
        SUMS,
        "out.b[c] + share * rstd * dgamma",
        "out.b[c] + share * dgamma",
        MODES,
    ),
    Fault("a correction that overwrites a", SUMS, "out.a[c] + share * v", "share * v", MODES),
    Fault(
        "partial results not all added",
        SUMS,
        "part < parts; part++) sum += load(partial += size);",
        "part + 1 < parts; part++) sum += load(partial += size);",
        of("conv1x1_bwd"),
    ),
    Fault(
        "the second norm's correction left out",
        "csrc/cpu/bn_relu_conv1x1.cpp",
        "scaled - load(correction.a + k) - load(correction.b + k) * centred",
        "scaled - load(correction.a + k)",
        MODES,
    ),
    Fault(
        "dx overwritten instead of added to",
        "csrc/cpu/bn_relu_conv1x1.cpp",
        "store(g, load(g, lanes) + s * v, lanes);",
        "store(g, s * v, lanes);",
        MODES,
    ),
    Fault(
        "a neighbour of the slice written",
        "csrc/cpu/bn_relu_conv1x1.cpp",
        "if (n >= kWidth) finish<MR>(row, j, acc, AllLanes{});",
        "if (n > 0) finish<MR>(row, j, acc, AllLanes{});",
        of("conv1x1_bwd"),
    ),
    Fault(
        "dropout of the wrong elements",
        "csrc/cpu/bn_relu_conv3x3_fwd.cpp",
        "dropout_mask(op.dropout, at * op.G + c)",
        "dropout_mask(op.dropout, at * op.y.stride + c)",
        DROPOUT,
    ),
    Fault(
        "no dropout in backward",
        "csrc/cpu/bn_relu_conv3x3_bwd.cpp",
        "          if (op.dropout.threshold) d *= dropout_mask(op.dropout, pixel * op.G + c);\n",
        "",
        DROPOUT,
    ),
    Fault(
        "an odd image's last row written past its end",
        "csrc/cpu/bn_relu_conv3x3_fwd.cpp",
        "if ((i && !lower) || (k && !right)) continue;",
        "if (k && !right) continue;",
        of("conv3x3_fwd"),
    ),
    Fault(
        "an output that is not finite left as Winograd made it",
        "csrc/cpu/bn_relu_conv3x3_fwd.cpp",
        "finite &= finite_probe[i] == 0;",
        "finite &= true;",
        ("tests/native/test_non_finite.py",),
    ),
    Fault(
        "the taps of dweight not turned round",
        "csrc/cpu/bn_relu_conv3x3_bwd.cpp",
        "taps[8 - first - t]",
        "taps[first + t]",
        of("conv3x3_bwd"),
    ),
    Fault(
        "the stem's last maximum takes the gradient",
        "csrc/cpu/stem.cpp",
        "(p > value) | (p != p)",
        "(p >= value) | (p != p)",
        ("tests/native/test_operations.py", "tests/native/test_stages.py", "-k", "stem"),
    ),
    Fault(
        "the stem's window one column short",
        "csrc/cpu/stem.cpp",
        "w <= (x + 1) / 2 && w < w_out",
        "w < (x + 1) / 2 && w < w_out",
        of("stem_bwd"),
    ),
    Fault(
        "a quad one row off",
        "csrc/cpu/transition.cpp",
        "pixel[2] = pixel[0] + shape.W;",
        "pixel[2] = pixel[0] + shape.W + 1;",
        of("transition"),
    ),
    Fault(
        "the head's average of one pixel less",
        "csrc/cpu/head.cpp",
        "store(op.y + n * op.C + c, sum / splat(static_cast<float>(pixels)), lanes);",
        "store(op.y + n * op.C + c, sum / splat(static_cast<float>(pixels - 1)), lanes);",
        of("head_fwd"),
    ),
    Fault(
        "a worker claimed twice",
        "csrc/pool.cpp",
        "if (last >= number || !claims_[worker].compare_exchange_strong(last, number)) return false;",
        "if (last >= number) return false;\n  claims_[worker] = number;",
        (*THREADS, "quick"),
    ),
    Fault(
        "a region that ends before its last worker",
        "csrc/pool.cpp",
        "wait_until([this] { return done_ == work_.workers; }, bed_);",
        "wait_until([this] { return done_ >= work_.workers - 1; }, bed_);",
        (*THREADS, "quick"),
    ),
    Fault(
        "what a worker threw is thrown by the next region, too",
        "csrc/pool.cpp",
        "*std::exchange(error_, std::nullopt)",
        "*error_",
        (*THREADS, "work"),
    ),
    Fault(
        "a caller that leaves the work to helpers",
        "csrc/pool.cpp",
        "region->work(0, false);",
        "",
        (*THREADS, "held_up"),
    ),
    Fault(
        "a forked process with its parent's helpers",
        "csrc/pool.cpp",
        "pthread_atfork(nullptr, nullptr, [] { pool = new Pool; });",
        "",
        (*THREADS, "forked"),
    ),
    Fault(
        "a helper takes denormals as it likes",
        "csrc/pool.cpp",
        "if (helper) std::fesetenv(&environment_);",
        "",
        (*THREADS, "denormals"),
    ),
    Fault(
        "sleep taken for a crowd",
        "csrc/crowding.cpp",
        "|| last.sleeps != before.sleeps) return;",
        ") return;",
        (*THREADS, "crowded"),
    ),
    Fault(
        "a quota of the group above is not seen",
        "csrc/processors.cpp",
        "if (path.empty()) return;\n",
        "return;\n",
        (*THREADS, "quota"),
    ),
    Fault(
        "PyTorch's threads where a quota lets fewer run",
        "csrc/threads.cpp",
        "(threads > most || crowding.is_there())",
        "crowding.is_there()",
        (*THREADS, "how_many"),
    ),
    Fault(
        "bfloat16 cut off instead of rounded",
        LOAD,
        "nearest = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;",
        "nearest = bits >> 16;",
        of("integers", "bf16 and conv1x1_fwd"),
    ),
    Fault(
        "ties of bfloat16 rounded up",
        LOAD,
        "0x7fff + ((bits >> 16) & 1)",
        "0x8000",
        of("integers", "bf16 and conv1x1_fwd"),
    ),
    Fault(
        "NaN rounded as a number",
        LOAD,
        "v == v ? nearest : (bits >> 16) | 0x40",
        "nearest",
        of("widened", "bf16"),
    ),
    Fault(
        "the last of an odd number of bfloat16 not written",
        LOAD,
        "  if (t.n & 1) static_cast<uint16_t*>(p)[t.n - 1] = h[t.n - 1];\n",
        "",
        of("integers", "bf16 and conv1x1_fwd"),
    ),
    Fault(
        "subnormal float16 rounded as normal ones",
        LOAD,
        "magnitude < (kBias + 1) << 23 ? reinterpret_cast<uvec>(shifted) - half : normal",
        "normal",
        of("widened", "fp16"),
    ),
    Fault(
        "sums of bfloat16 rounded after each pass over the depth",
        "csrc/cpu/conv1x1_fwd.h",
        "kPair), c0 > 0, &prefetcher);\n",
        "kPair), c0 > 0, &prefetcher);\n      write_floats(sum, out, y.stride, rows, K);\n"
        "      read_floats(out, y.stride, rows, K, mine + a_size);\n",
        of("integers", "bf16 and conv1x1_fwd"),
    ),
    Fault(
        "panels of an odd number of inputs overlap by half a pair",
        "csrc/cpu/conv1x1_fwd.h",
        "packed + c0 * kPanel, round_up(C, kPair) * kPanel",
        "packed + c0 * kPanel, C * kPanel",
        of("integers", "bf16 and conv1x1_fwd"),
    ),
    Fault(
        "panels of an odd number of outputs overlap by half a pair",
        "csrc/cpu/bn_relu_conv1x1.cpp",
        "packed + c * depth",
        "packed + c * K",
        of("integers", "bf16 and conv1x1_bwd"),
    ),
    Fault(
        "the row that an odd number lacks is read",
        "csrc/cpu/in_floats.h",
        "r + 1 < rows ? load(x + stride + c) : vec{}",
        "load(x + stride + c)",
        of("integers", "bf16 and conv1x1_bwd"),
    ),
    Fault(
        "both rows of a pair on one side",
        "csrc/cpu/gemm.h",
        "rounded(second, bfloat16{}), uvec) << 16;",
        "rounded(second, bfloat16{}), uvec);",
        of("integers", "bf16 and conv1x1_bwd"),
    ),
    Fault(
        "the depth that tiles multiply not filled with zeros",
        "csrc/cpu/conv1x1_fwd.h",
        "if (missing > 0)",
        "if (missing > 256)",
        of("integers", "bf16 and conv1x1_fwd"),
    ),
    Fault(
        "the lower tiles of rows are the upper ones",
        "csrc/cpu/gemm.h",
        "tile_load<5>(a + kTileRows * a_row, a_bytes)",
        "tile_load<5>(a, a_bytes)",
        ("tests/native/test_amx.py", "-k", "trial"),
    ),
    Fault(
        "rows of d transposed for tiles beyond the last",
        "csrc/cpu/in_floats.h",
        "pairs_of_rows(x + c, stride, r + kPair * i, rows)",
        "pairs_of_rows(x + c, stride, r + kPair * i, deep)",
        of("integers", "bf16 and conv1x1_bwd"),
    ),
    Fault(
        "tiles that the system does not permit",
        "csrc/amx.cpp",
        "if (const int error = sources.ask_permission())",
        "if (const int error = sources.ask_permission() * 0)",
        ("tests/native/test_amx.py", "-k", "offer"),
    ),
]
