// Backward of BN-ReLU-conv3x3 where tiles multiply bfloat16. Of floats Winograd's takes less time: the weight
// gradient's products have the tiles to themselves for as long as the input gradient's. Contract:
// densenet_fast/contract/operations.py.
#pragma once

#include "conv3x3_taps.h"
#include "dropout.h"
#include "sums.h"

namespace densenet_fast::cpu::DENSENET_FAST_KERNELS {

// What is done with the gradient at the ReLU's output, of one panel of channels: it is masked, u or dx written, the
// sums added to, and a = relu(bn(x)), with zeros where there is no pixel, put aside for dweight.
struct MaskPixels {
  const RowChunks& chunks;
  const element* x;  // of the chunk's first pixel and the panel's first channel
  int64_t x_stride;
  element* u;
  int64_t u_stride;
  bool accumulate;
  const float *scale, *shift, *mean;  // [kPanel]
  float* a;                           // [positions, kPanel]
  float *sum_v, *sum_vx;              // [kPanel]
  int64_t channels;                   // of this panel, 1 to kPanel

  template <int MR>
  DENSENET_FAST_INLINE void begin(int64_t, Accumulators<MR>&) const {}
  template <int MR>
  DENSENET_FAST_INLINE void end(int64_t row, const Accumulators<MR>& acc) const {
    for_channels(channels, [&](int64_t c, auto lanes) {
      const vec s = load(scale + c), t = load(shift + c), m = load(mean + c);
      vec v_sum = {}, vx_sum = {};  // short sums first, then into the long ones, whose rounding dominates the error
      chunks.each_pixel(row, MR, [&](int i, int64_t at) {
        vec activated = {};
        if (at >= 0) {
          const vec xv = load(x + at * x_stride + c, lanes), pre = xv * s + t;
          const vec v = relu_backward(acc.r[i][c / kWidth], pre);
          element* out = u + at * u_stride + c;
          store(out, accumulate ? load(out, lanes) + s * v : v, lanes);
          v_sum += v;
          vx_sum += v * (xv - m);
          activated = relu(pre);
        }
        store(a + (row + i) * kPanel + c, activated);
      });
      store(sum_v + c, load(sum_v + c) + v_sum);
      store(sum_vx + c, load(sum_vx + c) + vx_sum);
    });
  }
};

// The backward for op.C of `channels` channels; op.dweight has `channels` inputs.
//
// The input gradient is the convolution of d with the taps flipped. The weight gradient of a flipped tap is the product
// over the positions of a, as it lies, and d, transposed once and read from tap(t) on.
inline void backward(const Conv3x3Bwd& op, int64_t channels, Workspace& workspace) {
  constexpr int64_t kChannels = 64;  // per pass
  const int64_t C = op.C, Cp = padded(C), G = op.G, Gp = padded(G), W = op.shape.W;
  const RowChunks chunks(op.shape);
  const Parts parts(chunks.count);
  const Affine bn(op.norm, C, workspace);
  const float* const mean = padded_copy(op.norm.mean, C, workspace);
  const Correction correction = padded_copy(op.correction_y, G, workspace);
  const PackedTaps packed = Filters(op.weight, G, C, true).pack_taps(workspace);
  const int64_t stride = whole_depth(G), deep = whole_depth(chunks.most()),
                most = whole_depth(chunks.rows * chunks.step);
  const int64_t d_size = chunks.most() * stride, t_size = Gp * deep, a_size = most * kChannels;
  const int64_t size = a_size + floats_of(d_size + t_size + a_size);
  float* const scratch = workspace.floats(parts.workers * size);
  float* const dw = op.dweight ? workspace.floats(parts.count * 9 * G * Cp) : nullptr;  // [parts][9][G][Cp]
  PartialSums sums(parts.count, C, workspace);

  each_part(parts, [&](int64_t w, int64_t part) {
    const TilesInUse tiles;
    float* const a = scratch + w * size;
    factor *const d = reinterpret_cast<factor*>(a + a_size), *const transposed = d + d_size;
    factor* const activated = transposed + t_size;
    for (int64_t i = parts.begin(part); i < parts.end(part); i++) {
      const int64_t pixel = chunks.pixel(i), positions = chunks.positions(i), pixels = chunks.pixels(i);
      float *sum_v = sums.begin_chunk(part), *sum_vx = sum_v + sums.offset_vx();
      chunks.load(i, G, d, stride, [&](int64_t from, factor* row) {  // d = mask * (dy - a - b * (y - mean))
        for (int64_t j = 0; j < W; j++, from++, row += stride) {
          const element *dy = op.dy.data + from * op.dy.stride, *y = op.y.data + from * op.y.stride;
          for_channels(G, [&](int64_t c, auto lanes) {
            const vec centred = load(y + c, lanes) - load(correction.mean + c);
            vec v = load(dy + c, lanes) - load(correction.a + c) - load(correction.b + c) * centred;
            if (op.dropout.threshold) v *= dropout_mask(op.dropout, from * G + c);
            store(row + c, v);
          });
        }
      });
      if (dw) transpose_factors(d, stride, chunks.framed(i), Gp, transposed, deep);
      for (int64_t c0 = 0; c0 < Cp; c0 += kChannels) {
        const int64_t wide = min(kChannels, Cp - c0), depth = whole_depth(positions);
        Prefetcher prefetcher(9 * (Prefetcher::steps_of_factors(positions, wide, G) +
                                   (dw ? Prefetcher::steps_of_factors(G, wide, positions) : 0)));
        const bool last = c0 + kChannels >= Cp;
        if (!last || i + 1 < parts.end(part)) {
          const int64_t next = last ? chunks.pixel(i + 1) : pixel, count = last ? chunks.pixels(i + 1) : pixels;
          const int64_t c = last ? 0 : c0 + kChannels, next_wide = min(kChannels, C - c);
          prefetcher.add(op.x.data + next * op.x.stride + c, op.x.stride, count, next_wide);
          prefetcher.add(op.u.data + next * op.u.stride + c, op.u.stride, count, next_wide);
          if (last) {
            prefetcher.add(op.dy.data + next * op.dy.stride, op.dy.stride, count, G);
            prefetcher.add(op.y.data + next * op.y.stride, op.y.stride, count, G);
          }
        }
        multiply_taps(chunks, positions, d, stride, packed, c0 / kPanel, wide, prefetcher, [&](int64_t n) {
          const int64_t c = c0 + n;
          return MaskPixels{chunks,
                            op.x.data + pixel * op.x.stride + c,
                            op.x.stride,
                            op.u.data + pixel * op.u.stride + c,
                            op.u.stride,
                            op.accumulate,
                            bn.scale + c,
                            bn.shift + c,
                            mean + c,
                            a + n * positions,
                            sum_v + c,
                            sum_vx + c,
                            min(kPanel, C - c)};
        });
        if (!dw) continue;
        for (int64_t n = 0; n < wide; n += kPanel)
          rows_as_factors(a + n * positions, kPanel, positions, kPanel, activated + n * depth);
        for (int t = 0; t < 9; t++)
          gemm_tn(transposed + chunks.tap(t), deep, activated, kPanel, depth * kPanel,
                  dw + (part * 9 + t) * G * Cp + c0, Cp, G, wide, depth, i > parts.begin(part), &prefetcher);
      }
      sums.end_chunk(part);
    }
  });
  sums.finish(op.norm, op.shape.rows(), op.dnorm);
  if (dw) sum_flipped(dw, parts.count, G, C, channels, op.dweight);
}

}  // namespace densenet_fast::cpu::DENSENET_FAST_KERNELS
