// What follows the main loop of conv3x3_main_loop.cuh: a thread's accumulators are neighbouring channels of eight
// pixels, which it stores without a detour through shared memory; reductions over pixels go by way of the warp, the
// warps of a block and the blocks.
#pragma once

#include "conv3x3_tiling.cuh"
#include "row_slice.cuh"

namespace densenet_fast::cuda::conv3x3 {

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
