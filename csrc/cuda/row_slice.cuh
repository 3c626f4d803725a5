// How the kernels with products turn what they have copied into activations, and what they have accumulated into rows.
#pragma once

#include "common.cuh"

#include <type_traits>

namespace densenet_fast::cuda {

// relu(bn(x)) of a piece of a row, in place.
template <class input_t>
struct BnReluPiece {
  float2 affine[kVector<input_t>];  // (scale, shift)

  // From a table of all channels, on a 16-byte boundary.
  __device__ __forceinline__ explicit BnReluPiece(const float2* table) {
#pragma unroll
    for (int e = 0; e < kVector<input_t>; e += 2) {
      const float4 two = *reinterpret_cast<const float4*>(table + e);
      affine[e] = make_float2(two.x, two.y), affine[e + 1] = make_float2(two.z, two.w);
    }
  }

  __device__ __forceinline__ void apply(unsigned char* piece) const {
    constexpr int kPairs = kVector<input_t> / 2;
    struct alignas(16) {
      Pair<input_t> pair[kPairs];
    } values = *reinterpret_cast<decltype(values)*>(piece);
#pragma unroll
    for (int i = 0; i < kPairs; i++) {
      const float2 x = values.pair[i].unpack(), first = affine[2 * i], second = affine[2 * i + 1];
      values.pair[i] = Pair<input_t>::pack_relu(fmaf(x.x, first.x, first.y), fmaf(x.y, second.x, second.y));
    }
    *reinterpret_cast<decltype(values)*>(piece) = values;
  }
};

// Channels [c, c + kLaneColumns) of the rows of a matrix [M, C], as one thread loads and stores them. element_t is
// input_t, const or not.
template <class element_t, int kLaneColumns>
struct RowSlice {
  using input_t = std::remove_const_t<element_t>;
  static constexpr int kBytes = kLaneColumns * sizeof(input_t);
  static constexpr int kUnit = kBytes % 16 == 0 ? 16 : kBytes % 8 == 0 ? 8 : 4;
  struct alignas(kUnit) Unit {
    uint32_t word[kUnit / 4];
  };
  union Values {
    Unit unit[kBytes / kUnit];
    Pair<input_t> pair[kLaneColumns / 2];
    input_t element[kLaneColumns];
    __device__ __forceinline__ Values() {}
  };

  element_t* data;
  int64_t stride;
  int count;   // channels below C
  bool whole;  // all are, and rows are aligned for Unit

  template <class matrix_t>
  __device__ __forceinline__ RowSlice(const matrix_t& m, int c, int C)
      : data(static_cast<element_t*>(m.data) + c), stride(m.stride), count(min(C - c, kLaneColumns)) {
    const auto bits = reinterpret_cast<uintptr_t>(data) | static_cast<uintptr_t>(stride * sizeof(input_t));
    whole = count == kLaneColumns && bits % kUnit == 0;
  }

  // Of rows that lie `step` apart; nothing waits for any of them.
  template <int kCount>
  __device__ __forceinline__ void fetch(Values (&values)[kCount], const input_t* from, int64_t step, int rows) const {
    if (whole) {
#pragma unroll
      for (int k = 0; k < kCount; k++, from += step)
#pragma unroll
        for (int i = 0; i < kBytes / kUnit; i++)
          if (k < rows) values[k].unit[i] = reinterpret_cast<const Unit*>(from)[i];
    } else {
#pragma unroll
      for (int k = 0; k < kCount; k++, from += step)
#pragma unroll
        for (int e = 0; e < kLaneColumns; e += 2) {  // whole registers, which need not be merged
          const input_t* const at = from + e;
          const bool first = k < rows && e < count, second = k < rows && e + 1 < count;
          values[k].pair[e / 2] = Pair<input_t>::pack(first ? float(at[0]) : 0.f, second ? float(at[1]) : 0.f);
        }
    }
  }
  // v becomes what has been stored, in input_t's precision.
  __device__ __forceinline__ void store(input_t* to, float (&v)[kLaneColumns]) const {
    Values values;
#pragma unroll
    for (int e = 0; e < kLaneColumns; e += 2) values.pair[e / 2] = Pair<input_t>::pack(v[e], v[e + 1]);
    if (whole) {
#pragma unroll
      for (int i = 0; i < kBytes / kUnit; i++) reinterpret_cast<Unit*>(to)[i] = values.unit[i];
    } else {
#pragma unroll
      for (int e = 0; e < kLaneColumns; e++)
        if (e < count) to[e] = values.element[e];
    }
    unpack(values, v);
  }

  __device__ __forceinline__ static void unpack(const Values& values, float (&v)[kLaneColumns]) {
#pragma unroll
    for (int e = 0; e < kLaneColumns; e += 2) {
      const float2 two = values.pair[e / 2].unpack();
      v[e] = two.x, v[e + 1] = two.y;
    }
  }
};

}  // namespace densenet_fast::cuda
