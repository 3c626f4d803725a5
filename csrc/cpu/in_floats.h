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

// And of scratch for their factors.
inline int64_t scratch_of_factors(int64_t columns) { return kPair == 1 ? 0 : padded(columns) / kPair; }

// x [rows, columns] as products of factors want it; scratch [rows, padded(columns)] of them if they are narrow.
inline Floats<const float> as_factors(const float* x, int64_t stride, int64_t, int64_t, float*) { return {x, stride}; }
template <class narrow>
inline Floats<const narrow> as_factors(const float* x, int64_t stride, int64_t rows, int64_t columns, narrow* scratch) {
  for (int64_t r = 0; r < rows; r++)
    for (int64_t c = 0; c < padded(columns); c += kWidth)
      store(scratch + r * padded(columns) + c, load(x + r * stride + c));
  return {scratch, padded(columns)};
}

// x [rows, columns] as a sum of products over its rows wants it: as it is, or rows r and r + 1 interleaved in scratch,
// with zeros for the row that an odd number lacks.
inline Floats<const float> rows_as_factors(const float* x, int64_t stride, int64_t, int64_t, float*) {
  return {x, stride};
}
#if defined(DENSENET_FAST_PAIRS)
inline Floats<const bfloat16> rows_as_factors(const float* x, int64_t stride, int64_t rows, int64_t columns,
                                              bfloat16* scratch) {
  for (int64_t r = 0; r < rows; r += kPair, x += kPair * stride)
    for (int64_t c = 0; c < padded(columns); c += kWidth)
      store_pairs(scratch + r * padded(columns) + kPair * c, load(x + c), r + 1 < rows ? load(x + stride + c) : vec{});
  return {scratch, padded(columns)};
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
