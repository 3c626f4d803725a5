// Winograd's F(2x2, 3x3): two outputs per axis from four inputs with 16 instead of 36 products per tile.
// Source: Lavin and Gray, "Fast algorithms for convolutional neural networks", 2016. Its factors are 1/2 and 1/4, so
// small integers stay exact; the error is below that of PyTorch's direct convolution (docs/internals/cpu.md).
//
// Planes: a transformed tile has 16 values per channel, plane e at p + e * plane. The distance between planes is an
// odd number of cache lines, or the 16 streams would meet in a few sets of the cache.
#pragma once

#include "gemm.h"
#include "schedule.h"

namespace densenet_fast::cpu::DENSENET_FAST_ISA {

// Floats from plane to plane of [rows, columns].
inline int64_t plane_size(int64_t rows, int64_t columns) {
  const int64_t size = round_up(rows * columns, kPanel);
  return size / kPanel % 2 ? size : size + kPanel;
}

// V = B^T d B of the 4x4 patch d whose rows begin at row[0..3], pixels `pixel` apart.
DENSENET_FAST_INLINE void winograd_input(const float* const row[4], int64_t pixel, int64_t c, float* V, int64_t plane) {
  vec t[4][4];
  for (int j = 0; j < 4; j++) {
    const int64_t at = j * pixel + c;
    const vec d0 = load(row[0] + at), d1 = load(row[1] + at), d2 = load(row[2] + at), d3 = load(row[3] + at);
    t[0][j] = d0 - d2;
    t[1][j] = d1 + d2;
    t[2][j] = d2 - d1;
    t[3][j] = d1 - d3;
  }
  for (int i = 0; i < 4; i++) {
    float* v = V + 4 * i * plane + c;
    store(v, t[i][0] - t[i][2]);
    store(v + plane, t[i][1] + t[i][2]);
    store(v + 2 * plane, t[i][2] - t[i][1]);
    store(v + 3 * plane, t[i][1] - t[i][3]);
  }
}

// y = A^T m A, the 2x2 outputs of a tile.
DENSENET_FAST_INLINE void winograd_output(const float* m, int64_t plane, int64_t c, vec y[2][2]) {
  vec t[2][4];
  for (int j = 0; j < 4; j++) {
    const float* p = m + j * plane + c;
    const vec m0 = load(p), m1 = load(p + 4 * plane), m2 = load(p + 8 * plane), m3 = load(p + 12 * plane);
    t[0][j] = m0 + m1 + m2;
    t[1][j] = m1 - m2 - m3;
  }
  for (int i = 0; i < 2; i++) {
    y[i][0] = t[i][0] + t[i][1] + t[i][2];
    y[i][1] = t[i][1] - t[i][2] - t[i][3];
  }
}

// E = A a A^T of a tile's 2x2 values: the other side of the weight gradient.
DENSENET_FAST_INLINE void winograd_output_transposed(const vec a[2][2], float* E, int64_t plane, int64_t c) {
  const vec rows[4][2] = {{a[0][0], a[0][1]},
                          {a[0][0] + a[1][0], a[0][1] + a[1][1]},
                          {a[0][0] - a[1][0], a[0][1] - a[1][1]},
                          {-a[1][0], -a[1][1]}};
  for (int i = 0; i < 4; i++) {
    float* e = E + 4 * i * plane + c;
    store(e, rows[i][0]);
    store(e + plane, rows[i][0] + rows[i][1]);
    store(e + 2 * plane, rows[i][0] - rows[i][1]);
    store(e + 3 * plane, -rows[i][1]);
  }
}

// U = Gm g Gm^T of kWidth 3x3 filters at once: g [9] vectors -> u [16] vectors.
DENSENET_FAST_INLINE void winograd_weight(const vec g[9], vec u[16]) {
  const vec half = splat(.5f);
  vec t[4][3];
  for (int j = 0; j < 3; j++) {
    const vec even = (g[j] + g[6 + j]) * half, odd = g[3 + j] * half;
    t[0][j] = g[j];
    t[1][j] = even + odd;
    t[2][j] = even - odd;
    t[3][j] = g[6 + j];
  }
  for (int i = 0; i < 4; i++) {
    const vec even = (t[i][0] + t[i][2]) * half, odd = t[i][1] * half;
    u[4 * i] = t[i][0];
    u[4 * i + 1] = even + odd;
    u[4 * i + 2] = even - odd;
    u[4 * i + 3] = t[i][2];
  }
}

// Its transpose: dU [16] vectors -> dg [9] vectors.
DENSENET_FAST_INLINE void winograd_weight_transposed(const vec u[16], vec g[9]) {
  const vec half = splat(.5f);
  vec t[3][4];
  for (int j = 0; j < 4; j++) {
    const vec even = (u[4 + j] + u[8 + j]) * half;
    t[0][j] = u[j] + even;
    t[1][j] = (u[4 + j] - u[8 + j]) * half;
    t[2][j] = even + u[12 + j];
  }
  for (int i = 0; i < 3; i++) {
    const vec even = (t[i][1] + t[i][2]) * half;
    g[3 * i] = t[i][0] + even;
    g[3 * i + 1] = (t[i][1] - t[i][2]) * half;
    g[3 * i + 2] = even + t[i][3];
  }
}

// Up to this many pixels the threads divide the channels, not the pixels (divide_channels): transforming and packing
// the filters costs more than the work that each thread then repeats.
constexpr int64_t kFewRows = 256;

// Cuts the images into rows of 2x2 tiles, one sequence over the whole batch, and that into chunks of about kTiles
// tiles. A chunk may span images; the number of chunks is a multiple of the thread count.
struct TileGrid {
  static constexpr int64_t kTiles = 56;
  Shape shape;
  int64_t tile_rows, tile_columns;  // per image
  int64_t all_rows, chunk_rows, chunks;

  explicit TileGrid(const Shape& shape)
      : shape(shape), tile_rows(ceil_div(shape.H, 2)), tile_columns(ceil_div(shape.W, 2)) {
    all_rows = shape.N * tile_rows;
    const int64_t wanted = round_up(ceil_div(all_rows * tile_columns, kTiles), thread_count());
    chunk_rows = max(1, ceil_div(all_rows, wanted));
    chunks = ceil_div(all_rows, chunk_rows);
  }
  // The outputs of a tile share rounding errors, so the mean of an image of one tile would be less exact than a direct
  // convolution's (docs/internals/cpu.md): such images take the direct kernel.
  bool one_tile() const { return tile_rows * tile_columns == 1; }
  int64_t begin(int64_t chunk) const { return chunk * chunk_rows; }
  int64_t end(int64_t chunk) const { return min(all_rows, (chunk + 1) * chunk_rows); }
  int64_t image(int64_t tile_row) const { return tile_row / tile_rows; }
  int64_t top(int64_t tile_row) const { return tile_row % tile_rows * 2; }  // image row of the tile row's first row
  // The pixel [0, M) where a tile row begins; M behind the last.
  int64_t pixel(int64_t tile_row) const {
    if (tile_row == all_rows) return shape.rows();
    return (image(tile_row) * shape.H + top(tile_row)) * shape.W;
  }
  int64_t chunk_pixels(int64_t chunk) const { return pixel(end(chunk)) - pixel(begin(chunk)); }
  // Pixels of a padded image row: a column of zeros on the left, one or two on the right.
  int64_t row_pixels() const { return 2 * tile_columns + 2; }
};

// visit(tile_row, rows) for the tile rows of [first, last): rows[0..3] are the padded image rows top-1 .. top+2,
// [row_pixels()][stride], in a ring of four; load_row(first_pixel, row) writes the W pixels of one.
template <class LoadRow, class Visit>
DENSENET_FAST_INLINE void for_tile_rows(const TileGrid& grid, int64_t first, int64_t last, int64_t stride, float* ring,
                                        const LoadRow& load_row, const Visit& visit) {
  const int64_t H = grid.shape.H, W = grid.shape.W, row_size = grid.row_pixels() * stride;
  float* rows[4] = {ring, ring + row_size, ring + 2 * row_size, ring + 3 * row_size};
  for (int64_t t = first; t < last; t++) {
    const int64_t top = grid.top(t), image_pixel = grid.image(t) * H * W;
    int fresh = 0;
    if (t > first && top > 0) {  // the upper two rows are the lower two of the tile row above
      for (int i = 0; i < 2; i++) {
        float* row = rows[i];
        rows[i] = rows[i + 2];
        rows[i + 2] = row;
      }
      fresh = 2;
    }
    for (int i = fresh; i < 4; i++) {
      const int64_t h = top - 1 + i;
      if (h < 0 || h >= H) {
        memset(rows[i], 0, row_size * sizeof(float));
        continue;
      }
      memset(rows[i], 0, stride * sizeof(float));
      memset(rows[i] + (W + 1) * stride, 0, (grid.row_pixels() - W - 1) * stride * sizeof(float));
      load_row(image_pixel + h * W, rows[i] + stride);
    }
    visit(t, rows);
  }
}

// for_tile_rows with the rows transformed: V [16][tiles][stride] of the chunk that begins at `first`.
template <class LoadRow>
inline void winograd_inputs(const TileGrid& grid, int64_t first, int64_t last, int64_t channels, int64_t stride,
                            float* ring, float* V, int64_t plane, const LoadRow& load_row) {
  for_tile_rows(grid, first, last, stride, ring, load_row, [&](int64_t t, float* const* rows) {
    for (int64_t j = 0; j < grid.tile_columns; j++) {
      const float* const at[4] = {rows[0] + 2 * j * stride, rows[1] + 2 * j * stride, rows[2] + 2 * j * stride,
                                  rows[3] + 2 * j * stride};
      float* v = V + ((t - first) * grid.tile_columns + j) * stride;
      for (int64_t c = 0; c < channels; c += kWidth) winograd_input(at, stride, c, v, plane);
    }
  });
}

// Filters packed in panels of outputs, in one plane for each of Winograd's 16 values or of the 9 taps.
struct PackedFilters {
  const float* data;  // [planes][padded(outputs) / kPanel][inputs][kPanel]
  int64_t plane;      // floats from one plane to the next
};

// The filters of the convolution with `weight` [G, C, 3, 3], outputs G and inputs C, or of the transposed convolution:
// outputs C, inputs G, taps flipped in both axes.
class Filters {
 public:
  Filters(const Weight& weight, int64_t G, int64_t C, bool transposed)
      : data_(weight.data),
        outputs_(transposed ? C : G),
        inputs_(transposed ? G : C),
        out_stride_(weight.stride[transposed]),
        in_stride_(weight.stride[!transposed]),
        dense_(weight.stride[2] == 3 && weight.stride[3] == 1),
        flipped_(transposed) {
    for (int tap = 0; tap < 9; tap++)
      offset_[flipped_ ? 8 - tap : tap] = tap / 3 * weight.stride[2] + tap % 3 * weight.stride[3];
  }

  // Transformed by Winograd.
  PackedFilters pack_winograd(Workspace& workspace) const {
    return pack<16>(workspace, [](const vec g[9], vec u[16]) { winograd_weight(g, u); });
  }
  // The taps themselves, for the direct kernel.
  PackedFilters pack_direct(Workspace& workspace) const {
    return pack<9>(workspace, [](const vec g[9], vec u[9]) { memcpy(u, g, 9 * sizeof(vec)); });
  }

 private:
  // transform(g, u) makes the planes' values u from the taps g of kWidth filters.
  template <int planes, class Transform>
  PackedFilters pack(Workspace& workspace, const Transform& transform) const {
    const int64_t plane = plane_size(padded(outputs_), inputs_), blocks = ceil_div(inputs_, kWidth);
    float* packed = workspace.floats(planes * plane);
    const auto pack_block = [&](int64_t i) {
      const int64_t n = i / blocks * kPanel, k = i % blocks * kWidth, count = min(kWidth, inputs_ - k);
      for (int64_t j = 0; j < kPanel; j += kWidth) {
        vec taps[kWidth][9], u[planes];
        read(n + j, k, count, taps);
        for (int64_t in = 0; in < count; in++) {
          transform(taps[in], u);
          for (int e = 0; e < planes; e++) store(packed + e * plane + n * inputs_ + (k + in) * kPanel + j, u[e]);
        }
      }
    };
    parallel_ranges(padded(outputs_) / kPanel * blocks, kGrain / (16 * kPanel * kWidth),
                    [&](int64_t first, int64_t last) {
                      for (int64_t i = first; i < last; i++) pack_block(i);
                    });
    return {packed, plane};
  }

  // taps[i][tap] of outputs [out, out + kWidth), zero past the last, and inputs [in, in + count), count <= kWidth. Read
  // along the dimension that lies side by side in memory, and transposed if that is not the outputs.
  void read(int64_t out, int64_t in, int64_t count, vec taps[kWidth][9]) const {
    const float* const p = data_ + out * out_stride_ + in * in_stride_;
    const int64_t outputs = max(0, min(kWidth, outputs_ - out));
    vec columns[kWidth];
    if (dense_ && !flipped_ && in_stride_ == 9) {
      for (int64_t i = 0; i < 9 * count; i += kWidth)
        load_columns(p + i, out_stride_, outputs, min(kWidth, 9 * count - i), taps[0] + i);
    } else if (in_stride_ == 1) {
      for (int tap = 0; tap < 9; tap++) {
        load_columns(p + offset_[tap], out_stride_, outputs, count, columns);
        for (int64_t i = 0; i < count; i++) taps[i][tap] = columns[i];
      }
    } else if (out_stride_ == 1) {
      const FirstLanes lanes{static_cast<int>(outputs)};
      for (int64_t i = 0; i < count; i++)
        for (int tap = 0; tap < 9; tap++)
          taps[i][tap] = outputs == kWidth ? load(p + i * in_stride_ + offset_[tap])
                                           : load(p + i * in_stride_ + offset_[tap], lanes);
    } else if (dense_) {
      for (int64_t i = 0; i < count; i++)
        for (int first = 0; first < 9; first += kWidth) {
          const int64_t n = min(kWidth, 9 - first);
          load_columns(p + i * in_stride_ + first, out_stride_, outputs, n, columns);
          for (int64_t t = 0; t < n; t++) taps[i][flipped_ ? 8 - first - t : first + t] = columns[t];
        }
    } else {
      for (int64_t i = 0; i < count; i++)
        for (int tap = 0; tap < 9; tap++)
          for (int64_t j = 0; j < kWidth; j++)
            taps[i][tap][j] = j < outputs ? p[i * in_stride_ + j * out_stride_ + offset_[tap]] : 0;
    }
  }

  const float* data_;
  int64_t outputs_, inputs_, out_stride_, in_stride_, offset_[9];
  bool dense_, flipped_;  // whether the taps lie side by side; whether their order is reversed
};

// Direct convolution of the tile rows [first, last) of one block of input channels: y [tile row][2][W][y_stride] = or
// += the sum of nine products. `packed` points at the block's first input in the first panel; panels are `panel` floats
// apart.
template <class LoadRow>
inline void direct_outputs(const TileGrid& grid, int64_t first, int64_t last, int64_t inputs, int64_t stride,
                           float* ring, PackedFilters packed, int64_t panel, int64_t outputs, float* y,
                           int64_t y_stride, bool add, const LoadRow& load_row) {
  const int64_t W = grid.shape.W;
  for_tile_rows(grid, first, last, stride, ring, load_row, [&](int64_t t, float* const* rows) {
    for (int i = 0; i < 2; i++) {
      bool more = add;
      for (int tap = 0; tap < 9; tap++) {
        const int row = tap / 3, column = tap % 3;
        if ((grid.shape.H == 1 && row != 1) || (W == 1 && column != 1)) continue;  // nothing but padding
        gemm_nn(rows[i + row] + column * stride, stride, packed.data + tap * packed.plane, panel,
                y + ((t - first) * 2 + i) * W * y_stride, y_stride, W, padded(outputs), inputs, more);
        more = true;
      }
    }
  });
}

}  // namespace densenet_fast::cpu::DENSENET_FAST_ISA
