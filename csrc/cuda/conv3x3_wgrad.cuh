// The weight gradient of the 3x3 convolution: dweight[tap] = d^T * relu(bn(x)) shifted by the tap.
//
// A block keeps its slab of dweight, all nine taps, in registers over its share of the pixels and leaves it in fp32; a
// second kernel adds these partials in order. k of the products are pixels: operands are read transposed, their rows
// wherever a table of the tile says.
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

// A block owns 16 * kTilesM outputs and 64 bytes of input channels, all taps; its warps divide the channels, and among
// them the pixels. An operand's k are pixels: rows of shared memory, read transposed.
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

// A lane's share of operands stored as planes of pixels by 16 bytes: A [16, k step] from 16 channels of d, two B
// [k step, 8] from 16 channels of x, whose pixels lie at the places of a table.
template <class input_t>
struct Transposed {
  static constexpr bool kMatrices = sizeof(input_t) == 2;  // ldmatrix transposes 16-bit elements
  int lane;

  struct Places {
    int first, second;
  };
  __device__ __forceinline__ Places places(const int* table) const {
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
  __device__ __forceinline__ void load_b(uint32_t (&raw)[2][2], const unsigned char* x, int plane, Places at) const {
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

template <class traits>
__global__ void __launch_bounds__(kThreads) bn_relu_conv3x3_wgrad_kernel(const Conv3x3WgradParams p) {
  using math_t = typename traits::math_t;
  using input_t = typename traits::input_t;
  constexpr int kTilesM = traits::kTilesM, kPieces = traits::kPieces, kStep = kKStep<input_t>;
  extern __shared__ __align__(128) unsigned char shared[];
  const Tiling& t = p.tiling;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int x_plane = t.halo_pitch * 16, d_plane = traits::d_pitch(p.steps) * 16;
  const int d_offset = kPieces * x_plane, table_offset = d_offset + traits::kOutputPieces * d_plane;
  const int stage_bytes = traits::stage_bytes(t, p.steps);
  const int first_output = blockIdx.z * traits::kOutputs;

  // Every thread copies and activates one piece of its pixels of x.
  const int piece = threadIdx.x % kPieces, c = blockIdx.y * traits::kChannels + piece * kVector<input_t>;
  constexpr int kPixelStep = kThreads / kPieces;
  const BnReluPiece<input_t> bn_relu(p.affine + c);
  uint64_t inside = 0;  // which of the pixels that this thread copied last are no padding
  const auto copy = [&](int index, int stage_index) {
    unsigned char* const stage = shared + stage_index * stage_bytes;
    const Tile tile(t, index);
    const input_t* const x = static_cast<const input_t*>(p.x.data) + tile.origin() * p.x.stride;
    inside = 0;
    int pass = 0;
    for (int i = threadIdx.x / kPieces; i < t.halo_pixels; i += kPixelStep, pass++) {
      const int source = tile.source(i);
      const bool read = source >= 0 && c < p.C;
      inside |= static_cast<uint64_t>(source >= 0) << pass;
      copy_piece(stage + piece * x_plane + i * 16, read ? x + source * p.x.stride + c : x, read ? p.C - c : 0,
                 p.granule);
    }
    // d in the order of the pixels, zero where there is none, and where each pixel's upper left tap lies in the halo; a
    // place without a pixel takes the first one's taps, times zero.
    const int64_t first_row = static_cast<int64_t>(tile.first_image) * t.H + tile.first_run;
    const auto pixel = [&](int place) {
      const int row = place / t.columns, column = tile.first_column + place % t.columns;
      const bool exists = row < t.runs && first_row + row < static_cast<int64_t>(t.N) * t.H && column < t.W;
      return exists ? (first_row + row) * t.W + column : -1;
    };
    for (int i = threadIdx.x; i < p.steps * kStep * traits::kOutputPieces; i += kThreads) {
      const int place = i / traits::kOutputPieces, output_piece = i % traits::kOutputPieces;
      const int64_t m = pixel(place);
      const input_t* const d = static_cast<const input_t*>(p.d) + first_output + output_piece * kVector<input_t>;
      cp_async_16(stage + d_offset + output_piece * d_plane + place * 16, m < 0 ? d : d + m * p.G, m < 0 ? 0 : 16);
    }
    if (threadIdx.x < p.steps * kStep) {
      const int place = pixel(threadIdx.x) < 0 ? 0 : threadIdx.x, row = place / t.columns;
      reinterpret_cast<int*>(stage + table_offset)[threadIdx.x] =
          (tile.halo_row(row) * t.halo_columns + place % t.columns) * 16;
    }
  };
  const auto activate = [&](int stage_index) {
    unsigned char* const stage = shared + stage_index * stage_bytes;
    int pass = 0;
    for (int i = threadIdx.x / kPieces; i < t.halo_pixels; i += kPixelStep, pass++)
      if (inside >> pass & 1) bn_relu.apply(stage + piece * x_plane + i * 16);
  };

  const int warp_c = warp % traits::kWarpsC, warp_k = warp / traits::kWarpsC;
  constexpr int kPlanes = 16 / kVector<input_t>;  // of 16 channels
  const Transposed<input_t> at{lane};
  float acc[kTaps][kTilesM][2][4] = {};
  if (blockIdx.x < t.tiles()) copy(blockIdx.x, 0);
  cp_async_commit();
  int stage_index = 0;
  for (int index = blockIdx.x; index < t.tiles(); index += gridDim.x, stage_index ^= 1) {
    cp_async_wait<0>();
    activate(stage_index);
    __syncthreads();  // the tile is complete, and nobody reads the other stage
    if (index + static_cast<int>(gridDim.x) < t.tiles()) copy(index + gridDim.x, stage_index ^ 1);
    cp_async_commit();
    const unsigned char* const stage = shared + stage_index * stage_bytes;
    const unsigned char* const x = stage + warp_c * kPlanes * x_plane;
    const int* const table = reinterpret_cast<const int*>(stage + table_offset);
    for (int step = warp_k; step < p.steps; step += traits::kWarpsK) {
      Fragment<math_t, 4> a[kTilesM];
#pragma unroll
      for (int i = 0; i < kTilesM; i++) {
        uint32_t raw[4];
        at.load_a(raw, stage + d_offset + i * kPlanes * d_plane + step * kStep * 16, d_plane);
        a[i] = Fragment<math_t, 4>(raw);
      }
      const auto place = at.places(table + step * kStep);
#pragma unroll
      for (int tap = 0; tap < kTaps; tap++) {
        uint32_t raw[2][2];
        at.load_b(raw, x + (tap / 3 * t.halo_columns + tap % 3) * 16, x_plane, place);
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

  // The warps that share channels add up, half of them to the other half in every round.
  float* const values = &acc[0][0][0][0];
  float* const room = reinterpret_cast<float*>(shared);
#pragma unroll
  for (int half = traits::kWarpsK / 2; half >= 1; half /= 2) {
    __syncthreads();
    float* const mine = room + ((warp_k % half) * traits::kWarpsC + warp_c) * traits::kWarpFloats + lane;
    if (warp_k >= half && warp_k < 2 * half)
#pragma unroll
      for (int i = 0; i < traits::kWarpFloats / 32; i++) mine[i * 32] = values[i];
    __syncthreads();
    if (warp_k < half)
#pragma unroll
      for (int i = 0; i < traits::kWarpFloats / 32; i++) values[i] += mine[i * 32];
  }
  if (warp_k > 0) return;
  const int C = gridDim.y * traits::kChannels;
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
          const int channel = blockIdx.y * traits::kChannels + warp_c * 16 + j * 8 + lane % 4 * 2;
          *reinterpret_cast<float2*>(to + (static_cast<int64_t>(tap) * p.G + g) * C + channel) =
              make_float2(acc[tap][i][j][2 * h], acc[tap][i][j][2 * h + 1]);
        }
}

struct Conv3x3WgradReduceParams {
  const float* partials;  // [splits, kTaps, padded_G, padded_C]
  int splits, G, C, padded_G, padded_C;
  void* dweight;  // [G, C, 3, 3] input_t
};

template <class input_t>
__global__ void __launch_bounds__(kThreads) bn_relu_conv3x3_wgrad_reduce_kernel(const Conv3x3WgradReduceParams p) {
  const int64_t size = static_cast<int64_t>(kTaps) * p.padded_G * p.padded_C;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int c = static_cast<int>(i % p.padded_C), g = static_cast<int>(i / p.padded_C % p.padded_G);
  const int64_t tap = i / p.padded_C / p.padded_G;
  if (c >= p.C || g >= p.G || tap >= kTaps) return;
  float sum = 0.f;
#pragma unroll 8
  for (int split = 0; split < p.splits; split++) sum += p.partials[split * size + i];
  static_cast<input_t*>(p.dweight)[(static_cast<int64_t>(g) * p.C + c) * kTaps + tap] = input_t(sum);
}

// The largest tiles, of at most 64 columns, that fit into shared memory.
template <class traits>
Tiling wgrad_tiling(const Shape& shape, const Launch& where) {
  constexpr int kMaxColumns = 64;
  const int W = static_cast<int>(shape.W), columns = ceil_div(W, ceil_div(W, kMaxColumns));
  Tiling tiling = make_tiling(shape, 1, 1, columns);
  for (int rows = 2; rows * columns <= traits::kMaxPixels && rows <= shape.N * shape.H; rows++) {
    const Tiling larger = make_tiling(shape, 1, rows, columns);
    if (traits::shared_bytes(larger, traits::steps(larger)) > where.device.shared_bytes) break;
    tiling = larger;
  }
  return tiling;
}

template <class traits>
void wgrad(const Conv3x3Bwd& op, const Prepare& prepared, const Launch& where) {
  using input_t = typename traits::input_t;
  Conv3x3WgradParams p{};
  p.tiling = wgrad_tiling<traits>(op.shape, where);
  p.steps = traits::steps(p.tiling);
  p.x = op.x, p.C = static_cast<int>(op.C), p.granule = granule(op.x, sizeof(input_t));
  p.affine = prepared.affine, p.d = prepared.d, p.G = prepared.d_stride;

  // One block per multiprocessor; a split of less than kMinPixels would write more partials than it reads.
  constexpr int64_t kMinPixels = 256;
  const int slabs_c = ceil_div(p.C, traits::kChannels), slabs_g = p.G / traits::kOutputs;
  const int64_t worth =
      std::min<int64_t>(op.shape.rows() / kMinPixels, where.device.multiprocessors / (slabs_c * slabs_g));
  const int splits = static_cast<int>(std::clamp<int64_t>(worth, 1, p.tiling.tiles()));
  const int64_t size = static_cast<int64_t>(kTaps) * p.G * slabs_c * traits::kChannels;
  p.partials = where.workspace->floats(splits * size);
  launch(bn_relu_conv3x3_wgrad_kernel<traits>, dim3(splits, slabs_c, slabs_g), kThreads,
         traits::shared_bytes(p.tiling, p.steps), where, p);

  const Conv3x3WgradReduceParams reduce{
      p.partials, splits, static_cast<int>(op.G), p.C, p.G, slabs_c * traits::kChannels, op.dweight};
  launch(bn_relu_conv3x3_wgrad_reduce_kernel<input_t>, dim3(static_cast<unsigned>(ceil_div<int64_t>(size, kThreads))),
         kThreads, 0, where, reduce);
}

}  // namespace densenet_fast::cuda::conv3x3
