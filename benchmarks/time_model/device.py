"""What is known of an H200, and what is assumed. Everything that the model takes for granted stands here.

Sources: [sheet] NVIDIA's H200 data sheet; [hopper] its H100 white paper and Hopper tuning guide; [guide] the CUDA C++
Programming Guide, compute capability 9.0: features and throughput of instructions; [near] assumed, near what is
reported of an H100 (Luo et al. 2024, arXiv:2402.13499), not compared with it figure by figure; [assumed] nobody's: a
guess that a measurement must replace.
"""

from densenet_fast.plan.devices import DEVICES

PROCESSORS = 132  # [sheet]
SCHEDULERS = 4  # [hopper] of a multiprocessor, each issuing one instruction a cycle
CLOCK = 1.755e9  # Hz [assumed] what is held under load; 989 TFLOPS [sheet] mean 1.83e9
DRAM = 0.90 * DEVICES["h200"].bandwidth  # bytes/s: 4.8e12 [sheet], of which a kernel gets nine tenths [assumed]
L2 = 5.5e12  # bytes/s [assumed] somewhat less than what others measured on the H100
LAUNCH = 1.5e-6  # s [assumed] from the end of a launch to the next one's first instruction

# Of a multiprocessor [guide].
REGISTERS = 65536
WARPS, PROGRAMS = 64, 32
SHARED = 228 << 10  # bytes, of which a program takes RESERVED beside its own
RESERVED = 1 << 10
SHARED_BYTES = 128  # a cycle [hopper], as many from the L1 cache

# A warp's instruction keeps its scheduler's pipe busy so many cycles: 32 lanes over those of the pipe [guide].
FLOAT, INTEGER, SPECIAL, SHUFFLE = 1, 2, 8, 4
TENSOR_MACS = 1024 // SCHEDULERS * 2  # 16-bit products a cycle and scheduler: 989 TFLOPS [sheet] at 1.83e9; TF32 half
MMA_SYNC = 2  # times as long as on those: mma.sync does not reach Hopper's rate, this much [assumed]

# Cycles until the result is there.
GLOBAL_LATENCY = 700  # from DRAM under load [assumed]; idle, 480 [near]
L2_LATENCY = 270  # [near]
L1_LATENCY = 40  # [near]
SHARED_LATENCY = 30  # [near]
SPECIAL_LATENCY = 24  # functions, conversions, shuffles, special registers [assumed]
CONSTANT_LATENCY = 30  # [assumed]
PRODUCT_LATENCY = 32  # of a wgmma beyond its time on the tensor core [assumed]
READ_LATENCY = 12  # until operands of a store or a copy are read [assumed]
BARRIER_LATENCY = 20  # [assumed]
