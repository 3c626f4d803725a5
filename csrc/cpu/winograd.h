// Winograd's F(2x2, 3x3): two outputs per axis from four inputs with 16 instead of 36 products per tile.
// Source: Lavin and Gray, "Fast algorithms for convolutional neural networks", 2016. Its factors are 1/2 and 1/4, so
// small integers stay exact; the error is below that of PyTorch's direct convolution (docs/internals/cpu.md).
//
// Planes: a transformed tile has 16 values per channel, plane e at p + e * plane. The distance between planes is an
// odd number of cache lines, or the 16 streams would meet in a few sets of the cache.
#pragma once

#include "conv3x3_tiles.h"

namespace densenet_fast::cpu::DENSENET_FAST_KERNELS {

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

}  // namespace densenet_fast::cpu::DENSENET_FAST_KERNELS
