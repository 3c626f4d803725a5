// Mean and variance of a result's channels. A part of the rows is taken while it is in cache; the parts are merged in
// double and in their order, so it does not matter which thread had which.
#pragma once

#include "load.h"

namespace densenet_fast::cpu::DENSENET_FAST_KERNELS {

// Mean and M2 of parts of the rows, merged in the order of the parts (Chan, Golub and LeVeque 1983).
class PartialStats {
 public:
  PartialStats(Stats out, int64_t parts, int64_t C, Workspace& workspace) : out_(out), parts_(parts), C_(C) {
    if (!wanted()) return;
    part_ = workspace.floats(2 * parts * C);
    merged_ = workspace.doubles(2 * C);
  }
  bool wanted() const { return out_.mean != nullptr; }

  // Takes the statistics of a part, the rows x [rows, C], in two passes while they are in cache.
  void set(int64_t part, const element* x, int64_t stride, int64_t rows) {
    float *mean = part_ + 2 * part * C_, *m2 = mean + C_;
    const vec inverse = splat(1.f / static_cast<float>(rows));
    for_channels(C_, [&](int64_t c, auto p) {
      vec s0 = {}, s1 = {}, s2 = {}, s3 = {};
      const element* q = x + c;
      int64_t r = 0;
      for (; r + 4 <= rows; r += 4, q += 4 * stride) {
        s0 += load(q, p), s1 += load(q + stride, p);
        s2 += load(q + 2 * stride, p), s3 += load(q + 3 * stride, p);
      }
      for (; r < rows; r++, q += stride) s0 += load(q, p);
      const vec m = ((s0 + s1) + (s2 + s3)) * inverse;
      s0 = s1 = s2 = s3 = vec{};
      q = x + c;
      for (r = 0; r + 4 <= rows; r += 4, q += 4 * stride) {
        const vec d0 = load(q, p) - m, d1 = load(q + stride, p) - m;
        const vec d2 = load(q + 2 * stride, p) - m, d3 = load(q + 3 * stride, p) - m;
        s0 += d0 * d0, s1 += d1 * d1, s2 += d2 * d2, s3 += d3 * d3;
      }
      for (; r < rows; r++, q += stride) {
        const vec d = load(q, p) - m;
        s0 += d * d;
      }
      store(mean + c, m, p);
      store(m2 + c, (s0 + s1) + (s2 + s3), p);
    });
  }

  // rows_of(part) is the number of rows of a part.
  template <class RowsOf>
  void merge(const RowsOf& rows_of) {
    double *mean = merged_, *m2 = merged_ + C_, n = 0;
    memset(merged_, 0, 2 * C_ * sizeof(double));
    for (int64_t i = 0; i < parts_; i++) {
      const float *part_mean = part_ + 2 * i * C_, *part_m2 = part_mean + C_;
      const double rows = static_cast<double>(rows_of(i)), share = rows / (n + rows), weight = n * share;
      for (int64_t c = 0; c < C_; c++) {
        const double d = part_mean[c] - mean[c];
        mean[c] += d * share;
        m2[c] += part_m2[c] + d * d * weight;
      }
      n += rows;
    }
    for (int64_t c = 0; c < C_; c++) {
      out_.mean[c] = static_cast<float>(mean[c]);
      out_.var[c] = static_cast<float>(m2[c] / n);
    }
  }

 private:
  Stats out_;
  int64_t parts_, C_;
  float* part_ = nullptr;     // [parts][mean, M2][C]
  double* merged_ = nullptr;  // [mean, M2][C]
};

}  // namespace densenet_fast::cpu::DENSENET_FAST_KERNELS
