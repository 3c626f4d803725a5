// bn_relu_conv1x1_fwd: z[M, K] = relu(bn(x[M, C])) * weight[K, C]^T and z's statistics, one pass over x.
// Tiles of x and weight stream through a ring of cp.async stages; BN-ReLU is applied to the fragments on their way from
// shared memory to the tensor cores. The epilogue rounds z, takes mean and M2 of the rounded tile in two passes, and
// the last block to arrive merges the tiles.
#include "common.cuh"

namespace densenet_fast::cuda {
namespace {

struct Conv1x1FwdParams {
  const void* x;       // [M, C] input_t
  const void* weight;  // [K, C] input_t
  void* z;             // [M, K] input_t
  int64_t x_stride, weight_stride, z_stride, M;
  int C, K, x_granule, weight_granule, z_granule;
  Norm norm;                   // [C]
  Partials<Moments> partials;  // of z, tiles null if not wanted
  Stats stats;                 // [K]
};

template <class math_t_, int kBlockN_>
struct Conv1x1FwdTraits {
  using math_t = math_t_;
  using input_t = typename math_t::input_t;
  static constexpr int kBlockM = 128, kBlockN = kBlockN_, kStages = 3;
  static constexpr int kWarpsM = 4, kWarpsN = kBlockN / 64, kThreads = kWarpsM * kWarpsN * 32;
  static constexpr int kTilesM = kBlockM / kWarpsM / 16, kTilesN = kBlockN / kWarpsN / 8;  // of one warp
  static constexpr int kBlockK = 2 * kKStep<input_t>;
  static constexpr int kPitch = 64 + 16;  // bytes of a row in shared memory; ldmatrix finds no bank conflict
  static constexpr int kStageBytes = (kBlockM + kBlockN) * kPitch;
  static constexpr int kOutPitch = kBlockN * sizeof(input_t) + 4 * 2 * sizeof(input_t);  // a row of pairs further
  static constexpr int kRingBytes = kStages * kStageBytes, kOutBytes = kBlockM * kOutPitch;
  static constexpr int kPipeBytes = std::max(kRingBytes, kOutBytes);
  static constexpr int kReduceBytes = kWarpsM * kBlockN * sizeof(float);
  static_assert(kPipeBytes >= kFinishBytes<Moments, kThreads>, "the reduction reuses the pipeline's memory");
  // (scale, shift) of every channel lie behind them.
  static int shared_bytes(int C) { return kPipeBytes + kReduceBytes + ceil_div(C, kBlockK) * kBlockK * 8; }
};

// relu(bn()) of a raw fragment of x; `coefficients` of its first channel.
template <class input_t>
__device__ __forceinline__ void bn_relu(uint32_t (&raw)[4], const float2* coefficients, int lane) {
  if constexpr (sizeof(input_t) == 2) {
    const float4* pair = reinterpret_cast<const float4*>(coefficients + 2 * (lane & 3));
    const float4 first = pair[0], second = pair[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const float4 c = i < 2 ? first : second;
      const float2 x = Pair<input_t>{raw[i]}.unpack();
      raw[i] = Pair<input_t>::pack_relu(fmaf(x.x, c.x, c.y), fmaf(x.y, c.z, c.w)).bits;
    }
  } else {
    const float2 first = coefficients[lane & 3], second = coefficients[(lane & 3) + 4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const float2 c = i < 2 ? first : second;
      raw[i] = __float_as_uint(relu(fmaf(__uint_as_float(raw[i]), c.x, c.y)));
    }
  }
}

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads) bn_relu_conv1x1_fwd_kernel(const Conv1x1FwdParams p) {
  using input_t = typename Traits::input_t;
  using math_t = typename Traits::math_t;
  constexpr int kPitch = Traits::kPitch, V = kVector<input_t>;
  extern __shared__ __align__(128) unsigned char shared[];
  float* const reduce = reinterpret_cast<float*>(shared + Traits::kPipeBytes);  // [kWarpsM, kBlockN]
  float2* const coefficients = reinterpret_cast<float2*>(reduce + Traits::kWarpsM * Traits::kBlockN);  // [C]
  const int tid = threadIdx.x, lane = tid & 31;
  const int warp_m = (tid >> 5) % Traits::kWarpsM, warp_n = (tid >> 5) / Traits::kWarpsM;
  const int column_blocks = ceil_div(p.K, Traits::kBlockN);
  const int tile = blockIdx.x / column_blocks, column_block = blockIdx.x % column_blocks;
  const int64_t m0 = static_cast<int64_t>(tile) * Traits::kBlockM;
  const int n0 = column_block * Traits::kBlockN;
  const int rows = static_cast<int>(min(p.M - m0, static_cast<int64_t>(Traits::kBlockM)));
  const int k_tiles = ceil_div(p.C, Traits::kBlockK);
  const input_t* const x = static_cast<const input_t*>(p.x) + m0 * p.x_stride;
  const input_t* const weight = static_cast<const input_t*>(p.weight) + n0 * p.weight_stride;

  // Eight lanes, which shared memory serves at once, take half of every second of eight rows: no bank conflict.
  const int first = tid / 32 * 8 + tid / 2 % 4 * 2 + tid / 16 % 2, piece = tid / 8 % 2 * 2 + tid % 2;
  const input_t* const x_from = x + first * p.x_stride + piece * V;
  const input_t* const weight_from = weight + first * p.weight_stride + piece * V;
  const auto load = [&](int k_tile) {
    unsigned char* const to = shared + k_tile % Traits::kStages * Traits::kStageBytes + first * kPitch + piece * 16;
    const int c = k_tile * Traits::kBlockK, count = p.C - c - piece * V;
    copy_rows<Traits::kBlockM, Traits::kThreads / 4, kPitch>(to, x_from + c, p.x_stride, rows - first, count,
                                                             p.x_granule);
    copy_rows<Traits::kBlockN, Traits::kThreads / 4, kPitch>(
        to + Traits::kBlockM * kPitch, weight_from + c, p.weight_stride, p.K - n0 - first, count, p.weight_granule);
  };
#pragma unroll
  for (int k_tile = 0; k_tile < Traits::kStages - 1; k_tile++) {
    if (k_tile < k_tiles) load(k_tile);
    cp_async_commit();
  }
  affine_table<Traits::kThreads>(coefficients, p.norm, k_tiles * Traits::kBlockK, p.C);

  acc_t acc[Traits::kTilesM][Traits::kTilesN][4] = {};
  const int row0 = warp_m * Traits::kTilesM * 16, col0 = warp_n * Traits::kTilesN * 8;
#pragma unroll 1
  for (int k_tile = 0; k_tile < k_tiles; k_tile++) {
    cp_async_wait<Traits::kStages - 2>();
    __syncthreads();
    if (k_tile + Traits::kStages - 1 < k_tiles) load(k_tile + Traits::kStages - 1);
    cp_async_commit();
    const unsigned char* const stage = shared + k_tile % Traits::kStages * Traits::kStageBytes;
#pragma unroll
    for (int step = 0; step < 2; step++) {
      uint32_t b[Traits::kTilesN][2];
#pragma unroll
      for (int j = 0; j < Traits::kTilesN; j += 2)
        load_b<kPitch>(b[j], b[j + 1], stage + (Traits::kBlockM + col0 + j * 8) * kPitch + step * 32, lane);
#pragma unroll
      for (int i = 0; i < Traits::kTilesM; i++) {
        uint32_t raw[4];
        load_a<kPitch>(raw, stage + (row0 + i * 16) * kPitch + step * 32, lane);
        bn_relu<input_t>(raw, coefficients + k_tile * Traits::kBlockK + step * kKStep<input_t>, lane);
        const Fragment<math_t, 4> a(raw);
#pragma unroll
        for (int j = 0; j < Traits::kTilesN; j++) mma(acc[i][j], a, Fragment<math_t, 2>(b[j]));
      }
    }
  }
  cp_async_wait<0>();
  __syncthreads();

  const int g = lane >> 2, t = lane & 3;
#pragma unroll
  for (int i = 0; i < Traits::kTilesM; i++)
#pragma unroll
    for (int j = 0; j < Traits::kTilesN; j++)
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const auto pair = Pair<input_t>::pack(acc[i][j][2 * h], acc[i][j][2 * h + 1]);
        const int row = row0 + i * 16 + g + h * 8, column = col0 + j * 8 + 2 * t;
        *reinterpret_cast<Pair<input_t>*>(shared + row * Traits::kOutPitch + column * sizeof(input_t)) = pair;
        const float2 rounded = pair.unpack();
        acc[i][j][2 * h] = rounded.x, acc[i][j][2 * h + 1] = rounded.y;
      }
  __syncthreads();
  input_t* const z = static_cast<input_t*>(p.z) + m0 * p.z_stride + n0;
  constexpr int kPieces = Traits::kBlockN / V;
  const int z_row = tid / kPieces, z_column = tid % kPieces * V;
#pragma unroll
  for (int r = 0; r < Traits::kBlockM; r += Traits::kThreads / kPieces)
    if (r + z_row < rows)
      store_piece(z + (r + z_row) * p.z_stride + z_column,
                  shared + (r + z_row) * Traits::kOutPitch + z_column * sizeof(input_t), p.K - n0 - z_column,
                  p.z_granule);
  if (p.partials.tiles == nullptr) return;

  float mean[Traits::kTilesN][2];
#pragma unroll
  for (int pass = 0; pass < 2; pass++) {  // the mean, then the squared deviations from it
#pragma unroll
    for (int j = 0; j < Traits::kTilesN; j++)
#pragma unroll
      for (int e = 0; e < 2; e++) {
        float sum = 0.f;
#pragma unroll
        for (int i = 0; i < Traits::kTilesM; i++)
#pragma unroll
          for (int h = 0; h < 2; h++) {
            const float d = acc[i][j][2 * h + e] - (pass ? mean[j][e] : 0.f);
            if (row0 + i * 16 + g + h * 8 < rows) sum += pass ? d * d : d;
          }
#pragma unroll
        for (int offset = 4; offset < 32; offset *= 2) sum += __shfl_xor_sync(~0u, sum, offset);
        if (g == 0) reduce[warp_m * Traits::kBlockN + col0 + j * 8 + 2 * t + e] = sum;
      }
    __syncthreads();
#pragma unroll
    for (int j = 0; j < Traits::kTilesN; j++)
#pragma unroll
      for (int e = 0; e < 2; e++) {
        const int column = col0 + j * 8 + 2 * t + e;
        float sum = 0.f;
#pragma unroll
        for (int w = 0; w < Traits::kWarpsM; w++) sum += reduce[w * Traits::kBlockN + column];
        if (pass == 0) {
          mean[j][e] = sum / static_cast<float>(rows);
        } else if (warp_m == 0 && g == 0 && n0 + column < p.K) {
          p.partials.put(tile, n0 + column, {{static_cast<float>(rows), mean[j][e], sum}});
        }
      }
    __syncthreads();
  }
  finish_partials<Traits::kThreads, Traits::kBlockN>(p.partials, tile, column_block, reinterpret_cast<float*>(shared),
                                                     [&](int c, const Moments& m) { write_stats(p.stats, c, m); });
}

template <class Traits>
void bn_relu_conv1x1_fwd_launch(const Conv1x1Fwd& op, const Launch& where) {
  const ConstMatrix weight{op.weight.data, op.weight.stride[0]};
  Conv1x1FwdParams p{op.x.data, weight.data, op.z.data, op.x.stride, weight.stride, op.z.stride, op.M};
  p.C = static_cast<int>(op.C), p.K = static_cast<int>(op.K);
  p.x_granule = granule(op.x, where.element_size());
  p.weight_granule = granule(weight, where.element_size());
  p.z_granule = granule(op.z, where.element_size());
  p.norm = op.norm, p.stats = op.stats;
  const int64_t tiles = ceil_div<int64_t>(op.M, Traits::kBlockM), column_blocks = ceil_div(p.K, Traits::kBlockN);
  if (op.stats.mean != nullptr) p.partials = make_partials<Moments>(op.K, tiles, column_blocks, *where.workspace);
  launch(bn_relu_conv1x1_fwd_kernel<Traits>, tiles * column_blocks, Traits::kThreads, Traits::shared_bytes(p.C), where,
         p);
}

}  // namespace

void bn_relu_conv1x1_fwd(const Conv1x1Fwd& op, const Launch& where) {
  with_math(where.math, [&](auto math) {
    using Narrow = Conv1x1FwdTraits<decltype(math), 64>;
    using Wide = Conv1x1FwdTraits<decltype(math), 128>;
    // Two wide blocks fit on a multiprocessor; where there are fewer, twice as many narrow ones divide the work better.
    const int64_t blocks = ceil_div<int64_t>(op.M, Wide::kBlockM) * ceil_div<int64_t>(op.K, Wide::kBlockN);
    if (op.K <= Narrow::kBlockN || blocks < 2 * where.device.multiprocessors)
      bn_relu_conv1x1_fwd_launch<Narrow>(op, where);
    else bn_relu_conv1x1_fwd_launch<Wide>(op, where);
  });
}

}  // namespace densenet_fast::cuda
