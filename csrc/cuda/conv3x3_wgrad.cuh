// The weight gradient of the 3x3 convolution: dweight[tap] = d^T * relu(bn(x)) shifted by the tap.
//
// A block keeps its slab of dweight, all nine taps, in registers over its share of the pixels and leaves it in fp32; a
// second kernel adds these partials in order. The products' k dimension is pixels: operands are read transposed, and a
// table says where in the halo the pixel of each k lies.
#pragma once

#include "conv3x3_main_loop.cuh"
#include "conv3x3_prepare.cuh"

namespace densenet_fast::cuda::conv3x3 {

struct Conv3x3WgradParams {
  Tiling tiling;  // runs of one row
  ConstMatrix x;  // [N * H * W, C]
  int C, granule;
  const float2* affine;
  const void* d;    // [N * H * W, G] input_t, padded
  int G;            // padded
  int steps;        // k steps of a tile
  float* partials;  // [splits, kTaps, G, C], C padded to slabs
};

// A block owns 16 * kTilesM outputs and 64 bytes of input channels, all taps. Its warps divide the channels; those with
// the same channels divide the pixels.
template <class math_t_, int kTilesM_>
struct WgradTraits {
  using math_t = math_t_;
  using input_t = typename math_t::input_t;
  static constexpr int kTilesM = kTilesM_;
  static constexpr int kOutputs = 16 * kTilesM;
  static constexpr int kPieces = 4, kChannels = kPieces * kVector<input_t>;  // of the slab of x
  static constexpr int kOutputPieces = kOutputs / kVector<input_t>;          // of the slab of d
  static constexpr int kWarpsC = kChannels / 16, kWarpsK = kWarps / kWarpsC;
  static constexpr int kStages = 2;
  static constexpr int kMaxPixels = kThreads;  // of a tile: a thread writes one entry of the table
  static constexpr int kWarpFloats = kTaps * kTilesM * 2 * 4 * 32;

  static constexpr int steps(const Tiling& t) { return ceil_div(t.runs * t.columns, kKStep<input_t>); }
  static constexpr int d_pitch(int steps) { return steps * kKStep<input_t> + 4; }  // pixels of a plane
  static constexpr int stage_bytes(const Tiling& t, int steps) {
    return (kPieces * t.halo_pitch + kOutputPieces * d_pitch(steps)) * 16 + kMaxPixels * 4;
  }
  static constexpr int shared_bytes(const Tiling& t, int steps) {
    const int stages = kStages * stage_bytes(t, steps), reduction = kWarps / 2 * kWarpFloats * 4;
    return stages > reduction ? stages : reduction;
  }
};

// The i-th piece of pixels that have kPieces each: pairs of pieces, in turn of four pixels.
template <int kPieces>
__device__ __forceinline__ int piece_of(int i) {
  return i / 8 % (kPieces / 2) * 2 + i % 2;
}
template <int kPieces>
__device__ __forceinline__ int pixel_of(int i) {
  return i / (4 * kPieces) * 4 + i / 2 % 4;
}

// Loads a lane's registers of operands that lie in shared memory as planes of [pixels][16 bytes]: A [16, k step] from
// 16 channels of d, two B [k step, 8] from 16 channels of x, whose pixels lie at the positions that a table gives.
template <class input_t>
struct TransposedLoader {
  static constexpr bool kMatrices = sizeof(input_t) == 2;  // ldmatrix transposes 16-bit elements
  int lane;

  struct Positions {
    int first, second;
  };
  __device__ __forceinline__ Positions positions(const int* table) const {
    if constexpr (kMatrices) return {table[lane % 16], 0};
    else return {table[lane % 4], table[lane % 4 + 4]};
  }
  __device__ __forceinline__ void load_a(uint32_t (&raw)[4], const unsigned char* d, int plane) const {
    if constexpr (kMatrices) {
      ldmatrix_x4_trans(raw, d + (lane >> 3 & 1) * plane + (lane % 8 + (lane >> 4) * 8) * 16);
    } else {
#pragma unroll
      for (int i = 0; i < 4; i++) raw[i] = element(d + i % 2 * 2 * plane + (lane % 4 + i / 2 * 4) * 16, plane);
    }
  }
  __device__ __forceinline__ void load_b(uint32_t (&raw)[2][2], const unsigned char* x, int plane, Positions at) const {
    if constexpr (kMatrices) {
      uint32_t r[4];
      ldmatrix_x4_trans(r, x + (lane >> 4) * plane + at.first);
      raw[0][0] = r[0], raw[0][1] = r[1], raw[1][0] = r[2], raw[1][1] = r[3];
    } else {
#pragma unroll
      for (int j = 0; j < 2; j++)
        raw[j][0] = element(x + j * 2 * plane + at.first, plane),
        raw[j][1] = element(x + j * 2 * plane + at.second, plane);
    }
  }

 private:
  // Channel lane / 4 of a pixel.
  __device__ __forceinline__ uint32_t element(const unsigned char* pixel, int plane) const {
    return *reinterpret_cast<const uint32_t*>(pixel + (lane >> 4) * plane + (lane / 4 % 4) * 4);
  }
};

template <class Traits>
__global__ void __launch_bounds__(kThreads) bn_relu_conv3x3_wgrad_kernel(const Conv3x3WgradParams p) {
  using math_t = typename Traits::math_t;
  using input_t = typename Traits::input_t;
  constexpr int kTilesM = Traits::kTilesM, kPieces = Traits::kPieces, kStep = kKStep<input_t>;
  extern __shared__ __align__(128) unsigned char shared[];
  const Tiling& t = p.tiling;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int x_plane = t.halo_pitch * 16, d_plane = Traits::d_pitch(p.steps) * 16;
  const int d_offset = kPieces * x_plane, table_offset = d_offset + Traits::kOutputPieces * d_plane;
  const int stage_bytes = Traits::stage_bytes(t, p.steps);
  const int first_output = blockIdx.z * Traits::kOutputs;

  // Every thread copies and activates one piece of its pixels of x. Eight lanes, which shared memory serves at once,
  // take two pieces of four pixels: planes start half of its banks apart.
  const int piece = piece_of<kPieces>(threadIdx.x), c = blockIdx.y * Traits::kChannels + piece * kVector<input_t>;
  const int first_pixel = pixel_of<kPieces>(threadIdx.x);
  constexpr int kPixelStep = kThreads / kPieces;
  const BnReluPiece<input_t> bn_relu(p.affine + c);
  uint64_t inside = 0;  // bit i: whether the thread's i-th pixel of the last copied tile is no padding
  const auto copy = [&](int index, int stage_index) {
    unsigned char* const stage = shared + stage_index * stage_bytes;
    const Tile tile(t, index);
    const input_t* const x = static_cast<const input_t*>(p.x.data) + tile.origin() * p.x.stride;
    inside = 0;
    int pass = 0;
#pragma unroll 1
    for (int i = first_pixel; i < t.halo_pixels; i += kPixelStep, pass++) {
      const int pixel_index = tile.pixel_index(i);
      inside |= static_cast<uint64_t>(pixel_index >= 0) << pass;
      copy_pixel(stage + piece * x_plane + i * 16, x, pixel_index, p.x.stride, c, p.C, p.granule);
    }
    // d in the order of the tile's positions, zero where a position has no pixel, and the table: where in the halo each
    // position's upper left tap lies. A position without a pixel takes the first one's taps, which d = 0 cancels.
    const int64_t first_row = static_cast<int64_t>(tile.first_image) * t.H + tile.first_run;
    const auto pixel = [&](int position) {
      const int row = divide(position, t.per_columns), column = tile.first_column + position - row * t.columns;
      const bool exists = row < t.runs && first_row + row < static_cast<int64_t>(t.N) * t.H && column < t.W;
      return exists ? (first_row + row) * t.W + column : -1;
    };
    for (int i = threadIdx.x; i < p.steps * kStep * Traits::kOutputPieces; i += kThreads) {
      const int position = pixel_of<Traits::kOutputPieces>(i), output_piece = piece_of<Traits::kOutputPieces>(i);
      const int64_t m = pixel(position);
      const input_t* const d = static_cast<const input_t*>(p.d) + first_output + output_piece * kVector<input_t>;
      cp_async_16(stage + d_offset + output_piece * d_plane + position * 16, m < 0 ? d : d + m * p.G, m < 0 ? 0 : 16);
    }
    if (threadIdx.x < p.steps * kStep) {
      const int position = pixel(threadIdx.x) < 0 ? 0 : threadIdx.x, row = divide(position, t.per_columns);
      reinterpret_cast<int*>(stage + table_offset)[threadIdx.x] =
          (tile.halo_row(row) * t.halo_columns + position - row * t.columns) * 16;
    }
  };
  const auto activate = [&](int stage_index) {
    unsigned char* const stage = shared + stage_index * stage_bytes;
    int pass = 0;
    for (int i = first_pixel; i < t.halo_pixels; i += kPixelStep, pass++)
      if (inside >> pass & 1) bn_relu.apply(stage + piece * x_plane + i * 16);
  };

  const int warp_c = warp % Traits::kWarpsC, warp_k = warp / Traits::kWarpsC;
  constexpr int kPlanes = 16 / kVector<input_t>;  // of 16 channels
  const TransposedLoader<input_t> loader{lane};
  float acc[kTaps][kTilesM][2][4] = {};
  if (blockIdx.x < t.tiles()) copy(blockIdx.x, 0);
  cp_async_commit();
  int stage_index = 0;
  for (int index = blockIdx.x; index < t.tiles(); index += gridDim.x, stage_index ^= 1) {
    cp_async_wait<0>();
    activate(stage_index);
    __syncthreads();  // the tile is complete, and all warps have read the other stage
    if (index + static_cast<int>(gridDim.x) < t.tiles()) copy(index + gridDim.x, stage_index ^ 1);
    cp_async_commit();
    const unsigned char* const stage = shared + stage_index * stage_bytes;
    const unsigned char* const x = stage + warp_c * kPlanes * x_plane;
    const int* const table = reinterpret_cast<const int*>(stage + table_offset);
    for (int step = warp_k; step < p.steps; step += Traits::kWarpsK) {
      Fragment<math_t, 4> a[kTilesM];
#pragma unroll
      for (int i = 0; i < kTilesM; i++) {
        uint32_t raw[4];
        loader.load_a(raw, stage + d_offset + i * kPlanes * d_plane + step * kStep * 16, d_plane);
        a[i] = Fragment<math_t, 4>(raw);
      }
      const auto position = loader.positions(table + step * kStep);
#pragma unroll
      for (int tap = 0; tap < kTaps; tap++) {
        uint32_t raw[2][2];
        loader.load_b(raw, x + (tap / 3 * t.halo_columns + tap % 3) * 16, x_plane, position);
#pragma unroll
        for (int j = 0; j < 2; j++) {
          const Fragment<math_t, 2> b(raw[j]);
#pragma unroll
          for (int i = 0; i < kTilesM; i++) mma(acc[tap][i][j], a[i], b);
        }
      }
    }
  }
  cp_async_wait<0>();

  // The warps with the same channels add up their sums as a tree: in every round one half adds what the other half has.
  float* const values = &acc[0][0][0][0];
  float* const room = reinterpret_cast<float*>(shared);
#pragma unroll
  for (int half = Traits::kWarpsK / 2; half >= 1; half /= 2) {
    __syncthreads();
    float* const mine = room + ((warp_k % half) * Traits::kWarpsC + warp_c) * Traits::kWarpFloats + lane;
    if (warp_k >= half && warp_k < 2 * half)
#pragma unroll
      for (int i = 0; i < Traits::kWarpFloats / 32; i++) mine[i * 32] = values[i];
    __syncthreads();
    if (warp_k < half)
#pragma unroll
      for (int i = 0; i < Traits::kWarpFloats / 32; i++) values[i] += mine[i * 32];
  }
  if (warp_k > 0) return;
  const int C = gridDim.y * Traits::kChannels;
  float* const to = p.partials + static_cast<int64_t>(blockIdx.x) * kTaps * p.G * C;
#pragma unroll
  for (int tap = 0; tap < kTaps; tap++)
#pragma unroll
    for (int i = 0; i < kTilesM; i++)
#pragma unroll
      for (int j = 0; j < 2; j++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
          const int g = first_output + i * 16 + h * 8 + lane / 4;
          const int channel = blockIdx.y * Traits::kChannels + warp_c * 16 + j * 8 + lane % 4 * 2;
          *reinterpret_cast<float2*>(to + (static_cast<int64_t>(tap) * p.G + g) * C + channel) =
              make_float2(acc[tap][i][j][2 * h], acc[tap][i][j][2 * h + 1]);
        }
}

struct Conv3x3WgradReduceParams {
  const float* partials;  // [splits, kTaps, padded_G, padded_C]
  int splits, G, C, padded_G, padded_C;
  void* dweight;  // [G, C, 3, 3] input_t

  __host__ __device__ int64_t size() const { return static_cast<int64_t>(kTaps) * padded_G * padded_C; }
};

// Element i of dweight.
template <class input_t>
__device__ __forceinline__ void reduce_wgrad(const Conv3x3WgradReduceParams& p, int64_t i) {
  const int64_t size = p.size();
  const int c = static_cast<int>(i % p.padded_C), g = static_cast<int>(i / p.padded_C % p.padded_G);
  const int64_t tap = i / p.padded_C / p.padded_G;
  if (c >= p.C || g >= p.G || tap >= kTaps) return;
  float sum = 0.f;
#pragma unroll 8
  for (int split = 0; split < p.splits; split++) sum += p.partials[split * size + i];
  static_cast<input_t*>(p.dweight)[(static_cast<int64_t>(g) * p.C + c) * kTaps + tap] = input_t(sum);
}

// The largest tiles of at most 64 columns that fit into shared memory.
template <class Traits>
Tiling wgrad_tiling(const Shape& shape, const Launch& where) {
  constexpr int kMaxColumns = 64;
  const int W = static_cast<int>(shape.W), columns = ceil_div(W, ceil_div(W, kMaxColumns));
  Tiling tiling = make_tiling(shape, 1, 1, columns);
  for (int rows = 2; rows * columns <= Traits::kMaxPixels && rows <= shape.N * shape.H; rows++) {
    const Tiling larger = make_tiling(shape, 1, rows, columns);
    if (Traits::shared_bytes(larger, Traits::steps(larger)) > where.device.shared_bytes) break;
    tiling = larger;
  }
  return tiling;
}

// Launches what leaves the partials, and returns how they are to be added.
template <class Traits>
Conv3x3WgradReduceParams wgrad(const Conv3x3Bwd& op, const PrepareParams& prepared, const Launch& where) {
  using input_t = typename Traits::input_t;
  Conv3x3WgradParams p{};
  p.tiling = wgrad_tiling<Traits>(op.shape, where);
  p.steps = Traits::steps(p.tiling);
  p.x = op.x, p.C = static_cast<int>(op.C), p.granule = granule(op.x, sizeof(input_t));
  p.affine = prepared.affine, p.d = prepared.d, p.G = prepared.d_stride;

  // One block per multiprocessor; a split of less than kMinPixels would write more partials than it reads.
  constexpr int64_t kMinPixels = 256;
  const int slabs_c = ceil_div(p.C, Traits::kChannels), slabs_g = p.G / Traits::kOutputs;
  const int64_t worth =
      std::min<int64_t>(op.shape.rows() / kMinPixels, where.device.multiprocessors / (slabs_c * slabs_g));
  const int splits = static_cast<int>(std::clamp<int64_t>(worth, 1, p.tiling.tiles()));
  const int64_t size = static_cast<int64_t>(kTaps) * p.G * slabs_c * Traits::kChannels;
  p.partials = where.workspace->floats(splits * size);
  launch(bn_relu_conv3x3_wgrad_kernel<Traits>, dim3(splits, slabs_c, slabs_g), kThreads,
         Traits::shared_bytes(p.tiling, p.steps), where, p);

  return {p.partials, splits, static_cast<int>(op.G), p.C, p.G, slabs_c * Traits::kChannels, op.dweight};
}

}  // namespace densenet_fast::cuda::conv3x3
