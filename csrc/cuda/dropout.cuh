// The counter-based dropout of densenet_fast/contract/operations.py: SplitMix64 of (seed, element).
#pragma once

#include "kernels.h"

namespace densenet_fast::cuda {

// Multiplier of element i of the dense [M, G] output.
__device__ __forceinline__ float dropout_multiplier(const Dropout& dropout, int64_t i) {
  uint64_t z = static_cast<uint64_t>(*dropout.seed) + static_cast<uint64_t>(i + 1) * 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  z ^= z >> 31;
  return (z >> 40) >= dropout.threshold ? dropout.multiplier : 0.f;
}

}  // namespace densenet_fast::cuda
