// bn_relu_conv1x1_fwd: z[M, K] = relu(bn(x[M, C])) * weight[K, C]^T and z's statistics, one pass over x.
// A block has its columns of every splits-th tile of rows. Tiles of x and weight stream through a ring of cp.async
// stages, without a break from one tile of rows to the next; BN-ReLU is applied to the fragments on their way from
// shared memory to the tensor cores. A thread's accumulators are neighbouring channels, which it rounds and stores
// while the next copies land; it keeps mean and squared deviations of all its rows. At last the block merges those of
// its threads, and the last block to arrive those of all blocks.
#include "row_slice.cuh"

namespace densenet_fast::cuda {
namespace {

struct Conv1x1FwdParams {
  const void* x;       // [M, C] input_t
  const void* weight;  // [K, C] input_t
  void* z;             // [M, K] input_t
  int64_t x_stride, weight_stride, z_stride, M;
  int C, K, x_granule, weight_granule;
  int tiles, splits;  // of the rows: every splits-th tile is a block's
  int column_blocks;
  Norm norm;                   // [C]
  Partials<Moments> partials;  // of z, tiles null if not wanted
  Stats stats;                 // [K]
};

template <class math_t_, int kBlockM_, int kBlockN_, int kWarpsM_, int kWarpsN_>
struct Conv1x1FwdTraits {
  using math_t = math_t_;
  using input_t = typename math_t::input_t;
  static constexpr int kBlockM = kBlockM_, kBlockN = kBlockN_, kStages = 4;
  static constexpr int kWarpsM = kWarpsM_, kWarpsN = kWarpsN_, kThreads = kWarpsM * kWarpsN * 32;
  static constexpr int kBlocks = sizeof(input_t) == 4 ? 1 : kBlockN == 64 ? 4 : 2;         // per multiprocessor
  static constexpr int kTilesM = kBlockM / kWarpsM / 16, kTilesN = kBlockN / kWarpsN / 8;  // of one warp
  // Tiles of columns come in groups, of which a thread has neighbouring channels: 16 bytes where there are as many.
  static constexpr int kGroupTiles = std::min(kTilesN, kVector<input_t> / 2), kGroups = kTilesN / kGroupTiles;
  static constexpr int kLaneColumns = 2 * kGroupTiles;
  static constexpr int kBlockK = 2 * kKStep<input_t>;
  static constexpr int kPitch = 64 + 16;  // bytes of a row in shared memory; ldmatrix finds no bank conflict
  static constexpr int kCopyRows = kThreads / 4;
  static constexpr int kStageBytes = (kBlockM + kBlockN) * kPitch, kRingBytes = kStages * kStageBytes;
  static_assert(kBlockM % kCopyRows == 0 && kBlockN % kCopyRows == 0 && kCopyRows % (8 * kGroupTiles) == 0, "rows");
  static_assert(kRingBytes >= kFinishBytes<Moments, kThreads>, "the reduction reuses the ring's memory");
  // Behind the ring each thread's mean and squares of its columns, and (scale, shift) of every channel.
  static constexpr int kColumns = 2 * kTilesN, kMoments = kRingBytes,
                       kCoefficients = kMoments + kThreads * kColumns * 8;
  static int shared_bytes(int C) { return kCoefficients + ceil_div(C, kBlockK) * kBlockK * 8; }
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
__global__ void __launch_bounds__(Traits::kThreads, Traits::kBlocks)
    bn_relu_conv1x1_fwd_kernel(const Conv1x1FwdParams p) {
  using input_t = typename Traits::input_t;
  using math_t = typename Traits::math_t;
  constexpr int kPitch = Traits::kPitch, V = kVector<input_t>, kCopyRows = Traits::kCopyRows;
  constexpr int kStages = Traits::kStages, kStageBytes = Traits::kStageBytes, kRingBytes = Traits::kRingBytes;
  extern __shared__ __align__(128) unsigned char shared[];
  float2* const coefficients = reinterpret_cast<float2*>(shared + Traits::kCoefficients);  // [C]
  const int tid = threadIdx.x, lane = tid & 31, g = lane >> 2, t = lane & 3;
  const int warp_m = (tid >> 5) % Traits::kWarpsM, warp_n = (tid >> 5) / Traits::kWarpsM;
  const int split = blockIdx.x / p.column_blocks, column_block = blockIdx.x % p.column_blocks;
  const int n0 = column_block * Traits::kBlockN;
  const int k_tiles = ceil_div(p.C, Traits::kBlockK);

  // Eight lanes, which shared memory serves at once, take half of every second of eight rows: no bank conflict.
  const int first = tid / 32 * 8 + tid / 2 % 4 * 2 + tid / 16 % 2, piece = tid / 8 % 2 * 2 + tid % 2;
  // The row of the weight that lies in row `first`: of a group, column 2t + e of tile j is channel kLaneColumns t + 2j
  // + e.
  constexpr int kGroup = 8 * Traits::kGroupTiles;
  const int weight_row =
      first / kGroup * kGroup + first % 8 / 2 * Traits::kLaneColumns + first / 8 % Traits::kGroupTiles * 2 + first % 2;
  // The copies run ahead of the products. Rows past the end are the last one, whose results nobody takes.
  constexpr int kPiecesX = Traits::kBlockM / kCopyRows, kPiecesW = Traits::kBlockN / kCopyRows, kSize = sizeof(input_t);
  int next_tile = split, next_k = 0;
  const unsigned char* x_from = static_cast<const unsigned char*>(p.x);
  const unsigned char* const weight_from =
      static_cast<const unsigned char*>(p.weight) + static_cast<int64_t>(n0) * p.weight_stride * kSize;
  int x_at[kPiecesX], weight_at[kPiecesW];  // bytes from there to the thread's pieces
#pragma unroll
  for (int r = 0; r < kPiecesW; r++)
    weight_at[r] =
        min(weight_row + r * kCopyRows, p.K - n0 - 1) * static_cast<int>(p.weight_stride) * kSize + piece * 16;
  const auto begin_tile = [&] {
    const int64_t m0 = static_cast<int64_t>(next_tile) * Traits::kBlockM;
    const int last = static_cast<int>(min(p.M - m0, static_cast<int64_t>(Traits::kBlockM))) - 1;
    x_from = static_cast<const unsigned char*>(p.x) + m0 * p.x_stride * kSize;
#pragma unroll
    for (int r = 0; r < kPiecesX; r++)
      x_at[r] = min(first + r * kCopyRows, last) * static_cast<int>(p.x_stride) * kSize + piece * 16;
  };
  begin_tile();
  const bool by_16 = p.x_granule == 16 && p.weight_granule == 16;
  const auto load = [&](int stage) {
    if (next_tile < p.tiles) {
      unsigned char* const to = shared + stage + first * kPitch + piece * 16;
      const int at = next_k * 64, count = p.C - next_k * Traits::kBlockK - piece * V;
      const unsigned char *const x = x_from + at, *const weight = weight_from + at;
      if (by_16 && count >= V) {
#pragma unroll
        for (int r = 0; r < kPiecesX; r++) cp_async_16(to + r * kCopyRows * kPitch, x + x_at[r], 16);
#pragma unroll
        for (int r = 0; r < kPiecesW; r++)
          cp_async_16(to + (Traits::kBlockM + r * kCopyRows) * kPitch, weight + weight_at[r], 16);
      } else {
#pragma unroll
        for (int r = 0; r < kPiecesX; r++)
          copy_piece(to + r * kCopyRows * kPitch, reinterpret_cast<const input_t*>(x + x_at[r]), count, p.x_granule);
#pragma unroll
        for (int r = 0; r < kPiecesW; r++)
          copy_piece(to + (Traits::kBlockM + r * kCopyRows) * kPitch,
                     reinterpret_cast<const input_t*>(weight + weight_at[r]), count, p.weight_granule);
      }
      if (++next_k == k_tiles) {
        next_k = 0, next_tile += p.splits;
        begin_tile();
      }
    }
    cp_async_commit();
  };
#pragma unroll
  for (int stage = 0; stage < kStages - 1; stage++) load(stage * kStageBytes);
  affine_table<Traits::kThreads>(coefficients, p.norm, k_tiles * Traits::kBlockK, p.C);

  const int row0 = warp_m * Traits::kTilesM * 16, col0 = warp_n * Traits::kTilesN * 8;
  // Of the thread's rows: how many, and of each of its columns their mean and squared deviations from it.
  constexpr int kLaneColumns = Traits::kLaneColumns;
  float4* const moments = reinterpret_cast<float4*>(shared + Traits::kMoments) + tid;  // [kColumns / 2, kThreads]
#pragma unroll
  for (int i = 0; i < Traits::kColumns / 2; i++) moments[i * Traits::kThreads] = make_float4(0.f, 0.f, 0.f, 0.f);
  float count = 0.f;
  __syncthreads();

  int stage = 0;  // bytes from the ring's begin to the stage that is multiplied
#pragma unroll 1
  for (int tile = split; tile < p.tiles; tile += p.splits) {
    acc_t acc[Traits::kTilesM][Traits::kTilesN][4] = {};
#pragma unroll 1
    for (int k_tile = 0; k_tile < k_tiles; k_tile++) {
      cp_async_wait<kStages - 2>();
      __syncthreads();  // the stage is complete, and the one before it read
      const unsigned char* const from = shared + stage;
#pragma unroll
      for (int step = 0; step < 2; step++) {
        uint32_t b[Traits::kTilesN][2];
#pragma unroll
        for (int j = 0; j < Traits::kTilesN; j += 2)
          load_b<kPitch>(b[j], b[j + 1], from + (Traits::kBlockM + col0 + j * 8) * kPitch + step * 32, lane);
#pragma unroll
        for (int i = 0; i < Traits::kTilesM; i++) {
          uint32_t raw[4];
          load_a<kPitch>(raw, from + (row0 + i * 16) * kPitch + step * 32, lane);
          bn_relu<input_t>(raw, coefficients + k_tile * Traits::kBlockK + step * kKStep<input_t>, lane);
          const Fragment<math_t, 4> a(raw);
#pragma unroll
          for (int j = 0; j < Traits::kTilesN; j++) mma(acc[i][j], a, Fragment<math_t, 2>(b[j]));
        }
      }
      load(stage == 0 ? kRingBytes - kStageBytes : stage - kStageBytes);
      stage = stage == kRingBytes - kStageBytes ? 0 : stage + kStageBytes;
    }

    const int64_t m0 = static_cast<int64_t>(tile) * Traits::kBlockM + row0 + g;
    const int left = static_cast<int>(min(p.M - m0, static_cast<int64_t>(Traits::kBlockM)));
    const float added = static_cast<float>(min(max(left + 7, 0) / 8, 2 * Traits::kTilesM));
    const float inverse = __fdividef(1.f, fmaxf(count + added, 1.f));
#pragma unroll
    for (int group = 0; group < Traits::kGroups; group++) {
      const RowSlice<input_t, kLaneColumns> z(Matrix{p.z, p.z_stride}, n0 + col0 + group * kGroup + t * kLaneColumns,
                                              p.K);
      const auto result = [&](int row, int e) -> float& {
        return acc[row / 16][group * Traits::kGroupTiles + e / 2][row / 8 % 2 * 2 + e % 2];
      };
      input_t* to = z.data + m0 * z.stride;
#pragma unroll
      for (int row = 0; row < Traits::kTilesM * 16; row += 8, to += 8 * z.stride) {
        if (row >= left) continue;
        float v[kLaneColumns];
#pragma unroll
        for (int e = 0; e < kLaneColumns; e++) v[e] = result(row, e);
        z.store(to, v);
#pragma unroll
        for (int e = 0; e < kLaneColumns; e++) result(row, e) = v[e];
      }
      if (p.partials.tiles == nullptr) continue;
      float mean[kLaneColumns], squares[kLaneColumns], sum[kLaneColumns] = {}, sum_squares[kLaneColumns] = {};
#pragma unroll
      for (int e = 0; e < kLaneColumns; e += 2) {
        const float4 two = moments[(group * kLaneColumns + e) / 2 * Traits::kThreads];
        mean[e] = two.x, squares[e] = two.y, mean[e + 1] = two.z, squares[e + 1] = two.w;
      }
#pragma unroll
      for (int row = 0; row < Traits::kTilesM * 16; row += 8) {
        if (row >= left) continue;
#pragma unroll
        for (int e = 0; e < kLaneColumns; e++) {
          if (row == 0 && count == 0.f) mean[e] = result(row, e);
          const float distance = result(row, e) - mean[e];
          sum[e] += distance, sum_squares[e] = fmaf(distance, distance, sum_squares[e]);
        }
      }
#pragma unroll
      for (int e = 0; e < kLaneColumns; e++) {
        const float change = sum[e] * inverse;
        mean[e] += change, squares[e] += fmaf(-change, sum[e], sum_squares[e]);
      }
#pragma unroll
      for (int e = 0; e < kLaneColumns; e += 2)
        moments[(group * kLaneColumns + e) / 2 * Traits::kThreads] =
            make_float4(mean[e], squares[e], mean[e + 1], squares[e + 1]);
    }
    count += added;
  }
  if (p.partials.tiles == nullptr) return;
  cp_async_wait<0>();
  __syncthreads();

  // The lanes with the same columns, then the warps.
  float mean[Traits::kColumns], squares[Traits::kColumns];
#pragma unroll
  for (int e = 0; e < Traits::kColumns; e += 2) {
    const float4 two = moments[e / 2 * Traits::kThreads];
    mean[e] = two.x, squares[e] = two.y, mean[e + 1] = two.z, squares[e + 1] = two.w;
  }
#pragma unroll
  for (int offset = 4; offset < 32; offset *= 2) {
    const float other_count = __shfl_down_sync(~0u, count, offset), total = count + other_count;
    const float weight = other_count / fmaxf(total, 1.f);
#pragma unroll
    for (int e = 0; e < Traits::kColumns; e++) {
      const float distance = __shfl_down_sync(~0u, mean[e], offset) - mean[e];
      squares[e] += __shfl_down_sync(~0u, squares[e], offset) + distance * distance * (count * weight);
      mean[e] += distance * weight;
    }
    count = total;
  }
  Moments* const of_warps = reinterpret_cast<Moments*>(shared);  // [kWarpsM, kBlockN]
  if (g == 0)
#pragma unroll
    for (int e = 0; e < Traits::kColumns; e++) {
      const int column = col0 + e / Traits::kLaneColumns * kGroup + t * Traits::kLaneColumns + e % Traits::kLaneColumns;
      of_warps[warp_m * Traits::kBlockN + column] = {{count, mean[e], squares[e]}};
    }
  __syncthreads();
  if (tid < Traits::kBlockN && n0 + tid < p.K) {
    Moments total;
#pragma unroll
    for (int w = 0; w < Traits::kWarpsM; w++) total.merge(of_warps[w * Traits::kBlockN + tid]);
    p.partials.put(split, n0 + tid, total);
  }
  finish_partials<Traits::kThreads, Traits::kBlockN>(p.partials, split, column_block, reinterpret_cast<float*>(shared),
                                                     [&](int c, const Moments& m) { write_stats(p.stats, c, m); });
}

template <class Traits>
void bn_relu_conv1x1_fwd_launch(const Conv1x1Fwd& op, const Launch& where) {
  const ConstMatrix weight{op.weight.data, op.weight.stride[0]};
  Conv1x1FwdParams p{op.x.data, weight.data, op.z.data, op.x.stride, weight.stride, op.z.stride, op.M};
  p.C = static_cast<int>(op.C), p.K = static_cast<int>(op.K);
  p.x_granule = granule(op.x, where.element_size());
  p.weight_granule = granule(weight, where.element_size());
  p.norm = op.norm, p.stats = op.stats;
  // As many blocks as are resident at once.
  p.column_blocks = ceil_div(p.K, Traits::kBlockN);
  p.tiles = static_cast<int>(ceil_div<int64_t>(op.M, Traits::kBlockM));
  p.splits = std::clamp(Traits::kBlocks * where.device.multiprocessors / p.column_blocks, 1, p.tiles);
  if (op.stats.mean != nullptr)
    p.partials =
        make_partials<Moments>(op.K, p.splits, p.column_blocks, Traits::kThreads / Traits::kBlockN, *where.workspace);
  launch(bn_relu_conv1x1_fwd_kernel<Traits>, p.splits * p.column_blocks, Traits::kThreads, Traits::shared_bytes(p.C),
         where, p);
}

}  // namespace

void bn_relu_conv1x1_fwd(const Conv1x1Fwd& op, const Launch& where) {
  with_math(where.math, [&](auto math) {
    constexpr int kWideWarpsN = sizeof(typename decltype(math)::input_t) == 2 ? 2 : 4;  // by registers
    using Narrow = Conv1x1FwdTraits<decltype(math), 64, 64, 2, 2>;
    using Wide = Conv1x1FwdTraits<decltype(math), 128, 128, 2, kWideWarpsN>;
    // Two wide blocks fit on a multiprocessor; where there are fewer, narrow ones divide the work better.
    const int64_t blocks = ceil_div<int64_t>(op.M, Wide::kBlockM) * ceil_div<int64_t>(op.K, Wide::kBlockN);
    const bool fits = Wide::shared_bytes(static_cast<int>(op.C)) <= where.device.shared_bytes;
    if (op.K <= Narrow::kBlockN || blocks < 2 * where.device.multiprocessors || !fits)
      bn_relu_conv1x1_fwd_launch<Narrow>(op, where);
    else bn_relu_conv1x1_fwd_launch<Wide>(op, where);
  });
}

}  // namespace densenet_fast::cuda
