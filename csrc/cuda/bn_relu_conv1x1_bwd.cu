// bn_relu_conv1x1_bwd: the whole backward of BN-ReLU-conv1x1 in one pass over x.
//   dz = scale_z*u - z_a - z_b*(z - z_mean),  v = (dz * weight) * (bn(x) > 0),  dx += scale*v,
//   dweight = dz^T * relu(bn(x)).
// Grid: slabs of kSlab channels x splits of the rows. A block keeps its slab of weight in shared memory and its slab of
// dweight in registers over all its rows; tiles of u, z, x and dx stream through a ring of two cp.async stages. It
// leaves one fp32 partial of dweight and of the sums; a second kernel adds the partials in order and finalizes. v is
// linear in dz, so more than kK channels of z are taken in turns of kK, each a launch that adds to dx.
#include "common.cuh"

namespace densenet_fast::cuda {
namespace {

struct Conv1x1BwdParams {
  const void *u, *z;   // [M, K] input_t; z null: dz = u
  const void* x;       // [M, C] input_t
  void* dx;            // [M, C] input_t
  const void* weight;  // [K, C] input_t
  int64_t u_stride, z_stride, x_stride, dx_stride, weight_stride, M;
  int u_granule, z_granule, x_granule, dx_granule, weight_granule;
  int C, K, first_k, tiles_per_split;
  bool accumulate;          // into dx; else it is written
  Norm norm2;               // [K], of z
  Correction correction2;   // [K]
  Norm norm;                // [C]
  float* dweight_partials;  // [splits, K, C], null if not wanted
  float* sum_partials;      // [splits, 2, C], null if not wanted
};

template <class math_t_, int kK_, int kSlab_, int kBlockM_, int kWarpsM1_, int kWarpsN1_, int kWarpsM2_, int kWarpsN2_>
struct Conv1x1BwdTraits {
  using math_t = math_t_;
  using input_t = typename math_t::input_t;
  static constexpr int kK = kK_, kSlab = kSlab_, kBlockM = kBlockM_, kStages = 2;
  // v [kBlockM, kSlab] is divided among kWarpsM1 x kWarpsN1 warps, dweight [kK, kSlab] among kWarpsM2 x kWarpsN2.
  static constexpr int kWarpsM1 = kWarpsM1_, kWarpsN1 = kWarpsN1_, kWarpsM2 = kWarpsM2_, kWarpsN2 = kWarpsN2_;
  static constexpr int kThreads = kWarpsM1 * kWarpsN1 * 32;
  static constexpr int kTilesM1 = kBlockM / kWarpsM1 / 16, kTilesN1 = kSlab / kWarpsN1 / 8;
  static constexpr int kTilesM2 = kK / kWarpsM2 / 16, kTilesN2 = kSlab / kWarpsN2 / 8;
  static constexpr bool kKeepsWeight = sizeof(input_t) == 2 && kTilesN1 == 2;
  static constexpr int kKept = kKeepsWeight ? kK / kKStep<input_t> : 1;
  // Bytes from row to row: what ldmatrix meets no bank conflict with; of the slab in fp32, which ldmatrix cannot
  // transpose, what lanes that read single elements and write pairs of them do.
  static constexpr int kPitchK = kK * sizeof(input_t) + 16, kPitchC = kSlab * sizeof(input_t) + 8 * sizeof(input_t);
  // A stage: u (then dz), z, x (then relu(bn(x))), dx.
  static constexpr int kZ = kBlockM * kPitchK, kX = 2 * kZ, kDx = kX + kBlockM * kPitchC;
  static constexpr int kStageBytes = kDx + kBlockM * kPitchC;
  // Behind the stages: weight, (scale, shift, mean) of the slab, (scale, mean, a, b) of z, room for the sums.
  static constexpr int kWeight = kStages * kStageBytes, kNorm = kWeight + kK * kPitchC, kNormZ = kNorm + 3 * kSlab * 4;
  static constexpr int kReduce = kNormZ + 4 * kK * 4, kSharedBytes = kReduce + kWarpsM1 * kSlab * 8;
  static_assert(kWarpsM1 * kWarpsN1 == kWarpsM2 * kWarpsN2 && kTilesN1 % 2 == 0 && kTilesN2 % 2 == 0, "warps");
  static constexpr int kRowsK = kThreads / (kK / kVector<input_t>), kRowsC = kThreads / (kSlab / kVector<input_t>);
  static_assert(kBlockM % 16 == 0 && kBlockM % kRowsK == 0 && kBlockM % kRowsC == 0 && kK % kRowsC == 0,
                "every thread has a piece of as many rows");
};

template <class input_t>
struct alignas(4 * sizeof(input_t)) Quad {
  Pair<input_t> pair[2];
};

template <class Traits, int kSharedBytes>
__global__ void __launch_bounds__(Traits::kThreads, 1) bn_relu_conv1x1_bwd_kernel(const Conv1x1BwdParams p) {
  using input_t = typename Traits::input_t;
  using math_t = typename Traits::math_t;
  constexpr int kPitchK = Traits::kPitchK, kPitchC = Traits::kPitchC, V = kVector<input_t>, kStep = kKStep<input_t>;
  constexpr int kSize = sizeof(input_t);
  extern __shared__ __align__(128) unsigned char shared[];
  float* const norm = reinterpret_cast<float*>(shared + Traits::kNorm);      // [3, kSlab]
  float* const norm_z = reinterpret_cast<float*>(shared + Traits::kNormZ);   // [4, kK]
  float* const reduce = reinterpret_cast<float*>(shared + Traits::kReduce);  // [kWarpsM1, kSlab, 2]
  const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5, g = lane >> 2, t = lane & 3;
  const int slabs = ceil_div(p.C, Traits::kSlab), split = blockIdx.x / slabs;
  const int c0 = blockIdx.x % slabs * Traits::kSlab;
  const int64_t m0 = static_cast<int64_t>(split) * p.tiles_per_split * Traits::kBlockM;
  const int rows = static_cast<int>(min(p.M - m0, static_cast<int64_t>(p.tiles_per_split) * Traits::kBlockM));
  const int tiles = ceil_div(rows, Traits::kBlockM);

  // A thread copies the same piece of K and the same piece of the slab of every row it meets.
  constexpr int kPiecesK = Traits::kK / V, kPiecesC = Traits::kSlab / V;
  constexpr int kRowsK = Traits::kRowsK, kRowsC = Traits::kRowsC;
  const int k_piece = tid % kPiecesK * V, k_row = tid / kPiecesK, k_count = p.K - p.first_k - k_piece;
  const int c_piece = tid % kPiecesC * V, c_row = tid / kPiecesC, c = c0 + c_piece, c_count = p.C - c;

  // Addresses are found anew for every tile: to keep them would take registers that the products need.
  const auto load = [&](int tile) {
    unsigned char* const stage = shared + tile % Traits::kStages * Traits::kStageBytes;
    const int64_t row0 = m0 + static_cast<int64_t>(tile) * Traits::kBlockM;
    const int left = rows - tile * Traits::kBlockM;
    const auto copy_k = [&](int at, const void* from, int64_t stride, int granule) {
      copy_rows<Traits::kBlockM, kRowsK, kPitchK>(
          stage + at + k_row * kPitchK + k_piece * kSize,
          static_cast<const input_t*>(from) + (row0 + k_row) * stride + p.first_k + k_piece, stride, left - k_row,
          k_count, granule);
    };
    const auto copy_c = [&](int at, const void* from, int64_t stride, int granule) {
      copy_rows<Traits::kBlockM, kRowsC, kPitchC>(stage + at + c_row * kPitchC + c_piece * kSize,
                                                  static_cast<const input_t*>(from) + (row0 + c_row) * stride + c,
                                                  stride, left - c_row, c_count, granule);
    };
    copy_k(0, p.u, p.u_stride, p.u_granule);
    if (p.z != nullptr) copy_k(Traits::kZ, p.z, p.z_stride, p.z_granule);
    copy_c(Traits::kX, p.x, p.x_stride, p.x_granule);
    if (p.accumulate) copy_c(Traits::kDx, p.dx, p.dx_stride, p.dx_granule);
  };
  const input_t* const weight = static_cast<const input_t*>(p.weight) + (p.first_k + c_row) * p.weight_stride + c;
  copy_rows<Traits::kK, kRowsC, kPitchC>(shared + Traits::kWeight + c_row * kPitchC + c_piece * kSize, weight,
                                         p.weight_stride, p.K - p.first_k - c_row, c_count, p.weight_granule);
  cp_async_commit();
  load(0);
  cp_async_commit();
  for (int i = tid; i < Traits::kSlab + (p.z != nullptr ? Traits::kK : 0); i += Traits::kThreads) {
    if (i < Traits::kSlab) {
      const float2 coefficients = affine(p.norm, c0 + i, p.C);
      norm[i] = coefficients.x, norm[Traits::kSlab + i] = coefficients.y;
      norm[2 * Traits::kSlab + i] = p.norm.mean != nullptr && c0 + i < p.C ? p.norm.mean[c0 + i] : 0.f;
    } else {
      const int k = p.first_k + i - Traits::kSlab;
      float* const to = norm_z + i - Traits::kSlab;
      to[0] = affine(p.norm2, k, p.K).x;
      to[Traits::kK] = k < p.K ? p.correction2.mean[k] : 0.f;
      to[2 * Traits::kK] = k < p.K ? p.correction2.a[k] : 0.f;
      to[3 * Traits::kK] = k < p.K ? p.correction2.b[k] : 0.f;
    }
  }
  __syncthreads();

  acc_t dweight[Traits::kTilesM2][Traits::kTilesN2][4] = {};
  float sum_v[Traits::kTilesN1][2] = {}, sum_vx[Traits::kTilesN1][2] = {};
  const int row1 = warp % Traits::kWarpsM1 * Traits::kTilesM1 * 16;
  const int col1 = warp / Traits::kWarpsM1 * Traits::kTilesN1 * 8;
  const int row2 = warp % Traits::kWarpsM2 * Traits::kTilesM2 * 16;
  const int col2 = warp / Traits::kWarpsM2 * Traits::kTilesN2 * 8;

  // The weight's operands stay in registers where these suffice.
  uint32_t kept[Traits::kKept][Traits::kTilesN1][2];
  if constexpr (Traits::kKeepsWeight) {
    cp_async_wait<1>();
    __syncthreads();
#pragma unroll
    for (int i = 0; i < Traits::kKept; i++)
#pragma unroll
      for (int j = 0; j < Traits::kTilesN1; j += 2)
        load_b_transposed<input_t, kPitchC>(
            kept[i][j], kept[i][j + 1], shared + Traits::kWeight + i * kStep * kPitchC + (col1 + j * 8) * kSize, lane);
  }

  // What is left to do of a tile once dz, relu(bn(x)) and the sum lie in its stage.
  const auto finish = [&](int tile) {
    const unsigned char* const stage = shared + tile % Traits::kStages * Traits::kStageBytes;
    const int64_t row0 = m0 + static_cast<int64_t>(tile) * Traits::kBlockM;
    const int left = rows - tile * Traits::kBlockM;
    if (p.dweight_partials != nullptr) {
#pragma unroll
      for (int m = 0; m < Traits::kBlockM; m += kStep) {
        uint32_t b[Traits::kTilesN2][2];
#pragma unroll
        for (int j = 0; j < Traits::kTilesN2; j += 2)
          load_b_transposed<input_t, kPitchC>(b[j], b[j + 1], stage + Traits::kX + m * kPitchC + (col2 + j * 8) * kSize,
                                              lane);
#pragma unroll
        for (int i = 0; i < Traits::kTilesM2; i++) {
          uint32_t raw[4];
          load_a_transposed<input_t, kPitchK>(raw, stage + m * kPitchK + (row2 + i * 16) * kSize, lane);
          const Fragment<math_t, 4> a(raw);
#pragma unroll
          for (int j = 0; j < Traits::kTilesN2; j++) mma(dweight[i][j], a, Fragment<math_t, 2>(b[j]));
        }
      }
    }
#pragma unroll
    for (int r = 0; r < Traits::kBlockM; r += kRowsC)
      if (r + c_row < left)
        store_piece(static_cast<input_t*>(p.dx) + (row0 + r + c_row) * p.dx_stride + c,
                    stage + Traits::kDx + (r + c_row) * kPitchC + c_piece * kSize, c_count, p.dx_granule);
  };

#pragma unroll 1
  for (int tile = 0; tile <= tiles; tile++) {
    cp_async_wait<0>();
    __syncthreads();  // this tile has landed, and the one before it is ready to be finished
    if (tile > 0) finish(tile - 1);
    if (tile == tiles) break;
    unsigned char* const stage = shared + tile % Traits::kStages * Traits::kStageBytes;
    const int left = rows - tile * Traits::kBlockM;
    if (p.z != nullptr) {
      // dz over u: every thread the same four channels of every row it meets.
      constexpr int kQuads = Traits::kK / 4;
      const int k = tid % kQuads * 4, first = tid / kQuads;
      const float4 scale = *reinterpret_cast<const float4*>(norm_z + k);
      const float4 mean = *reinterpret_cast<const float4*>(norm_z + Traits::kK + k);
      const float4 a = *reinterpret_cast<const float4*>(norm_z + 2 * Traits::kK + k);
      const float4 b = *reinterpret_cast<const float4*>(norm_z + 3 * Traits::kK + k);
      const auto dz = [](float u, float z, float scale, float mean, float a, float b) {
        return fmaf(scale, u, fmaf(-b, z - mean, -a));
      };
#pragma unroll
      for (int r = 0; r < Traits::kBlockM; r += Traits::kThreads / kQuads) {
        unsigned char* const quad = stage + (r + first) * kPitchK + k * kSize;
        auto* const at = reinterpret_cast<Quad<input_t>*>(quad);
        const Quad<input_t> us = *at, zs = *reinterpret_cast<const Quad<input_t>*>(quad + Traits::kZ);
        const float2 u0 = us.pair[0].unpack(), u1 = us.pair[1].unpack();
        const float2 z0 = zs.pair[0].unpack(), z1 = zs.pair[1].unpack();
        const Quad<input_t> result = {
            Pair<input_t>::pack(dz(u0.x, z0.x, scale.x, mean.x, a.x, b.x), dz(u0.y, z0.y, scale.y, mean.y, a.y, b.y)),
            Pair<input_t>::pack(dz(u1.x, z1.x, scale.z, mean.z, a.z, b.z), dz(u1.y, z1.y, scale.w, mean.w, a.w, b.w))};
        *at = r + first < left ? result : Quad<input_t>{};  // rows past the end contribute nothing
      }
    }
    __syncthreads();  // dz is complete, and the other stage read
    if (tile + 1 < tiles) load(tile + 1);
    cp_async_commit();

    acc_t v[Traits::kTilesM1][Traits::kTilesN1][4] = {};
#pragma unroll
    for (int k = 0; k < Traits::kK; k += kStep) {
      uint32_t b[Traits::kTilesN1][2];
#pragma unroll
      for (int j = 0; j < Traits::kTilesN1; j += 2)
        if constexpr (Traits::kKeepsWeight) {
#pragma unroll
          for (int h = 0; h < 2; h++) b[j][h] = kept[k / kStep][j][h], b[j + 1][h] = kept[k / kStep][j + 1][h];
        } else {
          load_b_transposed<input_t, kPitchC>(b[j], b[j + 1],
                                              shared + Traits::kWeight + k * kPitchC + (col1 + j * 8) * kSize, lane);
        }
#pragma unroll
      for (int i = 0; i < Traits::kTilesM1; i++) {
        uint32_t raw[4];
        load_a<kPitchK>(raw, stage + (row1 + i * 16) * kPitchK + k * kSize, lane);
        const Fragment<math_t, 4> a(raw);
#pragma unroll
        for (int j = 0; j < Traits::kTilesN1; j++) mma(v[i][j], a, Fragment<math_t, 2>(b[j]));
      }
    }
#pragma unroll
    for (int j = 0; j < Traits::kTilesN1; j++) {
      const int c = col1 + j * 8 + 2 * t;
      const float2 scale = *reinterpret_cast<const float2*>(norm + c);
      const float2 shift = *reinterpret_cast<const float2*>(norm + Traits::kSlab + c);
      const float2 mean = *reinterpret_cast<const float2*>(norm + 2 * Traits::kSlab + c);
#pragma unroll
      for (int i = 0; i < Traits::kTilesM1; i++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
          unsigned char* const at = stage + (row1 + i * 16 + g + 8 * h) * kPitchC + c * kSize;
          auto* const x_at = reinterpret_cast<Pair<input_t>*>(at + Traits::kX);
          auto* const dx_at = reinterpret_cast<Pair<input_t>*>(at + Traits::kDx);
          const float2 xs = x_at->unpack(), old = p.accumulate ? dx_at->unpack() : make_float2(0.f, 0.f);
          const float bn_x = fmaf(xs.x, scale.x, shift.x), bn_y = fmaf(xs.y, scale.y, shift.y);
          // A NaN of bn(x) lets v through, as PyTorch's ReLU does.
          const float vx = bn_x <= 0.f ? 0.f : v[i][j][2 * h], vy = bn_y <= 0.f ? 0.f : v[i][j][2 * h + 1];
          sum_v[j][0] += vx, sum_v[j][1] += vy;
          sum_vx[j][0] = fmaf(vx, xs.x - mean.x, sum_vx[j][0]), sum_vx[j][1] = fmaf(vy, xs.y - mean.y, sum_vx[j][1]);
          *x_at = Pair<input_t>::pack_relu(bn_x, bn_y);
          *dx_at = Pair<input_t>::pack(fmaf(scale.x, vx, old.x), fmaf(scale.y, vy, old.y));
        }
    }
  }

  if (p.sum_partials != nullptr) {
#pragma unroll
    for (int j = 0; j < Traits::kTilesN1; j++)
#pragma unroll
      for (int e = 0; e < 2; e++) {
        float v = sum_v[j][e], vx = sum_vx[j][e];
#pragma unroll
        for (int offset = 4; offset < 32; offset *= 2) {
          v += __shfl_xor_sync(~0u, v, offset);
          vx += __shfl_xor_sync(~0u, vx, offset);
        }
        if (g == 0)
          reinterpret_cast<float2*>(reduce)[warp % Traits::kWarpsM1 * Traits::kSlab + col1 + j * 8 + 2 * t + e] =
              make_float2(v, vx);
      }
    __syncthreads();
    for (int c = tid; c < Traits::kSlab && c0 + c < p.C; c += Traits::kThreads) {
      float2 total = make_float2(0.f, 0.f);
      for (int w = 0; w < Traits::kWarpsM1; w++) {
        const float2 next = reinterpret_cast<const float2*>(reduce)[w * Traits::kSlab + c];
        total.x += next.x, total.y += next.y;
      }
      float* const to = p.sum_partials + static_cast<int64_t>(split) * 2 * p.C + c0 + c;
      to[0] = total.x, to[p.C] = total.y;
    }
  }
  if (p.dweight_partials != nullptr) {
#pragma unroll
    for (int i = 0; i < Traits::kTilesM2; i++)
#pragma unroll
      for (int j = 0; j < Traits::kTilesN2; j++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
          const int k = p.first_k + row2 + i * 16 + g + 8 * h, c = c0 + col2 + j * 8 + 2 * t;
          if (k >= p.K) continue;
          float* const to = p.dweight_partials + (static_cast<int64_t>(split) * p.K + k) * p.C + c;
          if (c < p.C) to[0] = dweight[i][j][2 * h];
          if (c + 1 < p.C) to[1] = dweight[i][j][2 * h + 1];
        }
  }
}

struct Conv1x1BwdReduceParams {
  const float* dweight_partials;  // [splits, K, C]
  void* dweight;                  // [K, C] input_t
  const float* sum_partials;      // [sum_count, 2, C]
  int64_t weights;                // K * C, or 0 without dweight
  int splits, sum_count, C;       // sum_count 0: no norm
  float count;
  Norm norm;
  NormGradient dnorm;
};

// Adds the partials in order: one thread for each weight, then one for each channel.
template <class input_t>
__global__ void __launch_bounds__(256) bn_relu_conv1x1_bwd_reduce_kernel(const Conv1x1BwdReduceParams p) {
  const int64_t weight_blocks = ceil_div<int64_t>(p.weights, 256);
  if (blockIdx.x < weight_blocks) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
    if (i >= p.weights) return;
    float sum = 0.f;
#pragma unroll 8
    for (int split = 0; split < p.splits; split++) sum += p.dweight_partials[split * p.weights + i];
    static_cast<input_t*>(p.dweight)[i] = input_t(sum);
  } else {
    const int c = static_cast<int>(blockIdx.x - weight_blocks) * 256 + threadIdx.x;
    if (c >= p.C) return;
    Sums sums;
#pragma unroll 8
    for (int i = 0; i < p.sum_count; i++) {
      const float* const from = p.sum_partials + static_cast<int64_t>(i) * 2 * p.C + c;
      sums.merge({{from[0], from[p.C]}});
    }
    write_gradient(p.dnorm, p.norm, p.count, c, sums);
  }
}

template <class Traits>
void conv1x1_bwd_launch(const Conv1x1Bwd& op, bool accumulate, const Launch& where) {
  const int size = where.element_size();
  const ConstMatrix weight{op.weight.data, op.weight.stride[0]};
  Conv1x1BwdParams p{op.u.data, op.z.data, op.x.data, op.dx.data, weight.data};
  p.u_stride = op.u.stride, p.z_stride = op.z.stride, p.x_stride = op.x.stride, p.dx_stride = op.dx.stride;
  p.weight_stride = weight.stride, p.M = op.M, p.C = static_cast<int>(op.C), p.K = static_cast<int>(op.K);
  p.u_granule = granule(op.u, size), p.z_granule = granule(op.z, size), p.x_granule = granule(op.x, size);
  p.dx_granule = granule(op.dx, size), p.weight_granule = granule(weight, size);
  p.norm2 = op.norm2, p.correction2 = op.correction2, p.norm = op.norm;

  // One block per multiprocessor, but few enough splits that the partials are fewer bytes than the rows.
  const int64_t slabs = ceil_div(p.C, Traits::kSlab), tiles = ceil_div<int64_t>(op.M, Traits::kBlockM);
  const int64_t worth = op.M * (4 * op.K + 6 * op.C) / (8 * op.K * op.C);
  int64_t splits = std::clamp<int64_t>(std::min(where.device.multiprocessors / slabs, worth), 1, tiles);
  p.tiles_per_split = static_cast<int>(ceil_div(tiles, splits));
  splits = ceil_div<int64_t>(tiles, p.tiles_per_split);

  const bool sums = op.dnorm.dgamma != nullptr;
  const int turns = ceil_div(p.K, Traits::kK);
  if (op.dweight != nullptr) p.dweight_partials = where.workspace->floats(splits * op.K * op.C);
  float* const sum_partials = sums ? where.workspace->floats(turns * splits * 2 * op.C) : nullptr;
  for (int turn = 0; turn < turns; turn++) {
    p.first_k = turn * Traits::kK;
    p.accumulate = accumulate || turn > 0;
    p.sum_partials = sums ? sum_partials + turn * splits * 2 * op.C : nullptr;
    launch(bn_relu_conv1x1_bwd_kernel<Traits, Traits::kSharedBytes>, slabs * splits, Traits::kThreads,
           Traits::kSharedBytes, where, p);
  }

  Conv1x1BwdReduceParams r{p.dweight_partials, op.dweight, sum_partials};
  r.weights = op.dweight != nullptr ? op.K * op.C : 0;
  r.splits = static_cast<int>(splits), r.sum_count = sums ? static_cast<int>(turns * splits) : 0;
  r.C = sums ? p.C : 0, r.count = static_cast<float>(op.M), r.norm = op.norm, r.dnorm = op.dnorm;
  const int64_t blocks = ceil_div<int64_t>(r.weights, 256) + ceil_div(r.C, 256);
  if (blocks > 0) launch(bn_relu_conv1x1_bwd_reduce_kernel<typename Traits::input_t>, blocks, 256, 0, where, r);
}

// The largest tile whose shared memory the device has.
template <class math_t, int kK>
void conv1x1_bwd_sized(const Conv1x1Bwd& op, bool accumulate, const Launch& where) {
  if constexpr (sizeof(typename math_t::input_t) == 2) {
    constexpr int kWarpsM2 = kK / 32, kWarpsN2 = 8 / kWarpsM2;
    using Large = Conv1x1BwdTraits<math_t, kK, 128, 64, 2, 8, kWarpsM2, 2 * kWarpsN2>;
    using Medium = Conv1x1BwdTraits<math_t, kK, 128, 32, 2, 4, kWarpsM2, kWarpsN2>;
    using Small = Conv1x1BwdTraits<math_t, kK, 64, 32, 2, 4, kWarpsM2, kWarpsN2>;
    if (where.device.shared_bytes >= Large::kSharedBytes) conv1x1_bwd_launch<Large>(op, accumulate, where);
    else if (where.device.shared_bytes >= Medium::kSharedBytes) conv1x1_bwd_launch<Medium>(op, accumulate, where);
    else conv1x1_bwd_launch<Small>(op, accumulate, where);
  } else {
    using Traits = Conv1x1BwdTraits<math_t, kK, 64, 16, 1, 4, kK / 32, 128 / kK>;
    conv1x1_bwd_launch<Traits>(op, accumulate, where);
  }
}

}  // namespace

void conv1x1_bwd(const Conv1x1Bwd& op, bool accumulate, const Launch& where) {
  with_math(where.math, [&](auto math) {
    if (op.K <= 64) conv1x1_bwd_sized<decltype(math), 64>(op, accumulate, where);
    else conv1x1_bwd_sized<decltype(math), 128>(op, accumulate, where);
  });
}

void bn_relu_conv1x1_bwd(const Conv1x1Bwd& op, const Launch& where) { conv1x1_bwd(op, true, where); }

}  // namespace densenet_fast::cuda
