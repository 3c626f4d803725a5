// The main loop of the 3x3 forward and, with the weight flipped, of the input gradient.
//
// The convolution streams its input through shared memory in chunks of 32 bytes of a pixel (one k step of the
// products): a halo tile, staged once for all nine taps, beside the chunk's weights. Half an A operand is 8
// neighbouring pixels of an image row, so a tap is an offset. A warp owns two runs of kRunRows image rows by 8 columns;
// ldmatrix for rows (p, p) of both serves the three vertical taps. docs/internals/cuda.md.
#pragma once

#include "conv3x3_tiling.cuh"
#include "row_slice.cuh"

#include <type_traits>

namespace densenet_fast::cuda::conv3x3 {

// copy_piece of channels from c on of a pixel of x [.., C], given its index or -1: zeros. The usual granule by the
// shortest way.
template <class input_t>
__device__ __forceinline__ void copy_pixel(unsigned char* to, const input_t* x, int index, int64_t stride, int c, int C,
                                           int granule) {
  const input_t* const from = x + max(index, 0) * stride + min(c, C);
  const int count = index < 0 ? 0 : C - c;
  if (granule == 16) cp_async_16(to, from, piece_bytes<input_t>(count));
  else copy_piece(to, from, count, granule);
}

constexpr int kMainLoopStages = 3;  // chunks of channels in shared memory, on their way or in use

// What the main loop reads. A block has kWarps warps, `warps_n` of them along the output channels.
struct MainLoopParams {
  Tiling tiling;
  ConstMatrix x;           // [N * H * W, C] input_t
  int C, chunks, granule;  // of x
  Norm norm;               // of x, with BN-ReLU
  const void* weight;      // packed
  int warps_n;
  int coefficients_at, pixels_at;  // bytes in shared memory, with BN-ReLU, which has no registers left to find them
};

// The most 8-column tiles per warp whose accumulators and fragments fit in registers.
template <class math_t>
constexpr int kMaxTilesN = std::is_same_v<math_t, Tf32x3Math> ? 3 : 4;

template <class math_t_, int kTilesN_, bool kBnRelu_>
struct Conv3x3Traits {
  using math_t = math_t_;
  using input_t = typename math_t::input_t;
  static constexpr int kTilesN = kTilesN_;  // 8-column tiles of a warp
  static constexpr bool kBnRelu = kBnRelu_;
  static constexpr int kStages = kMainLoopStages;
  static constexpr int kColumns = 8 * kTilesN;  // of a warp: a slab
  static constexpr int kGroupTiles = kTilesN == 4 ? 2 : kTilesN, kGroups = kTilesN / kGroupTiles;
  static constexpr int kLaneColumns = 2 * kGroupTiles;  // neighbouring channels of one thread in a group
  static constexpr int kSlabPieces = kTaps * kChunkPieces * kColumns;
  static constexpr int kBlocks = sizeof(input_t) == 2 ? 2 : 1;  // per multiprocessor, at least: limits registers
  static constexpr int kUnrolledTaps = std::is_same_v<math_t, Tf32x3Math> ? 1 : 3;  // 3 would spill its fragments

  // A thread's first column of a group.
  __device__ __forceinline__ static int column(int group) {
    return group * 8 * kGroupTiles + threadIdx.x % 4 * kLaneColumns;
  }
  // Its accumulator of column e of a group, in row k % kRunRows of run k / kRunRows.
  __device__ __forceinline__ static float& at(float (&acc)[kRunRows][kTilesN][4], int group, int e, int k) {
    return acc[k % kRunRows][group * kGroupTiles + e / 2][k / kRunRows * 2 + e % 2];
  }

  static constexpr int stage_bytes(const Tiling& t, int warps_n) {
    return (kChunkPieces * t.halo_pitch + warps_n * kSlabPieces) * 16;
  }
  static constexpr int coefficient_bytes(int chunks) { return kBnRelu ? chunks * kKStep<input_t> * 8 : 0; }
  static constexpr int shared_bytes(const Tiling& t, int warps_n, int chunks) {
    return kStages * stage_bytes(t, warps_n) + coefficient_bytes(chunks) + t.halo_pixels * 4;
  }
};

// A warp's part of a tile: two runs by 8 columns, and one slab of output channels.
struct WarpTile {
  int run[2], column[2];  // acc[i][j][2 * h + e] is row i of run[h], pixel column[h] + lane / 4; run -1: none
  int slab;               // which kColumns output channels

  __device__ __forceinline__ WarpTile(const MainLoopParams& p, int thread) {
    const Tiling& t = p.tiling;
    const int groups = t.columns / 8, warp = thread / 32;
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const int index = warp / p.warps_n * 2 + h;
      run[h] = index < t.runs * groups ? index / groups : -1;
      column[h] = index % groups * 8;
    }
    slab = blockIdx.y * p.warps_n + warp % p.warps_n;
  }
};

// Which pixels of the batch are a thread's: of each of its warp's runs one column.
struct ThreadPixels {
  int64_t first;  // of the column in the first run
  int distance;   // from there to its first in the second run
  int rows[2];    // so many of the column's pixels, or more, are inside the image
  int W;

  __device__ __forceinline__ ThreadPixels(const Tile& tile, const WarpTile& warp_tile) : W(tile.tiling.W) {
    const Tiling& t = tile.tiling;
    int64_t begin[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const int run = max(warp_tile.run[h], 0), image = tile.image(run), row = tile.row(run);
      const int at = tile.first_column + warp_tile.column[h] + threadIdx.x % 32 / 4;
      const bool inside = warp_tile.run[h] >= 0 && image < t.N && at < t.W;
      begin[h] = (static_cast<int64_t>(image) * t.H + row) * t.W + at;
      rows[h] = inside ? t.H - row : 0;
    }
    first = begin[0], distance = static_cast<int>(begin[1] - begin[0]);
  }

  __device__ __forceinline__ int64_t first_of(int run) const { return first + (run ? distance : 0); }
  // In row k % kRunRows of run k / kRunRows.
  __device__ __forceinline__ bool has(int k) const { return k % kRunRows < rows[k / kRunRows]; }
  __device__ __forceinline__ int64_t operator[](int k) const { return first_of(k / kRunRows) + k % kRunRows * W; }
};

// acc += the convolution of the tile. Afterwards the shared memory may be overwritten.
template <class Traits>
__device__ __forceinline__ void convolve_tile(const MainLoopParams& p, const Tile& tile, const WarpTile& warp_tile,
                                              unsigned char* shared, float (&acc)[kRunRows][Traits::kTilesN][4]) {
  using math_t = typename Traits::math_t;
  using input_t = typename Traits::input_t;
  constexpr int kStages = Traits::kStages, kTilesN = Traits::kTilesN;
  const Tiling& t = p.tiling;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int plane = t.halo_pitch * 16, stage_bytes = Traits::stage_bytes(t, p.warps_n);

  // In every chunk a thread copies the same piece of the same pixels, and turns it into activations.
  const int piece = threadIdx.x % kChunkPieces, first_pixel = threadIdx.x / kChunkPieces;
  constexpr int kPixelStep = kThreads / kChunkPieces;
  float2* const coefficients = reinterpret_cast<float2*>(shared + p.coefficients_at);  // [chunks * kKStep]
  const int pixels_at = Traits::kBnRelu ? p.pixels_at : kStages * stage_bytes;
  int* const pixel_index = reinterpret_cast<int*>(shared + pixels_at);  // [halo_pixels]
  for (int i = threadIdx.x; i < t.halo_pixels; i += kThreads) pixel_index[i] = tile.pixel_index(i);
  __syncthreads();

  const input_t* const x = static_cast<const input_t*>(p.x.data) + tile.origin() * p.x.stride;
  const auto copy = [&](int chunk) {
    unsigned char* const stage = shared + chunk % kStages * stage_bytes;
    const int c = (chunk * kChunkPieces + piece) * kVector<input_t>;
#pragma unroll 1
    for (int i = first_pixel; i < t.halo_pixels; i += kPixelStep)
      copy_pixel(stage + piece * plane + i * 16, x, pixel_index[i], p.x.stride, c, p.C, p.granule);
    const int weights = p.warps_n * Traits::kSlabPieces * 16;
    const unsigned char* const weight =
        static_cast<const unsigned char*>(p.weight) + static_cast<int64_t>(blockIdx.y * p.chunks + chunk) * weights;
#pragma unroll 2
    for (int i = threadIdx.x * 16; i < weights; i += kThreads * 16)
      cp_async_16(stage + kChunkPieces * plane + i, weight + i, 16);
  };
  const auto activate = [&](int chunk) {
    const BnReluPiece<input_t> bn_relu(coefficients + (chunk * kChunkPieces + piece) * kVector<input_t>);
    unsigned char* const stage = shared + chunk % kStages * stage_bytes;
#pragma unroll 2
    for (int i = first_pixel; i < t.halo_pixels; i += kPixelStep)
      if (pixel_index[i] >= 0) bn_relu.apply(stage + piece * plane + i * 16);  // the padding stays zero
  };

#pragma unroll
  for (int chunk = 0; chunk < kStages - 1; chunk++) {
    if (chunk < p.chunks) copy(chunk);
    cp_async_commit();
  }
  if constexpr (Traits::kBnRelu) {
    affine_table<kThreads>(coefficients, p.norm, p.chunks * kKStep<input_t>, p.C);
    __syncthreads();
    cp_async_wait<kStages - 2>();
    activate(0);
  }
  // ldmatrix delivers (run 0, first half step), (run 1, first), (run 0, second), (run 1, second).
  const int h = lane >> 3 & 1, run = max(h ? warp_tile.run[1] : warp_tile.run[0], 0);
  const int a_lane =
      (lane >> 4) * plane +
      (tile.halo_row(run) * t.halo_columns + (h ? warp_tile.column[1] : warp_tile.column[0]) + lane % 8) * 16;
  const int b_lane = kChunkPieces * plane +
                     (warp % p.warps_n * Traits::kSlabPieces + h * Traits::kColumns + lane % 8 + (lane >> 4) * 8) * 16;
  const auto multiply = [&](int chunk) {
    const unsigned char* const stage = shared + chunk % kStages * stage_bytes;
#pragma unroll Traits::kUnrolledTaps
    for (int kx = 0; kx < 3; kx++) {
      Fragment<math_t, 4> a[kRunRows + 2];
#pragma unroll
      for (int i = 0; i < kRunRows + 2; i++) {
        uint32_t raw[4];
        ldmatrix_x4(raw, stage + a_lane + (i * t.halo_columns + kx) * 16);
        a[i] = Fragment<math_t, 4>(raw);
      }
#pragma unroll
      for (int ky = 0; ky < 3; ky++) {
        const auto multiply_rows = [&](const uint32_t (&raw_b)[2], int j) {
          const Fragment<math_t, 2> b(raw_b);
#pragma unroll
          for (int i = 0; i < kRunRows; i++) mma(acc[i][j], a[i + ky], b);
        };
        const unsigned char* const b_tap = stage + b_lane + (ky * 3 + kx) * kChunkPieces * Traits::kColumns * 16;
#pragma unroll
        for (int j = 0; j < kTilesN; j += 2) {
          if (j + 1 < kTilesN) {
            uint32_t b[4];
            ldmatrix_x4(b, b_tap + j * 8 * 16);
            multiply_rows({b[0], b[1]}, j), multiply_rows({b[2], b[3]}, j + 1);
          } else {
            uint32_t b[2];
            ldmatrix_x2(b, b_tap + (j - (lane >> 4)) * 8 * 16);
            multiply_rows(b, j);
          }
        }
      }
    }
  };
  // Copies the chunk after the next, and turns the next into activations.
  const auto prepare = [&](int chunk) {
    if (chunk + kStages - 1 < p.chunks) copy(chunk + kStages - 1);
    cp_async_commit();
    if constexpr (Traits::kBnRelu) {
      cp_async_wait<kStages - 2>();
      if (chunk + 1 < p.chunks) activate(chunk + 1);
    }
  };
  // Where there is much to prepare one half of the warps does so while the other multiplies: each scheduler has both.
  const bool multiplies_first = Traits::kBnRelu && warp >= kWarps / 2;
#pragma unroll 1
  for (int chunk = 0; chunk < p.chunks; chunk++) {
    if constexpr (!Traits::kBnRelu) cp_async_wait<kStages - 2>();
    __syncthreads();  // the chunk is complete, and all warps have read the stage that is filled next
    if (!multiplies_first) prepare(chunk);
    if (warp_tile.run[0] >= 0) multiply(chunk);
    if (multiplies_first) prepare(chunk);
  }
  cp_async_wait<0>();
  __syncthreads();
}

}  // namespace densenet_fast::cuda::conv3x3
