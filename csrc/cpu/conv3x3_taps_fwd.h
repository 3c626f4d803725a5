// BN-ReLU-conv3x3 where tiles multiply. Contract: densenet_fast/contract/operations.py.
#pragma once

#include "conv3x3_taps.h"
#include "dropout.h"
#include "statistics.h"

namespace densenet_fast::cpu::DENSENET_FAST_KERNELS {

// Outputs of one panel, rounded, with dropout.
struct WriteOutputs {
  const RowChunks& chunks;
  const Conv3x3Fwd& op;
  int64_t pixel, n;  // the chunk's first, the panel's

  template <int MR>
  DENSENET_FAST_INLINE void begin(int64_t, Accumulators<MR>&) const {}
  template <int MR>
  DENSENET_FAST_INLINE void end(int64_t row, const Accumulators<MR>& acc) const {
    chunks.each_pixel(row, MR, [&](int i, int64_t at) {
      if (at < 0) return;
      at += pixel;
      for_channels(min(kPanel, op.G - n), [&](int64_t c, auto lanes) {
        vec y = acc.r[i][c / kWidth];
        if (op.dropout.threshold) y *= dropout_mask(op.dropout, at * op.G + n + c);
        store(op.y.data + at * op.y.stride + n + c, y, lanes);
      });
    });
  }
};

inline void forward(const Conv3x3Fwd& op, Workspace& workspace) {
  const RowChunks chunks(op.shape);
  const Division division(chunks.count);
  const Affine bn(op.norm, op.C, workspace);
  const PackedTaps packed = Filters(op.weight, op.G, op.C, false).pack_taps(workspace);
  const int64_t stride = whole_depth(op.C), size = chunks.most() * stride;
  factor* const scratch = factors(division.workers * size, workspace);
  PartialStats partial(op.stats, chunks.count, op.G, workspace);
  share_tasks(division, workspace, [&](int64_t w, int64_t i, bool more) {
    const TilesInUse tiles;
    factor* const a = scratch + w * size;
    const int64_t pixel = chunks.pixel(i), positions = chunks.positions(i);
    chunks.load(i, op.C, a, stride, [&](int64_t from, factor* row) {
      bn_relu_rows(op.x.data + from * op.x.stride, op.x.stride, bn.scale, bn.shift, row, stride, op.shape.W, op.C);
    });
    Prefetcher prefetcher(9 * Prefetcher::steps_of_factors(positions, op.G, op.C));
    prefetcher.add(op.y.data + pixel * op.y.stride, op.y.stride, chunks.pixels(i), op.G);
    if (more) prefetcher.add(op.x.data + chunks.pixel(i + 1) * op.x.stride, op.x.stride, chunks.pixels(i + 1), op.C);
    multiply_taps(chunks, positions, a, stride, packed, 0, op.G, prefetcher,
                  [&](int64_t n) { return WriteOutputs{chunks, op, pixel, n}; });
    if (partial.wanted()) partial.set(i, op.y.data + pixel * op.y.stride, op.y.stride, chunks.pixels(i));
  });
  if (partial.wanted()) partial.merge([&](int64_t i) { return chunks.pixels(i); });
}

}  // namespace densenet_fast::cpu::DENSENET_FAST_KERNELS
