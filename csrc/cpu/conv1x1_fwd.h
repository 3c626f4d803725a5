// What the 1x1 convolutions of bottleneck and transition share: their packed weights, and the forward, y = A @ W^T with
// y's channel statistics, A made tile by tile in cache; the two differ in how A comes from x.
#pragma once

#include "gemm.h"
#include "in_floats.h"
#include "schedule.h"
#include "statistics.h"

namespace densenet_fast::cpu::DENSENET_FAST_KERNELS {

// A weight [K, C], its inputs side by side in memory, in panels of outputs [padded(K) / kPanel][C][kPanel], to
// whole_depth(C).
inline factor* pack_outputs(const Weight& weight, int64_t K, int64_t C, Workspace& workspace) {
  const int64_t depth = whole_depth(C);
  factor* p = factors(padded(K) * depth, workspace);
  parallel_ranges(padded(K) / kPanel, ceil_div(kGrain, C * kPanel), [&](int64_t first, int64_t last) {
    for (int64_t n = first; n < last; n++)
      pack_panel_transposed(weight.data + n * kPanel * weight.stride[0], weight.stride[0], K - n * kPanel, C,
                            p + n * kPanel * depth);
  });
  return p;
}

// `scale` times the weight in panels of inputs [padded(C) / kPanel][K][kPanel], to whole_depth(K).
inline factor* pack_inputs(const Weight& weight, int64_t K, int64_t C, float scale, Workspace& workspace) {
  const int64_t depth = whole_depth(K);
  factor* p = factors(padded(C) * depth, workspace);
  parallel_ranges(padded(C) / kPanel, ceil_div(kGrain, K * kPanel), [&](int64_t first, int64_t last) {
    for (int64_t n = first; n < last; n++)
      pack_panel(weight.data + n * kPanel, weight.stride[0], C - n * kPanel, K, scale, p + n * kPanel * depth);
  });
  return p;
}

// y [M, K] from C channels. prepare(row, rows, c0, channels, a, a_stride) writes that block of A, with zeros up to a
// whole vector; prefetch(prefetcher, row, rows, c0, channels) adds to the prefetcher what prepare will read.
template <class Prepare, class Prefetch>
inline void conv1x1_fwd(int64_t M, int64_t C, int64_t K, const Weight& weight, Matrix y, Stats stats,
                        Workspace& workspace, const Prepare& prepare, const Prefetch& prefetch) {
  constexpr int64_t kRowsTarget = 96, kDepth = 256, kStride = kDepth + (kDepthUnit > kPanel ? kDepthUnit : kPanel);
  const RowBlocks blocks(M, kRowsTarget, kHeight);
  const Division division(blocks.count);
  const factor* packed = pack_outputs(weight, K, C, workspace);
  const int64_t a_size = floats_of(blocks.block * kStride), size = a_size + blocks.block * scratch_of(K);
  float* scratch = workspace.floats(division.workers * size);
  PartialStats partial(stats, blocks.count, K, workspace);

  share_tasks(division, workspace, [&](int64_t w, int64_t i, bool more) {
    const TilesInUse tiles;
    float* const mine = scratch + w * size;
    factor* const a = reinterpret_cast<factor*>(mine);
    const int64_t row = blocks.begin(i), rows = blocks.size(i);
    element* const out = y.data + row * y.stride;
    const Floats<float> sum = make_floats(out, y.stride, K, mine + a_size);
    for (int64_t c0 = 0; c0 < C; c0 += kDepth) {
      const int64_t depth = min(kDepth, C - c0);
      prepare(row, rows, c0, depth, a, kStride);
      fill_depth(a, kStride, rows, depth);
      Prefetcher prefetcher(Prefetcher::steps_of_factors(rows, K, depth));
      if (c0 + kDepth < C) prefetch(prefetcher, row, rows, c0 + kDepth, min(kDepth, C - c0 - kDepth));
      else if (more) prefetch(prefetcher, row + rows, blocks.size(i + 1), 0, min(kDepth, C));
      gemm_nn(a, kStride, packed + c0 * kPanel, whole_depth(C) * kPanel, sum.data, sum.stride, rows, K,
              whole_depth(depth), c0 > 0, &prefetcher);
    }
    write_floats(sum, out, y.stride, rows, K);
    if (partial.wanted()) partial.set(i, out, y.stride, rows);
  });
  if (partial.wanted()) partial.merge([&](int64_t i) { return blocks.size(i); });
}

}  // namespace densenet_fast::cpu::DENSENET_FAST_KERNELS
