// The counter-based dropout of densenet_fast/contract/operations.py: SplitMix64 of (seed, element).
#pragma once

#include "load.h"

namespace densenet_fast::cpu::DENSENET_FAST_KERNELS {

// Multipliers of elements i, i + 1, ... of the dense [M, G] output.
DENSENET_FAST_INLINE vec dropout_mask(const Dropout& dropout, int64_t i) {
  float lanes[kWidth];
  for (int j = 0; j < kWidth; j++) {
    uint64_t z = static_cast<uint64_t>(*dropout.seed) + static_cast<uint64_t>(i + j + 1) * 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    z ^= z >> 31;
    lanes[j] = (z >> 40) >= dropout.threshold ? dropout.multiplier : 0.f;
  }
  return load(lanes);
}

}  // namespace densenet_fast::cpu::DENSENET_FAST_KERNELS
