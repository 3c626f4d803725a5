// Winograd's convolution: size x size outputs from (size + 2)^2 inputs, with as many products where the direct
// convolution has 9 for each output; F(2x2, 3x3) has 4, F(3x3, 3x3) 2.8.
// Source: Lavin and Gray, "Fast algorithms for convolutional neural networks", 2016. What the points at which its
// polynomials meet do to rounding: Barabasz et al., "Error analysis and improving the accuracy of Winograd convolution
// for deep neural networks", 2020, and docs/internals/cpu.md.
//
// Planes: a transformed tile has (size + 2)^2 values per channel, plane e at p + e * plane. The distance between planes
// is an odd number of cache lines, or the streams would meet in a few sets of the cache.
#pragma once

#include "conv3x3_tiles.h"

namespace densenet_fast::cpu::DENSENET_FAST_KERNELS {

// The transforms along one axis. For tiles of inputs d, filters g and outputs y: y = A^T ((G g) * (B^T d)).
template <int size>
struct Winograd;

// Points 0, 1, -1 and infinity. The factors are 1/2 and 1/4, so small integers stay exact; the error is below that of
// PyTorch's direct convolution.
template <>
struct Winograd<2> {
  static constexpr int kValues = 16;

  static DENSENET_FAST_INLINE void input(const vec d[4], vec t[4]) {
    t[0] = d[0] - d[2];
    t[1] = d[1] + d[2];
    t[2] = d[2] - d[1];
    t[3] = d[1] - d[3];
  }
  static DENSENET_FAST_INLINE void filter(const vec g[3], vec u[4]) {
    const vec half = splat(.5f), even = (g[0] + g[2]) * half, odd = g[1] * half;
    u[0] = g[0];
    u[1] = even + odd;
    u[2] = even - odd;
    u[3] = g[2];
  }
  static DENSENET_FAST_INLINE void filter_transposed(const vec u[4], vec g[3]) {
    const vec half = splat(.5f), even = (u[1] + u[2]) * half;
    g[0] = u[0] + even;
    g[1] = (u[1] - u[2]) * half;
    g[2] = even + u[3];
  }
  static DENSENET_FAST_INLINE void output(const vec m[4], vec y[2]) {
    y[0] = m[0] + m[1] + m[2];
    y[1] = m[1] - m[2] - m[3];
  }
  static DENSENET_FAST_INLINE void output_transposed(const vec y[2], vec m[4]) {
    m[0] = y[0];
    m[1] = y[0] + y[1];
    m[2] = y[0] - y[1];
    m[3] = -y[1];
  }
};

// Points p, -p, q, -q and infinity. How exact it is depends on them: with the integers 0, 1, -1 and 2 the error would
// be twice as large as with these, of which it is about that of a direct convolution (benchmarks/winograd.py).
template <>
struct Winograd<3> {
  static constexpr int kValues = 25;

  static DENSENET_FAST_INLINE void input(const vec d[5], vec t[5]) {
    const vec even_p = p * (d[2] - q2 * d[0]), odd_p = d[3] - q2 * d[1];
    const vec even_q = q * (d[2] - p2 * d[0]), odd_q = d[3] - p2 * d[1];
    t[0] = even_p + odd_p;
    t[1] = even_p - odd_p;
    t[2] = even_q + odd_q;
    t[3] = even_q - odd_q;
    t[4] = p2 * q2 * d[0] - (p2 + q2) * d[2] + d[4];
  }
  static DENSENET_FAST_INLINE void filter(const vec g[3], vec u[5]) {
    const vec even_p = g[0] + p2 * g[2], odd_p = p * g[1], even_q = g[0] + q2 * g[2], odd_q = q * g[1];
    u[0] = at_p(even_p + odd_p);
    u[1] = at_p(even_p - odd_p);
    u[2] = at_q(even_q + odd_q);
    u[3] = at_q(even_q - odd_q);
    u[4] = g[2];
  }
  static DENSENET_FAST_INLINE void filter_transposed(const vec u[5], vec g[3]) {
    const vec even_p = at_p(u[0] + u[1]), odd_p = at_p(u[0] - u[1]);
    const vec even_q = at_q(u[2] + u[3]), odd_q = at_q(u[2] - u[3]);
    g[0] = even_p + even_q;
    g[1] = p * odd_p + q * odd_q;
    g[2] = p2 * even_p + q2 * even_q + u[4];
  }
  static DENSENET_FAST_INLINE void output(const vec m[5], vec y[3]) {
    const vec even_p = m[0] + m[1], even_q = m[2] + m[3];
    y[0] = even_p + even_q;
    y[1] = p * (m[0] - m[1]) + q * (m[2] - m[3]);
    y[2] = p2 * even_p + q2 * even_q + m[4];
  }
  static DENSENET_FAST_INLINE void output_transposed(const vec y[3], vec m[5]) {
    const vec even_p = y[0] + p2 * y[2], odd_p = p * y[1], even_q = y[0] + q2 * y[2], odd_q = q * y[1];
    m[0] = even_p + odd_p;
    m[1] = even_p - odd_p;
    m[2] = even_q + odd_q;
    m[3] = even_q - odd_q;
    m[4] = y[2];
  }

 private:
  static constexpr float p = 3 / 8., q = 5 / 4., p2 = p * p, q2 = q * q;
  // Divided by the product of a point's distances from the others, in two parts: a factor that were rounded to a float
  // would err in the same direction for all values, and the error of a mean of many would not average out.
  static DENSENET_FAST_INLINE vec divided(vec v, double by) {
    const float high = static_cast<float>(1 / by), low = static_cast<float>(1 / by - high);
    return v * high + v * low;
  }
  static DENSENET_FAST_INLINE vec at_p(vec v) { return divided(v, 2. * p * (p2 - q2)); }
  static DENSENET_FAST_INLINE vec at_q(vec v) { return divided(v, 2. * q * (q2 - p2)); }
};

// A transform `along` one axis, along both of a square: read(i, j) of [from][from], write(i, j, v) of [to][to].
template <int from, int to, class Along, class Read, class Write>
DENSENET_FAST_INLINE void along_both(const Along& along, const Read& read, const Write& write) {
  vec half[to][from];
  for (int j = 0; j < from; j++) {
    vec column[from], t[to];
    for (int i = 0; i < from; i++) column[i] = read(i, j);
    along(column, t);
    for (int i = 0; i < to; i++) half[i][j] = t[i];
  }
  for (int i = 0; i < to; i++) {
    vec t[to];
    along(half[i], t);
    for (int j = 0; j < to; j++) write(i, j, t[j]);
  }
}

// V = B^T d B of the patch d whose rows begin at row[0 .. size + 1], pixels `pixel` apart.
template <int size>
DENSENET_FAST_INLINE void winograd_input(const float* const row[], int64_t pixel, int64_t c, float* V, int64_t plane) {
  constexpr int n = size + 2;
  along_both<n, n>(
      Winograd<size>::input, [&](int i, int j) { return load(row[i] + j * pixel + c); },
      [&](int i, int j, vec v) { store(V + (n * i + j) * plane + c, v); });
}

// y = A^T m A, the outputs of a tile.
template <int size>
DENSENET_FAST_INLINE void winograd_output(const float* m, int64_t plane, int64_t c, vec y[size][size]) {
  constexpr int n = size + 2;
  along_both<n, size>(
      Winograd<size>::output, [&](int i, int j) { return load(m + (n * i + j) * plane + c); },
      [&](int i, int j, vec v) { y[i][j] = v; });
}

// E = A a A^T of a tile's values: the other side of the weight gradient.
template <int size>
DENSENET_FAST_INLINE void winograd_output_transposed(const vec a[size][size], float* E, int64_t plane, int64_t c) {
  constexpr int n = size + 2;
  along_both<size, n>(
      Winograd<size>::output_transposed, [&](int i, int j) { return a[i][j]; },
      [&](int i, int j, vec v) { store(E + (n * i + j) * plane + c, v); });
}

// U = G g G^T of kWidth filters at once: g [3][3] vectors -> u [size + 2][size + 2] vectors.
template <int size>
DENSENET_FAST_INLINE void winograd_filter(const vec g[9], vec u[]) {
  constexpr int n = size + 2;
  along_both<3, n>(
      Winograd<size>::filter, [&](int i, int j) { return g[3 * i + j]; },
      [&](int i, int j, vec v) { u[n * i + j] = v; });
}

// Its transpose: dU -> dg.
template <int size>
DENSENET_FAST_INLINE void winograd_filter_transposed(const vec u[], vec g[9]) {
  constexpr int n = size + 2;
  along_both<n, 3>(
      Winograd<size>::filter_transposed, [&](int i, int j) { return u[n * i + j]; },
      [&](int i, int j, vec v) { g[3 * i + j] = v; });
}

// Floats from plane to plane of [rows, columns].
inline int64_t plane_size(int64_t rows, int64_t columns) {
  const int64_t size = round_up(rows * columns, kPanel);
  return size / kPanel % 2 ? size : size + kPanel;
}

// for_tile_rows with the rows transformed: V [values][tiles][stride] of the chunk that begins at `first`.
template <int size, class LoadRow>
inline void winograd_inputs(const TileGrid<size>& grid, int64_t first, int64_t last, int64_t channels, int64_t stride,
                            float* ring, float* V, int64_t plane, const LoadRow& load_row) {
  for_tile_rows(grid, first, last, stride, ring, load_row, [&](int64_t t, float* const* rows) {
    for (int64_t j = 0; j < grid.tile_columns; j++) {
      const float* at[size + 2];
      for (int i = 0; i < size + 2; i++) at[i] = rows[i] + size * j * stride;
      float* v = V + ((t - first) * grid.tile_columns + j) * stride;
      for (int64_t c = 0; c < channels; c += kWidth) winograd_input<size>(at, stride, c, v, plane);
    }
  });
}

}  // namespace densenet_fast::cpu::DENSENET_FAST_KERNELS
