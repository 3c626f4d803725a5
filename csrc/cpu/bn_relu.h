// BN-ReLU of rows into scratch.
#pragma once

#include "work.h"

namespace densenet_fast::cpu::DENSENET_FAST_ISA {

// a [rows, padded(C)] = relu(scale * x + shift); scale and shift [padded(C)]. x is read up to C only.
inline void bn_relu_rows(const float* x, int64_t x_stride, const float* scale, const float* shift, float* a,
                         int64_t a_stride, int64_t rows, int64_t C) {
  for (int64_t r = 0; r < rows; r++, x += x_stride, a += a_stride) {
    for_channels(
        C, [&](int64_t c, auto part) { store(a + c, relu(load(x + c, part) * load(scale + c) + load(shift + c))); });
  }
}

}  // namespace densenet_fast::cpu::DENSENET_FAST_ISA
