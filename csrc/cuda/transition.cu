// transition_fwd, transition_bwd: BN-ReLU, 2x2 average, conv1x1. The average comes first, and quarters the convolution:
//   pooled = average(relu(bn(x))),  y = pooled * weight^T;
//   dpooled = dy * weight,  dweight = dy^T * pooled,  v = dpooled / 4 * (bn(x) > 0),  dx = scale*v.
// Both products are the 1x1 convolution's kernels without their norms; pooled is made again in backward.
#include "rows.cuh"

namespace densenet_fast::cuda {
namespace {

// A block's tile: kTileRows pooled pixels of kColumns channels; a thread keeps one piece of a row.
template <class input_t>
struct PoolTraits : RowTraits<input_t> {
  static constexpr int kTileRows = 128;
};

struct PoolParams {
  const void* x;  // [N*H*W, C] input_t
  void* pooled;   // [N*(H/2)*(W/2), C] input_t; in backward the gradient, read
  void* dx;       // [N*H*W, C] input_t
  int64_t x_stride, pooled_stride, dx_stride, pooled_rows;
  int x_granule, pooled_granule, dx_granule, C, H, W;
  Norm norm;
  Partials<Sums> partials;
  NormGradient dnorm;
  float count;
};

// The first of the four rows of x that pooled row `row` averages; the others are 1, W and W + 1 further.
__device__ __forceinline__ int64_t first_row(int64_t row, int H, int W) {
  const int64_t pooled_w = W / 2, pooled_h = H / 2, line = row / pooled_w;
  return (line / pooled_h * H + line % pooled_h * 2) * W + row % pooled_w * 2;
}

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads) bn_relu_pool_kernel(const PoolParams p) {
  using input_t = typename Traits::input_t;
  constexpr int V = kVector<input_t>;
  const int column_blocks = ceil_div(p.C, Traits::kColumns);
  const int64_t row0 = static_cast<int64_t>(blockIdx.x / column_blocks) * Traits::kTileRows;
  const int c = blockIdx.x % column_blocks * Traits::kColumns + threadIdx.x % Traits::kPieces * V, count = p.C - c;
  if (count <= 0) return;
  float2 coefficients[V];
#pragma unroll
  for (int e = 0; e < V; e++) coefficients[e] = affine(p.norm, c + e, p.C);
  const int64_t end = min(row0 + Traits::kTileRows, p.pooled_rows);
  for (int64_t row = row0 + threadIdx.x / Traits::kPieces; row < end; row += Traits::kRows) {
    const int64_t first = first_row(row, p.H, p.W);
    Piece<input_t> sum{};
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const input_t* const from = static_cast<const input_t*>(p.x) + (first + i / 2 * p.W + i % 2) * p.x_stride + c;
      const Piece<input_t> x = Piece<input_t>::load(from, count, p.x_granule);
#pragma unroll
      for (int e = 0; e < V; e++) sum.value[e] += relu(fmaf(x.value[e], coefficients[e].x, coefficients[e].y));
    }
#pragma unroll
    for (int e = 0; e < V; e++) sum.value[e] *= 0.25f;
    sum.store(static_cast<input_t*>(p.pooled) + row * p.pooled_stride + c, count, p.pooled_granule);
  }
}

// dx = 0 in the last row and column of an image of odd height or width, which no average reads.
template <class input_t>
__device__ __forceinline__ void clear(const PoolParams& p, int64_t row, int c) {
  Piece<input_t>{}.store(static_cast<input_t*>(p.dx) + row * p.dx_stride + c, p.C - c, p.dx_granule);
}

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads) bn_relu_pool_bwd_kernel(const PoolParams p) {
  using input_t = typename Traits::input_t;
  constexpr int V = kVector<input_t>;
  __shared__ __align__(16) float shared[kRowsFloats<Traits, Sums>];
  const int column_blocks = ceil_div(p.C, Traits::kColumns);
  const int tile = blockIdx.x / column_blocks, column_block = blockIdx.x % column_blocks;
  const int piece = threadIdx.x % Traits::kPieces, thread_row = threadIdx.x / Traits::kPieces;
  const int64_t row0 = static_cast<int64_t>(tile) * Traits::kTileRows;
  const int c = column_block * Traits::kColumns + piece * V, count = p.C - c;
  float2 coefficients[V];
  float mean[V];
  Sums sums[V];
#pragma unroll
  for (int e = 0; e < V; e++) {
    coefficients[e] = affine(p.norm, c + e, p.C);
    mean[e] = e < count ? p.norm.mean[c + e] : 0.f;
  }
  const int64_t end = count > 0 ? min(row0 + Traits::kTileRows, p.pooled_rows) : 0;
  for (int64_t row = row0 + thread_row; row < end; row += Traits::kRows) {
    const int64_t first = first_row(row, p.H, p.W);
    const Piece<input_t> dpooled = Piece<input_t>::load(
        static_cast<const input_t*>(p.pooled) + row * p.pooled_stride + c, count, p.pooled_granule);
#pragma unroll 2
    for (int i = 0; i < 4; i++) {
      const int64_t at = first + i / 2 * p.W + i % 2;
      const Piece<input_t> x =
          Piece<input_t>::load(static_cast<const input_t*>(p.x) + at * p.x_stride + c, count, p.x_granule);
      Piece<input_t> dx;
#pragma unroll
      for (int e = 0; e < V; e++) {
        const float bn = fmaf(x.value[e], coefficients[e].x, coefficients[e].y);
        const float v = bn <= 0.f ? 0.f : 0.25f * dpooled.value[e];
        sums[e].merge({{v, v * (x.value[e] - mean[e])}});
        dx.value[e] = coefficients[e].x * v;
      }
      dx.store(static_cast<input_t*>(p.dx) + at * p.dx_stride + c, count, p.dx_granule);
    }
    const int pooled_w = p.W / 2, pooled_h = p.H / 2;
    const bool last_column = p.W % 2 == 1 && row % pooled_w == pooled_w - 1;
    const bool last_row = p.H % 2 == 1 && row / pooled_w % pooled_h == pooled_h - 1;
    if (last_column) clear<input_t>(p, first + 2, c), clear<input_t>(p, first + p.W + 2, c);
    if (last_row) clear<input_t>(p, first + 2 * p.W, c), clear<input_t>(p, first + 2 * p.W + 1, c);
    if (last_column && last_row) clear<input_t>(p, first + 2 * p.W + 2, c);
  }

  finish_rows<Traits>(p.partials, sums, shared, tile, column_block, [&](int channel, const Sums& total) {
    write_gradient(p.dnorm, p.norm, p.count, channel, total);
  });
}

// pooled [N*(H/2)*(W/2), C] in the workspace, rows on 16 bytes.
Matrix allocate_pooled(const Shape& shape, int64_t C, const Launch& where) {
  const int64_t rows = shape.N * (shape.H / 2) * (shape.W / 2), stride = ceil_div<int64_t>(C, 8) * 8;
  return {where.workspace->bytes(rows * stride * where.element_size()), stride};
}

PoolParams pool_params(const Shape& shape, int64_t C, const ConstMatrix& x, const Norm& norm, const Matrix& pooled,
                       const Launch& where) {
  PoolParams p{x.data, pooled.data};
  p.x_stride = x.stride, p.pooled_stride = pooled.stride;
  p.pooled_rows = shape.N * (shape.H / 2) * (shape.W / 2);
  p.x_granule = granule(x, where.element_size()), p.pooled_granule = granule(pooled, where.element_size());
  p.C = static_cast<int>(C), p.H = static_cast<int>(shape.H), p.W = static_cast<int>(shape.W);
  p.norm = norm;
  return p;
}

void bn_relu_pool(const PoolParams& p, const Launch& where) {
  with_input(where.math, [&](auto input) {
    using Traits = PoolTraits<decltype(input)>;
    const int64_t tiles = ceil_div<int64_t>(p.pooled_rows, Traits::kTileRows);
    launch(bn_relu_pool_kernel<Traits>, tiles * ceil_div(p.C, Traits::kColumns), Traits::kThreads, 0, where, p);
  });
}

}  // namespace

void transition_fwd(const TransitionFwd& op, const Launch& where) {
  const Matrix pooled = allocate_pooled(op.shape, op.C, where);
  const PoolParams p = pool_params(op.shape, op.C, op.x, op.norm, pooled, where);
  bn_relu_pool(p, where);
  bn_relu_conv1x1_fwd({p.pooled_rows, op.C, op.K, pooled, {}, op.weight, op.y, op.stats}, where);
}

void transition_bwd(const TransitionBwd& op, const Launch& where) {
  const Matrix pooled = allocate_pooled(op.shape, op.C, where), dpooled = allocate_pooled(op.shape, op.C, where);
  PoolParams p = pool_params(op.shape, op.C, op.x, op.norm, pooled, where);
  bn_relu_pool(p, where);

  Conv1x1Bwd product{};
  product.M = p.pooled_rows, product.C = op.C, product.K = op.K;
  product.u = {const_cast<void*>(op.dy.data), op.dy.stride};  // read only
  product.x = pooled;
  product.weight = op.weight;
  product.dx = dpooled;
  product.dweight = op.dweight;
  conv1x1_bwd(product, false, where);

  p.pooled = dpooled.data, p.dx = op.dx.data, p.dx_stride = op.dx.stride;
  p.dx_granule = granule(op.dx, where.element_size());
  p.dnorm = op.dnorm;
  p.count = static_cast<float>(op.shape.rows());
  with_input(where.math, [&](auto input) {
    using Traits = PoolTraits<decltype(input)>;
    const int64_t tiles = ceil_div<int64_t>(p.pooled_rows, Traits::kTileRows);
    const int64_t column_blocks = ceil_div(p.C, Traits::kColumns);
    p.partials = make_partials<Sums>(op.C, tiles, column_blocks, Traits::kParts, *where.workspace);
    launch(bn_relu_pool_bwd_kernel<Traits>, tiles * column_blocks, Traits::kThreads, 0, where, p);
  });
}

}  // namespace densenet_fast::cuda
