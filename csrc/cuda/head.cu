// The final BN-ReLU and the average over the image. Contract: densenet_fast/contract/operations.py.
#include "rows.cuh"

namespace densenet_fast::cuda {
namespace {

struct HeadFwdParams {
  const void* x;  // [N * pixels, C] input_t
  int64_t stride;
  int pixels, C, granule;
  Norm norm;
  void* y;  // [N, C] input_t
};

// One block for each image and kColumns channels.
template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads) head_fwd_kernel(const HeadFwdParams p) {
  using input_t = typename Traits::input_t;
  constexpr int V = Traits::kVector;
  __shared__ __align__(16) float shared[kRowsFloats<Traits, Sums>];
  const int c = Traits::first_channel();
  const input_t* const x =
      static_cast<const input_t*>(p.x) + static_cast<int64_t>(blockIdx.x) * p.pixels * p.stride + c;
  float2 bn[V];
  Sums sums[V];
#pragma unroll
  for (int e = 0; e < V; e++) bn[e] = affine(p.norm, c + e, p.C);
  for (int i = Traits::row(); i < p.pixels; i += Traits::kRows) {
    const Piece<input_t> piece = Piece<input_t>::load(x + i * p.stride, p.C - c, p.granule);
#pragma unroll
    for (int e = 0; e < V; e++) sums[e].value[0] += relu(fmaf(piece.value[e], bn[e].x, bn[e].y));
  }
  merge_rows<Traits>(sums, shared, blockIdx.y, [&](int channel, const Sums& total) {
    if (channel < p.C)
      static_cast<input_t*>(p.y)[static_cast<int64_t>(blockIdx.x) * p.C + channel] =
          input_t(total.value[0] / static_cast<float>(p.pixels));
  });
}

struct HeadBwdParams {
  const void *dy, *x;  // [N, C], [M, C] input_t
  void* dx;            // [M, C] input_t
  int64_t dy_stride, x_stride, dx_stride, M;
  int pixels, C, dy_granule, x_granule, dx_granule;
  Norm norm;
  NormGradient dnorm;
  Partials<Sums> partials;
};

constexpr int kHeadTileRows = 512;

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads) head_bwd_kernel(const HeadBwdParams p) {
  using input_t = typename Traits::input_t;
  __shared__ __align__(16) float shared[kRowsFloats<Traits, Sums>];
  const int c = Traits::first_channel(), count = p.C - c;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kHeadTileRows;
  const int rows = static_cast<int>(min(p.M - first, static_cast<int64_t>(kHeadTileRows)));
  const Activation<input_t> activation(p.norm, c, p.C);
  NormBackward<input_t> backward(activation, p.norm, c, p.C);
  for (int i = Traits::row(); i < rows; i += Traits::kRows) {
    const int64_t m = first + i;
    const auto x = Piece<input_t>::load(static_cast<const input_t*>(p.x) + m * p.x_stride + c, count, p.x_granule);
    auto v =
        Piece<input_t>::load(static_cast<const input_t*>(p.dy) + m / p.pixels * p.dy_stride + c, count, p.dy_granule);
#pragma unroll
    for (int e = 0; e < Traits::kVector; e++) v.value[e] /= static_cast<float>(p.pixels);
    backward.apply(x, v);
    v.store(static_cast<input_t*>(p.dx) + m * p.dx_stride + c, count, p.dx_granule);
  }
  finish_rows<Traits>(p.partials, backward.sums, shared, blockIdx.x, blockIdx.y, [&](int channel, const Sums& total) {
    write_gradient(p.dnorm, p.norm, static_cast<float>(p.M), channel, total);
  });
}

}  // namespace

void head_fwd(const HeadFwd& op, const Launch& where) {
  with_input(where.math, [&](auto input) {
    using Traits = RowTraits<decltype(input)>;
    HeadFwdParams p{op.x.data, op.x.stride, static_cast<int>(op.shape.H * op.shape.W), static_cast<int>(op.C)};
    p.granule = granule(op.x, where.element_size()), p.norm = op.norm, p.y = op.y;
    launch(head_fwd_kernel<Traits>, dim3(op.shape.N, ceil_div<int64_t>(op.C, Traits::kColumns)), Traits::kThreads, 0,
           where, p);
  });
}

void head_bwd(const HeadBwd& op, const Launch& where) {
  with_input(where.math, [&](auto input) {
    using Traits = RowTraits<decltype(input)>;
    HeadBwdParams p{op.dy.data, op.x.data, op.dx.data, op.dy.stride, op.x.stride, op.dx.stride, op.shape.rows()};
    p.pixels = static_cast<int>(op.shape.H * op.shape.W), p.C = static_cast<int>(op.C);
    p.dy_granule = granule(op.dy, where.element_size()), p.x_granule = granule(op.x, where.element_size());
    p.dx_granule = granule(op.dx, where.element_size()), p.norm = op.norm, p.dnorm = op.dnorm;
    const int64_t tiles = ceil_div<int64_t>(p.M, kHeadTileRows), blocks = ceil_div<int64_t>(op.C, Traits::kColumns);
    p.partials = make_partials<Sums>(op.C, tiles, blocks, Traits::kParts, *where.workspace);
    launch(head_bwd_kernel<Traits>, dim3(tiles, blocks), Traits::kThreads, 0, where, p);
  });
}

}  // namespace densenet_fast::cuda
