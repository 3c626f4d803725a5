// 3x3 convolutions on tiles: a product for each tap, of operands that are only read at other places.
#pragma once

#include "bn_relu.h"
#include "conv3x3_filters.h"

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
                                        PackedTaps packed, int64_t first_panel, int64_t outputs, Prefetcher& prefetcher,
                                        const EpilogueOf& epilogue_of) {
  const int64_t panel = packed.depth * kPanel;
  multiply_blocks(
      positions, outputs,
      [&](auto high, auto broad, int64_t row, int64_t n) __attribute__((always_inline)) {
        constexpr int R = decltype(high)::value, N = decltype(broad)::value;
        const factor* const panels = packed.data + (first_panel + n / kPanel) * panel;
        for (int t = 0; t < 9; t++)
          add_tiles<R, N, Of::small_terms>(a + (row + chunks.tap(t)) * stride, stride, panels + t * packed.plane, panel,
                                           packed.depth, nullptr);
        for (int t = 0; t < 9; t++)
          add_tiles<R, N, Of::first_terms>(a + (row + chunks.tap(t)) * stride, stride, panels + t * packed.plane, panel,
                                           packed.depth, &prefetcher);
      },
      [&](int64_t row, int64_t n, int count, auto* sums) {
        for (int t = 0; t < 9; t++)
          add_floats(a + (row + chunks.tap(t)) * stride, stride,
                     packed.data + t * packed.plane + (first_panel + n / kPanel) * panel, packed.depth, count, sums);
      },
      epilogue_of);
}

}  // namespace densenet_fast::cpu::DENSENET_FAST_KERNELS
