// Matrices of elements where products want floats: floats themselves, or copies in scratch.
#pragma once

#include "gemm.h"

namespace densenet_fast::cpu::DENSENET_FAST_KERNELS {

template <class number_t>
struct Floats {
  number_t* data;
  int64_t stride;
};

// Floats of scratch for each row of that many elements.
inline int64_t scratch_of(int64_t columns) { return kInPlace ? 0 : padded(columns); }

// x [rows, columns] to be read; scratch [rows, scratch_of(columns)].
inline Floats<const float> read_floats(const float* x, int64_t stride, int64_t, int64_t, float*) { return {x, stride}; }
template <class narrow>
inline Floats<const float> read_floats(const narrow* x, int64_t stride, int64_t rows, int64_t columns, float* scratch) {
  for (int64_t r = 0; r < rows; r++)
    for_channels(columns, [&](int64_t c, auto lanes) {
      store(scratch + r * padded(columns) + c, load(x + r * stride + c, lanes));
    });
  return {scratch, padded(columns)};
}

inline int64_t floats_of(int64_t factors) { return ceil_div(factors * sizeof(factor), sizeof(float)); }
inline factor* factors(int64_t count, Workspace& workspace) {
  return reinterpret_cast<factor*>(workspace.floats(floats_of(count)));
}

// Zeros behind the `channels` of rows of A, which are a whole number of vectors, up to whole_depth(channels).
inline void fill_depth(factor* a, int64_t a_stride, int64_t rows, int64_t channels) {
  for (int64_t c = round_up(channels, kWidth); c < whole_depth(channels); c += kWidth)
    for (int64_t r = 0; r < rows; r++) put(a + r * a_stride, a_stride, c, vec{});
}

// And of scratch for their factors.
inline int64_t factors_of(int64_t columns) { return round_up(columns, max(kPanel, kDepthUnit)); }
inline int64_t scratch_of_factors(int64_t columns) { return kPair == 1 ? 0 : floats_of(factors_of(columns)); }

// x [rows, columns] as products of factors want it: floats, with zeros up to a whole vector, as they are; scratch
// [rows, factors_of(columns)] of others.
inline Floats<const float> as_factors(const float* x, int64_t stride, int64_t, int64_t, float*) { return {x, stride}; }
template <class narrow>
inline Floats<const narrow> as_factors(const float* x, int64_t stride, int64_t rows, int64_t columns, narrow* scratch) {
  const int64_t wide = factors_of(columns);
  for (int64_t r = 0; r < rows; r++)
    for (int64_t c = 0; c < wide; c += kWidth) {
      const FirstLanes lanes{static_cast<int>(max(0, min(kWidth, columns - c)))};
      put(scratch + r * wide, wide, c, load(x + r * stride + c, lanes));
    }
  return {scratch, wide};
}

// x [rows, columns] as a sum of products over its rows wants it: as it is, or rows r and r + 1 interleaved in scratch,
// with zeros for the rows that whole units of depth lack.
inline Floats<const float> rows_as_factors(const float* x, int64_t stride, int64_t, int64_t, float*) {
  return {x, stride};
}
#if defined(DENSENET_FAST_PAIRS)
// Rows r and r + 1, zero where x has no more.
template <class number_t>
DENSENET_FAST_INLINE uvec pairs_of_rows(const number_t* x, int64_t stride, int64_t r, int64_t rows) {
  const vec first = r < rows ? load(x + r * stride) : vec{};
  return pairs_of(first, r + 1 < rows ? load(x + (r + 1) * stride) : vec{});
}
inline Floats<const bfloat16> rows_as_factors(const float* x, int64_t stride, int64_t rows, int64_t columns,
                                              bfloat16* scratch) {
  for (int64_t r = 0; r < whole_depth(rows); r += kPair)
    for (int64_t c = 0; c < padded(columns); c += kWidth)
      store_pairs(scratch + r * padded(columns) + kPair * c, pairs_of_rows(x + c, stride, r, rows));
  return {scratch, padded(columns)};
}
#endif
#if defined(DENSENET_FAST_TERMS)
// Of one panel.
inline Floats<const Terms> rows_as_factors(const float* x, int64_t stride, int64_t rows, int64_t, Terms* scratch) {
  const auto row = [&](int64_t r, int64_t c) { return r < rows ? load(x + r * stride + c) : vec{}; };
  for (int64_t r = 0; r < whole_depth(rows); r += kPair)
    for (int64_t c = 0; c < kPanel; c += kWidth) put_pairs(scratch, r, c, row(r, c), row(r + 1, c));
  return {scratch, kPanel};
}
#endif

// And as the transposed operand of such a sum wants it: the same, or for tiles transposed.
#if defined(DENSENET_FAST_TILES)
// to [padded(columns)][deep], deep a multiple of whole units, with zeros behind the rows.
template <class number_t>
inline void transpose_factors(const number_t* x, int64_t stride, int64_t rows, int64_t columns, bfloat16* to,
                              int64_t deep) {
  for (int64_t c = 0; c < padded(columns); c += kWidth)
    for (int64_t r = 0; r < deep; r += kPair * kWidth) {
      vec pairs[kWidth];
      for (int i = 0; i < kWidth; i++)
        pairs[i] = reinterpret_cast<vec>(pairs_of_rows(x + c, stride, r + kPair * i, rows));
      transpose(pairs);
      for (int i = 0; i < kWidth; i++) store_pairs(to + (c + i) * deep + r, reinterpret_cast<uvec>(pairs[i]));
    }
}
#if defined(DENSENET_FAST_TERMS)
inline void transpose_factors(const float* x, int64_t stride, int64_t rows, int64_t columns, Terms* to, int64_t deep) {
  for (int64_t c = 0; c < padded(columns); c += kWidth)
    for (int64_t r = 0; r < deep; r += kWidth) {
      vec block[kWidth];
      for (int i = 0; i < kWidth; i++) block[i] = r + i < rows ? load(x + (r + i) * stride + c) : vec{};
      transpose(block);
      for (int i = 0; i < kWidth; i++) put(to + (c + i) * deep, deep, r, block[i]);
    }
}
#endif
inline Floats<const factor> columns_as_factors(const float* x, int64_t stride, int64_t rows, int64_t columns,
                                               factor* scratch) {
  const int64_t deep = whole_depth(rows);
  transpose_factors(x, stride, rows, columns, scratch, deep);
  return {scratch, deep};
}
#else
inline Floats<const factor> columns_as_factors(const float* x, int64_t stride, int64_t rows, int64_t columns,
                                               factor* scratch) {
  return rows_as_factors(x, stride, rows, columns, scratch);
}
#endif

// Where y [rows, columns] is made; write_floats then rounds it.
inline Floats<float> make_floats(float* y, int64_t stride, int64_t, float*) { return {y, stride}; }
template <class narrow>
inline Floats<float> make_floats(narrow*, int64_t, int64_t columns, float* scratch) {
  return {scratch, padded(columns)};
}
inline void write_floats(Floats<float>, float*, int64_t, int64_t, int64_t) {}
template <class narrow>
inline void write_floats(Floats<float> made, narrow* y, int64_t stride, int64_t rows, int64_t columns) {
  for (int64_t r = 0; r < rows; r++)
    for_channels(columns, [&](int64_t c, auto lanes) {
      store(y + r * stride + c, load(made.data + r * made.stride + c), lanes);
    });
}

}  // namespace densenet_fast::cpu::DENSENET_FAST_KERNELS
