// BatchNorm's vectors as the kernels read them (affine form, padded copies, those of a range of channels), and BN-ReLU
// of rows into scratch.
#pragma once

#include "load.h"

namespace densenet_fast::cpu::DENSENET_FAST_KERNELS {

// The same vectors without their first c channels.
inline Norm channels_from(Norm norm, int64_t c) {
  return {norm.mean + c, norm.var + c, norm.gamma ? norm.gamma + c : nullptr, norm.beta ? norm.beta + c : nullptr,
          norm.eps};
}
inline Stats channels_from(Stats stats, int64_t c) {
  return stats.mean ? Stats{stats.mean + c, stats.var + c} : Stats{};
}
inline NormGradient channels_from(NormGradient d, int64_t c) {
  return {d.dgamma + c, d.dbeta + c, d.a ? d.a + c : nullptr, d.b ? d.b + c : nullptr};
}

// scale and shift [padded(C)] of a BatchNorm, bn(x) = scale * x + shift, zero in the padding.
struct Affine {
  float *scale, *shift;
  Affine(const Norm& norm, int64_t C, Workspace& workspace) {
    const int64_t size = padded(C);
    scale = workspace.floats(2 * size);
    shift = scale + size;
    for (int64_t c = 0; c < C; c++) {
      const double s = (norm.gamma ? norm.gamma[c] : 1.0) / __builtin_sqrt(norm.var[c] + norm.eps);
      scale[c] = static_cast<float>(s);
      shift[c] = static_cast<float>((norm.beta ? norm.beta[c] : 0.0) - norm.mean[c] * s);
    }
    for (int64_t c = C; c < size; c++) scale[c] = shift[c] = 0;
  }
};

// A copy with zeros up to padded(C).
inline const float* padded_copy(const float* v, int64_t C, Workspace& workspace) {
  float* copy = workspace.floats(padded(C));
  memcpy(copy, v, C * sizeof(float));
  for (int64_t c = C; c < padded(C); c++) copy[c] = 0;
  return copy;
}

inline Correction padded_copy(const Correction& c, int64_t C, Workspace& workspace) {
  return {padded_copy(c.mean, C, workspace), padded_copy(c.a, C, workspace), padded_copy(c.b, C, workspace)};
}

// a [rows, padded(C)] = relu(scale * x + shift); scale and shift [padded(C)]. x is read up to C only.
template <class number_t>
inline void bn_relu_rows(const element* x, int64_t x_stride, const float* scale, const float* shift, number_t* a,
                         int64_t a_stride, int64_t rows, int64_t C) {
  for (int64_t r = 0; r < rows; r++, x += x_stride, a += a_stride) {
    for_channels(C, [&](int64_t c, auto lanes) {
      put(a, a_stride, c, relu(load(x + c, lanes) * load(scale + c) + load(shift + c)));
    });
  }
}

}  // namespace densenet_fast::cpu::DENSENET_FAST_KERNELS
