// Backward of BN-ReLU-conv3x3-dropout. Contract: densenet_fast/contract/operations.py.
//   d = mask * (dy - a - b * (y - y_mean)), made once and padded to whole pieces: conv3x3_prepare.cu;
//   u = conv3x3T(d, weight) * (bn(x) > 0): conv3x3_main_loop.cuh with the weight flipped, then here the sums of u
//   and the end of BatchNorm's backward;
//   dweight: conv3x3_wgrad.cuh, before u; blocks in front of u's add its partials.
#include "conv3x3_epilogue.cuh"
#include "conv3x3_launch.cuh"
#include "conv3x3_wgrad.cuh"

namespace densenet_fast::cuda {

using namespace conv3x3;

namespace {

struct Conv3x3DgradParams {
  MainLoopParams main_loop;
  int C;
  ConstMatrix x;  // [N * H * W, C]
  Norm norm;
  const float2* affine;  // of norm
  Matrix u;              // written, or with `accumulate` added scale * u
  bool accumulate;
  float count;
  NormGradient dnorm;
  Partials<Sums> partials;
  Conv3x3WgradReduceParams dweight;
  int dweight_blocks;  // along x, in front of those of the tiles
};

template <class Traits>
__global__ void __launch_bounds__(kThreads, Traits::kBlocks) bn_relu_conv3x3_dgrad_kernel(const Conv3x3DgradParams p) {
  using input_t = typename Traits::input_t;
  constexpr int kLaneColumns = Traits::kLaneColumns;
  const int tile_index = static_cast<int>(blockIdx.x) - p.dweight_blocks;
  if (tile_index < 0) {
    const int64_t block = static_cast<int64_t>(blockIdx.y) * p.dweight_blocks + blockIdx.x;
    reduce_wgrad<input_t>(p.dweight, block * kThreads + threadIdx.x);
    return;
  }
  extern __shared__ __align__(128) unsigned char shared[];
  const Tile tile(p.main_loop.tiling, tile_index);
  const WarpTile warp_tile(p.main_loop, threadIdx.x);
  float acc[kRunRows][Traits::kTilesN][4] = {};
  convolve_tile<Traits>(p.main_loop, tile, warp_tile, shared, acc);

  const ThreadPixels pixels(tile, warp_tile);
#pragma unroll
  for (int group = 0; group < Traits::kGroups; group++) {
    const int c = warp_tile.slab * Traits::kColumns + Traits::column(group);
    const RowSlice<const input_t, kLaneColumns> x_row(p.x, c, p.C);
    const RowSlice<input_t, kLaneColumns> u_row(p.u, c, p.C);
    float2 bn[kLaneColumns];
    float mean[kLaneColumns];
    Sums sums[kLaneColumns];
#pragma unroll
    for (int e = 0; e < kLaneColumns; e++) {
      bn[e] = c + e < p.C ? p.affine[c + e] : make_float2(0.f, 0.f);
      mean[e] = c + e < p.C ? p.norm.mean[c + e] : 0.f;
    }
#pragma unroll
    for (int run = 0; run < 2; run++) {
      // The run's rows of x are asked for before any of them is waited for.
      typename RowSlice<const input_t, kLaneColumns>::Values xs[kRunRows];
      x_row.fetch(xs, x_row.data + pixels.first_of(run) * x_row.stride, pixels.W * x_row.stride, pixels.rows[run]);
      input_t* u_at = u_row.data + pixels.first_of(run) * u_row.stride;
#pragma unroll
      for (int i = 0; i < kRunRows; i++, u_at += pixels.W * u_row.stride) {
        if (i >= pixels.rows[run]) continue;
        float x[kLaneColumns], u[kLaneColumns];
        x_row.unpack(xs[i], x);
#pragma unroll
        for (int e = 0; e < kLaneColumns; e++)  // a NaN of bn(x) lets the gradient through, as PyTorch's ReLU does
          u[e] = fmaf(x[e], bn[e].x, bn[e].y) <= 0.f ? 0.f : Traits::at(acc, group, e, run * kRunRows + i);
        if (p.accumulate) {
          float dx[kLaneColumns];
          typename RowSlice<input_t, kLaneColumns>::Values old[1];
          u_row.fetch(old, u_at, 0, 1);
          u_row.unpack(old[0], dx);
#pragma unroll
          for (int e = 0; e < kLaneColumns; e++) dx[e] = fmaf(bn[e].x, u[e], dx[e]);
          u_row.store(u_at, dx);
        } else {
          u_row.store(u_at, u);
        }
#pragma unroll
        for (int e = 0; e < kLaneColumns; e++) sums[e].merge({{u[e], u[e] * (x[e] - mean[e])}});
      }
    }
#pragma unroll
    for (int e = 0; e < kLaneColumns; e++)
      put_warp<Traits>(shared, Traits::column(group) + e,
                       Sums{{sum_over_pixels(sums[e].value[0]), sum_over_pixels(sums[e].value[1])}});
  }
  finish_warps<Traits>(p.partials, tile_index, p.main_loop.warps_n, shared, [&](int channel, const Sums& total) {
    write_gradient(p.dnorm, p.norm, p.count, channel, total);
  });
}

// The weight of the transposed convolution: inputs and outputs exchanged, taps flipped in both axes.
Weight transposed(const Weight& w, int element_size) {
  const auto* data = static_cast<const unsigned char*>(w.data) + 2 * (w.stride[2] + w.stride[3]) * element_size;
  return {data, {w.stride[1], w.stride[0], -w.stride[2], -w.stride[3]}};
}

}  // namespace

void bn_relu_conv3x3_bwd(const Conv3x3Bwd& op, const Launch& where) {
  const TileConfig config = choose_tile_config(op.shape, op.C, 0, where);
  with_traits<false>(where.math, config, [&](auto traits) {
    using Traits = decltype(traits);
    using math_t = typename Traits::math_t;
    using input_t = typename Traits::input_t;
    constexpr int kOutputs = 16;  // d is padded to whole operands of dweight
    constexpr int kChannels = WgradTraits<math_t, 1>::kChannels;
    PrepareParams preparation{};
    preparation.M = op.shape.rows(), preparation.G = static_cast<int>(op.G);
    preparation.d_stride = ceil_div(preparation.G, kOutputs) * kOutputs;
    preparation.dy = op.dy, preparation.dy_granule = granule(op.dy, sizeof(input_t));
    preparation.y = op.y, preparation.y_granule = granule(op.y, sizeof(input_t));
    preparation.correction_y = op.correction_y, preparation.dropout = op.dropout;
    preparation.d = where.workspace->bytes(preparation.M * preparation.d_stride * sizeof(input_t));
    preparation.norm = op.norm, preparation.C = static_cast<int>(op.C);
    preparation.affine_count = ceil_div(preparation.C, kChannels) * kChannels;
    preparation.affine = static_cast<float2*>(where.workspace->bytes(preparation.affine_count * sizeof(float2)));
    preparation.weight = make_pack_params<Traits>(config, transposed(op.weight, sizeof(input_t)), op.C, op.G, where);
    prepare(preparation, where);

    Conv3x3DgradParams p{};
    const ConstMatrix d{preparation.d, preparation.d_stride};
    p.main_loop = make_main_loop_params<Traits>(config, d, op.G, preparation.weight.packed);
    p.C = static_cast<int>(op.C), p.x = op.x, p.norm = op.norm, p.affine = preparation.affine;
    p.u = op.u, p.accumulate = op.accumulate, p.count = static_cast<float>(op.shape.rows()), p.dnorm = op.dnorm;
    p.partials = make_tile_partials<Sums>(config, op.C, where);

    if (op.dweight != nullptr) {
      if (preparation.d_stride / kOutputs % 2 == 0) p.dweight = wgrad<WgradTraits<math_t, 2>>(op, preparation, where);
      else p.dweight = wgrad<WgradTraits<math_t, 1>>(op, preparation, where);
      p.dweight_blocks = static_cast<int>(ceil_div(p.dweight.size(), kThreads * config.column_blocks(op.C)));
    }
    launch_tiles<Traits>(bn_relu_conv3x3_dgrad_kernel<Traits>, config, op.C, p, where, p.dweight_blocks);
  });
}

}  // namespace densenet_fast::cuda
