// channel_stats, bn_bwd_apply, update_running_stats: what BatchNorm needs beside the convolutions.
// A thread keeps one 16-byte piece of a row, with the coefficients of its channels, and walks down the rows of a tile.
#include "rows.cuh"

namespace densenet_fast::cuda {
namespace {

// A block's tile: kTileRows rows of kColumns channels.
template <class input_t>
struct NormTraits : RowTraits<input_t> {
  static constexpr int kTileRows = 512;
};

struct ChannelStatsParams {
  const void* x;  // [M, C] input_t
  int64_t stride, M;
  int C, granule;
  Partials<Moments> partials;
  Stats stats;  // [C]
};

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads, 2) channel_stats_kernel(const ChannelStatsParams p) {
  using input_t = typename Traits::input_t;
  constexpr int V = kVector<input_t>, kBatch = 4;  // rows whose moments are taken in two passes, in registers
  __shared__ __align__(16) float shared[kRowsFloats<Traits, Moments>];
  const int column_blocks = ceil_div(p.C, Traits::kColumns);
  const int tile = blockIdx.x / column_blocks, column_block = blockIdx.x % column_blocks;
  const int piece = threadIdx.x % Traits::kPieces, row = threadIdx.x / Traits::kPieces;
  const int64_t m0 = static_cast<int64_t>(tile) * Traits::kTileRows;
  const int rows = static_cast<int>(min(p.M - m0, static_cast<int64_t>(Traits::kTileRows)));
  const int c = column_block * Traits::kColumns + piece * V;
  const input_t* x = static_cast<const input_t*>(p.x) + m0 * p.stride + c;

  Moments total[V];
  for (int first = row; first < rows; first += kBatch * Traits::kRows) {
    Piece<input_t> batch[kBatch];
    const int count = min(kBatch, ceil_div(rows - first, Traits::kRows));
#pragma unroll
    for (int i = 0; i < kBatch; i++)
      batch[i] = Piece<input_t>::load(x + (first + i * Traits::kRows) * p.stride, i < count ? p.C - c : 0, p.granule);
#pragma unroll
    for (int e = 0; e < V; e++) {
      float sum = 0.f, squares = 0.f;
#pragma unroll
      for (int i = 0; i < kBatch; i++) sum += batch[i].value[e];
      const float mean = sum / static_cast<float>(count);
#pragma unroll
      for (int i = 0; i < kBatch; i++) {
        const float d = batch[i].value[e] - mean;
        if (i < count) squares = fmaf(d, d, squares);
      }
      total[e].merge({{static_cast<float>(count), mean, squares}});
    }
  }

  finish_rows<Traits>(p.partials, total, shared, tile, column_block,
                      [&](int column, const Moments& m) { write_stats(p.stats, column, m); });
}

struct BnBwdApplyParams {
  const void *v, *x;  // [M, C] input_t
  void* dx;           // [M, C] input_t
  int64_t v_stride, x_stride, dx_stride, M;
  int C, v_granule, x_granule, dx_granule;
  Correction correction;  // [C]
};

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads) bn_bwd_apply_kernel(const BnBwdApplyParams p) {
  using input_t = typename Traits::input_t;
  constexpr int V = kVector<input_t>;
  const int column_blocks = ceil_div(p.C, Traits::kColumns);
  const int64_t m0 = static_cast<int64_t>(blockIdx.x / column_blocks) * Traits::kTileRows;
  const int rows = static_cast<int>(min(p.M - m0, static_cast<int64_t>(Traits::kTileRows)));
  const int c = blockIdx.x % column_blocks * Traits::kColumns + threadIdx.x % Traits::kPieces * V, count = p.C - c;
  if (count <= 0) return;
  const input_t* v = static_cast<const input_t*>(p.v) + m0 * p.v_stride + c;
  const input_t* x = static_cast<const input_t*>(p.x) + m0 * p.x_stride + c;
  input_t* dx = static_cast<input_t*>(p.dx) + m0 * p.dx_stride + c;

  float mean[V], a[V], b[V];
#pragma unroll
  for (int e = 0; e < V; e++) {
    const bool inside = e < count;
    mean[e] = inside ? p.correction.mean[c + e] : 0.f, a[e] = inside ? p.correction.a[c + e] : 0.f;
    b[e] = inside ? p.correction.b[c + e] : 0.f;
  }
  for (int row = threadIdx.x / Traits::kPieces; row < rows; row += Traits::kRows) {
    Piece<input_t> piece = Piece<input_t>::load(v + row * p.v_stride, count, p.v_granule);
    const Piece<input_t> at = Piece<input_t>::load(x + row * p.x_stride, count, p.x_granule);
#pragma unroll
    for (int e = 0; e < V; e++) piece.value[e] = piece.value[e] - a[e] - b[e] * (at.value[e] - mean[e]);
    piece.store(dx + row * p.dx_stride, count, p.dx_granule);
  }
}

// Norms by value: a launch needs no memory that must outlive it, and can be captured in a graph.
struct UpdateRunningStatsParams {
  static constexpr int kNorms = 48;
  RunningStats norm[kNorms];
};

template <class running_t>
__device__ void update(void* running, int c, double batch, double momentum) {
  running_t* const r = static_cast<running_t*>(running) + c;
  double old;
  if constexpr (sizeof(running_t) == 2) old = static_cast<float>(*r);
  else old = *r;
  const double updated = old + momentum * (batch - old);
  if constexpr (sizeof(running_t) == 2) *r = running_t(static_cast<float>(updated));
  else *r = static_cast<running_t>(updated);
}

__device__ void update_any(RunningType type, void* running, int c, double batch, double momentum) {
  switch (type) {
    case RunningType::kFloat: return update<float>(running, c, batch, momentum);
    case RunningType::kDouble: return update<double>(running, c, batch, momentum);
    case RunningType::kHalf: return update<f16>(running, c, batch, momentum);
    case RunningType::kBFloat16: return update<bf16>(running, c, batch, momentum);
  }
}

__global__ void __launch_bounds__(256) update_running_stats_kernel(const UpdateRunningStatsParams p) {
  const RunningStats& norm = p.norm[blockIdx.y];
  const int c = blockIdx.x * 256 + threadIdx.x;
  if (c == 0 && norm.num_batches_tracked != nullptr) ++*norm.num_batches_tracked;
  if (c >= norm.C) return;
  update_any(norm.type_mean, norm.running_mean, c, norm.mean[c], norm.momentum);
  update_any(norm.type_var, norm.running_var, c, norm.unbias * norm.var[c], norm.momentum);
}

}  // namespace

void channel_stats(const ChannelStats& op, const Launch& where) {
  with_input(where.math, [&](auto input) {
    using Traits = NormTraits<decltype(input)>;
    ChannelStatsParams p{op.x.data, op.x.stride, op.M, static_cast<int>(op.C)};
    p.granule = granule(op.x, where.element_size());
    const int64_t tiles = ceil_div<int64_t>(op.M, Traits::kTileRows);
    const int64_t column_blocks = ceil_div<int64_t>(op.C, Traits::kColumns);
    p.partials = make_partials<Moments>(op.C, tiles, column_blocks, Traits::kParts, *where.workspace);
    p.stats = op.stats;
    launch(channel_stats_kernel<Traits>, tiles * column_blocks, Traits::kThreads, 0, where, p);
  });
}

void bn_bwd_apply(const BnBwdApply& op, const Launch& where) {
  with_input(where.math, [&](auto input) {
    using Traits = NormTraits<decltype(input)>;
    BnBwdApplyParams p{op.v.data,   op.x.data,    op.dx.data, op.v.stride,
                       op.x.stride, op.dx.stride, op.M,       static_cast<int>(op.C)};
    p.v_granule = granule(op.v, where.element_size());
    p.x_granule = granule(op.x, where.element_size());
    p.dx_granule = granule(op.dx, where.element_size());
    p.correction = op.correction;
    const int64_t tiles = ceil_div<int64_t>(op.M, Traits::kTileRows);
    launch(bn_bwd_apply_kernel<Traits>, tiles * ceil_div<int64_t>(op.C, Traits::kColumns), Traits::kThreads, 0, where,
           p);
  });
}

void update_running_stats(const RunningStats* norms, int64_t count, const Launch& where) {
  for (int64_t first = 0; first < count; first += UpdateRunningStatsParams::kNorms) {
    UpdateRunningStatsParams p{};
    const int n = static_cast<int>(std::min<int64_t>(count - first, UpdateRunningStatsParams::kNorms));
    std::copy_n(norms + first, n, p.norm);
    int C = 1;
    for (int i = 0; i < n; i++) C = std::max(C, p.norm[i].C);
    launch(update_running_stats_kernel, dim3(ceil_div(C, 256), n), 256, 0, where, p);
  }
}

}  // namespace densenet_fast::cuda
