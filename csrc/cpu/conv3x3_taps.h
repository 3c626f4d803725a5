// BN-ReLU-conv3x3 and its backward where tiles multiply bfloat16: a product for each tap, of operands that are only
// read at other places. Contract: densenet_fast/contract/operations.py.
#pragma once

#include "bn_relu.h"
#include "conv3x3_filters.h"
#include "dropout.h"
#include "in_floats.h"
#include "statistics.h"
#include "sums.h"

namespace densenet_fast::cpu::DENSENET_FAST_KERNELS {

// Cuts images into chunks of a few rows. In memory a chunk is one sequence of pixels, with a row of zeros or of the
// image above it and below, and one zero pixel between rows, which is right of one and left of the next. So position p
// of the outputs, counted alike from the chunk's first pixel on, needs pixel p + tap(t) for tap t; each row's last
// position is none of the image.
struct RowChunks {
  static constexpr int64_t kPositions = 448;  // of a chunk, about
  Shape shape;
  int64_t step;  // positions from a row to the next
  int64_t rows, per_image, count;

  explicit RowChunks(const Shape& shape) : shape(shape), step(shape.W + 1) {
    const int64_t threads = shape.rows() > kFewRows ? thread_count() : 1;  // which otherwise divide the channels
    const int64_t wanted = max(ceil_div(shape.H * step, kPositions), ceil_div(threads, shape.N));
    rows = ceil_div(shape.H, wanted);
    per_image = ceil_div(shape.H, rows);
    count = shape.N * per_image;
  }
  int64_t top(int64_t i) const { return i % per_image * rows; }  // row of its image
  int64_t height(int64_t i) const { return min(rows, shape.H - top(i)); }
  int64_t pixel(int64_t i) const { return (i / per_image * shape.H + top(i)) * shape.W; }
  int64_t pixels(int64_t i) const { return height(i) * shape.W; }
  int64_t positions(int64_t i) const { return height(i) * step - 1; }
  int64_t tap(int t) const { return t / 3 * step + t % 3; }
  // Pixels in memory of a chunk; and with those that the last tiles read behind it.
  int64_t framed(int64_t i) const { return (height(i) + 2) * step + 1; }
  int64_t most() const { return whole_depth(rows * step) + 2 * step + 2 + kHeight; }

  // Chunk i at a [most()][stride]: load_row(pixel, row) writes the channels of a row's W pixels, with zeros up to a
  // whole vector.
  template <class LoadRow>
  void load(int64_t i, int64_t channels, factor* a, int64_t stride, const LoadRow& load_row) const {
    const int64_t image = i / per_image * shape.H;
    for (int64_t h = top(i) - 1; h <= top(i) + height(i); h++, a += step * stride) {
      const bool inside = h >= 0 && h < shape.H;
      memset(a, 0, (inside ? 1 : step) * stride * sizeof(factor));
      if (!inside) continue;
      load_row((image + h) * shape.W, a + stride);
      fill_depth(a + stride, stride, shape.W, channels);
    }
    memset(a, 0, stride * sizeof(factor));
  }

  // f(row, pixel) for the rows [row, row + count) of an accumulator that hold positions [first, first + count): pixel
  // from the chunk's first on, or -1 for a position that is none.
  template <class F>
  DENSENET_FAST_INLINE void each_pixel(int64_t first, int count, const F& f) const {
    int64_t above = first / step, left = first % step;
    for (int i = 0; i < count; i++) {
      f(i, left < shape.W ? first + i - above : -1);
      if (++left == step) left = 0, above++;
    }
  }
};

// Sums, over all taps, of products with an epilogue for each panel of outputs.
template <class EpilogueOf>
DENSENET_FAST_INLINE void multiply_taps(const RowChunks& chunks, int64_t positions, const factor* a, int64_t stride,
                                        PackedPairs packed, int64_t first_panel, int64_t outputs,
                                        Prefetcher& prefetcher, const EpilogueOf& epilogue_of) {
  const int64_t panel = packed.depth * kPanel;
  multiply_blocks(
      positions, outputs,
      [&](auto high, auto broad, int64_t row, int64_t n) __attribute__((always_inline)) {
        for (int t = 0; t < 9; t++)
          add_tiles<decltype(high)::value, decltype(broad)::value>(
              a + (row + chunks.tap(t)) * stride, stride,
              packed.data + t * packed.plane + (first_panel + n / kPanel) * panel, panel, packed.depth, &prefetcher);
      },
      epilogue_of);
}

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
  const PackedPairs packed = Filters(op.weight, op.G, op.C, false).pack_pairs(workspace);
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
  const PackedPairs packed = Filters(op.weight, G, C, true).pack_pairs(workspace);
  const int64_t stride = whole_depth(G), deep = whole_depth(chunks.most()),
                most = whole_depth(chunks.rows * chunks.step);
  const int64_t d_size = chunks.most() * stride, t_size = Gp * deep, a_size = most * kChannels;
  const int64_t size = a_size + (d_size + t_size + a_size) / kPair;  // floats
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
