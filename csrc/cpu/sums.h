// Sums over the rows in backward: those that a norm's gradient needs, and partial results of weight gradients. Each
// part of the rows has sums of its own; they are added in the order of the parts.
#pragma once

#include "schedule.h"

namespace densenet_fast::cpu::DENSENET_FAST_KERNELS {

// sum(v) and sum(v * (x - mean)): in fp32 within a chunk, in double over a part's chunks, then over the parts in order;
// finish() makes them the norm's gradient (densenet_fast/contract/operations.py).
class PartialSums {
 public:
  PartialSums(int64_t parts, int64_t C, Workspace& workspace) : parts_(parts), C_(C), size_(padded(C)) {
    chunk_ = workspace.floats(parts * 2 * size_);
    total_ = workspace.doubles(parts * 2 * size_);
    memset(total_, 0, parts * 2 * size_ * sizeof(double));
  }
  // Zeroed sums for a part's next chunk: of v, [padded(C)], and offset_vx() floats on of v * (x - mean).
  float* begin_chunk(int64_t part) {
    float* chunk = chunk_ + part * 2 * size_;
    memset(chunk, 0, 2 * size_ * sizeof(float));
    return chunk;
  }
  int64_t offset_vx() const { return size_; }
  void end_chunk(int64_t part) {
    const float* chunk = chunk_ + part * 2 * size_;
    double* total = total_ + part * 2 * size_;
    for (int64_t c = 0; c < 2 * size_; c++) total[c] += chunk[c];
  }
  void finish(const Norm& norm, int64_t count, const NormGradient& out) const {
    for (int64_t c = 0; c < C_; c++) {
      double v = 0, vx = 0;
      for (int64_t i = 0; i < parts_; i++) {
        v += total_[i * 2 * size_ + c];
        vx += total_[i * 2 * size_ + size_ + c];
      }
      const double rstd = 1 / __builtin_sqrt(norm.var[c] + norm.eps), dgamma = vx * rstd;
      out.dgamma[c] = static_cast<float>(dgamma);
      out.dbeta[c] = static_cast<float>(v);
      if (!out.a) continue;
      const double share = (norm.gamma ? norm.gamma[c] : 1.0) * rstd / static_cast<double>(count);
      out.a[c] = static_cast<float>(out.a[c] + share * v);
      out.b[c] = static_cast<float>(out.b[c] + share * rstd * dgamma);
    }
  }

 private:
  int64_t parts_, C_, size_;
  float* chunk_;   // [parts][v, vx][padded(C)]
  double* total_;  // [parts][v, vx][padded(C)]
};

// The sum of one vector of `parts` partial results that lie `size` floats apart.
DENSENET_FAST_INLINE vec sum_parts(const float* partial, int64_t parts, int64_t size) {
  vec sum = load(partial);
  for (int64_t part = 1; part < parts; part++) sum += load(partial += size);
  return sum;
}

// to [rows, columns] = the sum over partial results [parts][rows][stride].
inline void add_parts(const float* partial, int64_t parts, int64_t rows, int64_t columns, int64_t stride, element* to,
                      int64_t to_stride) {
  parallel_ranges(rows, ceil_div(kGrain, parts * stride), [&](int64_t first, int64_t last) {
    for (int64_t r = first; r < last; r++)
      for_channels(columns, [&](int64_t c, auto lanes) {
        store(to + r * to_stride + c, sum_parts(partial + r * stride + c, parts, rows * stride), lanes);
      });
  });
}

}  // namespace densenet_fast::cpu::DENSENET_FAST_KERNELS
