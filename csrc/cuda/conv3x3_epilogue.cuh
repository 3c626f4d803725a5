// What follows the main loop of conv3x3_main_loop.cuh: a thread's accumulators are neighbouring channels of eight
// pixels, which it stores without a detour through shared memory; reductions over pixels go by way of the warp, the
// warps of a block and the blocks.
#pragma once

#include "conv3x3_tiling.cuh"

#include <type_traits>

namespace densenet_fast::cuda::conv3x3 {

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

// The sum over the eight pixels of a run's row: the lanes with the same channels.
__device__ __forceinline__ float sum_over_pixels(float x) {
#pragma unroll
  for (int distance = 4; distance < 32; distance *= 2) x += __shfl_xor_sync(~0u, x, distance);
  return x;
}

// Leaves a warp's partial result of a column, which lanes 0 to 3 hold, in shared memory for finish_warps.
template <class Traits, class reduced_t>
__device__ __forceinline__ void put_warp(unsigned char* shared, int column, const reduced_t& r) {
  if (threadIdx.x % 32 < 4) reinterpret_cast<reduced_t*>(shared)[threadIdx.x / 32 * Traits::kColumns + column] = r;
}

// Merges the partial results of all warps and of the blocks of all tiles: finish(c, total) for every channel.
template <class Traits, class reduced_t, class function_t>
__device__ __forceinline__ void finish_warps(const Partials<reduced_t>& partials, int tile, int warps_n,
                                             unsigned char* shared, function_t finish) {
  __syncthreads();
  const int slab = threadIdx.x / Traits::kColumns, column = threadIdx.x % Traits::kColumns;
  const int c = (blockIdx.y * warps_n + slab) * Traits::kColumns + column;
  if (slab < warps_n && c < partials.C) {
    reduced_t total;
    for (int warp = slab; warp < kWarps; warp += warps_n)
      total.merge(reinterpret_cast<const reduced_t*>(shared)[warp * Traits::kColumns + column]);
    partials.put(tile, c, total);
  }
  for (int i = 0; i < warps_n; i++)
    finish_partials<kThreads, Traits::kColumns>(partials, tile, blockIdx.y * warps_n + i,
                                                reinterpret_cast<float*>(shared), finish);
}

}  // namespace densenet_fast::cuda::conv3x3
