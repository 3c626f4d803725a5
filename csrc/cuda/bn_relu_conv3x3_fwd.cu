// y = dropout(conv3x3(relu(bn(x)))) into a slice of the block's buffer, and the statistics of y. Contract:
// densenet_fast/ops/bn_relu_conv3x3.py; the convolution itself: conv3x3_main_loop.cuh.
#include "conv3x3_epilogue.cuh"
#include "conv3x3_launch.cuh"
#include "dropout.cuh"

namespace densenet_fast::cuda {

using namespace conv3x3;

namespace {

struct Conv3x3FwdParams {
  Source source;
  int G;
  Dropout dropout;
  Matrix y;  // [N * H * W, G]
  Stats stats;
  Partials<Moments> partials;  // one tile for each blockIdx.x
};

template <class traits>
__global__ void __launch_bounds__(kThreads, traits::kBlocks) bn_relu_conv3x3_fwd_kernel(const Conv3x3FwdParams p) {
  using input_t = typename traits::input_t;
  constexpr int kLaneColumns = traits::kLaneColumns;
  extern __shared__ __align__(128) unsigned char shared[];
  const Tile tile(p.source.tiling, blockIdx.x);
  const WarpPart part(p.source.tiling, p.source.warps_n);
  float acc[kRunRows][traits::kTilesN][4] = {};
  multiply<traits>(p.source, tile, part, shared, acc);

#pragma unroll
  for (int group = 0; group < traits::kGroups; group++) {
    // The accumulators become y as it is stored; zero where there is no pixel.
    const int c = part.slab * traits::kColumns + traits::column(group);
    const Row<input_t, kLaneColumns> y(p.y, c, p.G);
    unsigned inside = 0;  // bit k
#pragma unroll
    for (int k = 0; k < kRows; k++) {
      const int64_t m = part.pixel(tile, k);
      float v[kLaneColumns] = {};
      if (m >= 0) {
        inside |= 1u << k;
#pragma unroll
        for (int e = 0; e < kLaneColumns; e++) {
          v[e] = traits::at(acc, group, e, k);
          if (p.dropout.threshold > 0) v[e] *= dropout_multiplier(p.dropout, m * p.G + c + e);
        }
        y.store(m, v);
      }
#pragma unroll
      for (int e = 0; e < kLaneColumns; e++) traits::at(acc, group, e, k) = v[e];
    }
    if (p.stats.mean == nullptr) continue;

    // Mean, then squares around it, of the warp's pixels.
    const float count = sum_over_pixels(static_cast<float>(__popc(inside)));
#pragma unroll
    for (int e = 0; e < kLaneColumns; e++) {
      float sum = 0.f, squares = 0.f;
#pragma unroll
      for (int k = 0; k < kRows; k++) sum += traits::at(acc, group, e, k);
      const float mean = sum_over_pixels(sum) / fmaxf(count, 1.f);
#pragma unroll
      for (int k = 0; k < kRows; k++) {
        const float distance = traits::at(acc, group, e, k) - mean;
        if (inside >> k & 1) squares = fmaf(distance, distance, squares);
      }
      put_warp<traits>(shared, traits::column(group) + e, Moments{{count, mean, sum_over_pixels(squares)}});
    }
  }
  if (p.stats.mean == nullptr) return;
  finish_warps<traits>(p.partials, p.source.warps_n, shared,
                       [&](int channel, const Moments& total) { write_stats(p.stats, channel, total); });
}

}  // namespace

void bn_relu_conv3x3_fwd(const Conv3x3Fwd& op, const Launch& where) {
  const Plan plan = make_plan(op.shape, op.G, where);
  with_traits<true>(where.math, plan, [&](auto traits) {
    using input_t = typename decltype(traits)::input_t;
    Prepare preparation{};
    Conv3x3FwdParams p{};
    preparation.weight = op.weight;
    preparation.outputs = static_cast<int>(op.G), preparation.inputs = static_cast<int>(op.C);
    p.source = make_source<decltype(traits)>(plan, op.x, op.C, preparation, where);
    make_affine(op.norm, op.C, kKStep<input_t>, preparation, where);
    prepare(preparation, where);

    p.source.affine = preparation.affine;
    p.G = static_cast<int>(op.G), p.dropout = op.dropout, p.y = op.y, p.stats = op.stats;
    if (op.stats.mean != nullptr) p.partials = plan_partials<Moments>(plan, op.G, where);
    launch_plan<decltype(traits)>(bn_relu_conv3x3_fwd_kernel<decltype(traits)>, plan, op.G, p, where);
  });
}

}  // namespace densenet_fast::cuda
