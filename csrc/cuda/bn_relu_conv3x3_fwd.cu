// y = dropout(conv3x3(relu(bn(x)))) into a slice of the block's buffer, and the statistics of y. Contract:
// densenet_fast/contract/operations.py; the convolution itself: conv3x3_main_loop.cuh.
#include "conv3x3_epilogue.cuh"
#include "conv3x3_launch.cuh"
#include "dropout.cuh"

#include <vector>

namespace densenet_fast::cuda {

using namespace conv3x3;

namespace {

struct Conv3x3FwdParams {
  MainLoopParams main_loop;
  int G;
  Dropout dropout;
  Matrix y;  // [N * H * W, G]
  Stats stats;
  Partials<Moments> partials;  // one tile for each blockIdx.x
};

template <class Traits>
__global__ void __launch_bounds__(kThreads, Traits::kBlocks) bn_relu_conv3x3_fwd_kernel(const Conv3x3FwdParams p) {
  using input_t = typename Traits::input_t;
  constexpr int kLaneColumns = Traits::kLaneColumns;
  extern __shared__ __align__(128) unsigned char shared[];
  float acc[kRunRows][Traits::kTilesN][4] = {};
  convolve_tile<Traits>(p.main_loop, Tile(p.main_loop.tiling, blockIdx.x), WarpTile(p.main_loop, threadIdx.x), shared,
                        acc);

  const Tile tile(p.main_loop.tiling, block_again());
  const WarpTile warp_tile(p.main_loop, thread_again());
  const ThreadPixels pixels(tile, warp_tile);
#pragma unroll
  for (int group = 0; group < Traits::kGroups; group++) {
    // The accumulators become y as it is stored; zero where there is no pixel.
    const int c = warp_tile.slab * Traits::kColumns + Traits::column(group);
    const RowSlice<input_t, kLaneColumns> y(p.y, c, p.G);
    unsigned inside = 0;  // bit k
#pragma unroll
    for (int k = 0; k < kRows; k++) {
      float v[kLaneColumns] = {};
      if (pixels.has(k)) {
        inside |= 1u << k;
#pragma unroll
        for (int e = 0; e < kLaneColumns; e++) {
          v[e] = Traits::at(acc, group, e, k);
          if (p.dropout.threshold > 0) v[e] *= dropout_multiplier(p.dropout, pixels[k] * p.G + c + e);
        }
        y.store(y.data + pixels[k] * y.stride, v);
      }
#pragma unroll
      for (int e = 0; e < kLaneColumns; e++) Traits::at(acc, group, e, k) = v[e];
    }
    if (p.stats.mean == nullptr) continue;

    // Mean, then squares around it, of the warp's pixels.
    const float count = sum_over_pixels(static_cast<float>(__popc(inside)));
#pragma unroll
    for (int e = 0; e < kLaneColumns; e++) {
      float sum = 0.f, squares = 0.f;
#pragma unroll
      for (int k = 0; k < kRows; k++) sum += Traits::at(acc, group, e, k);
      const float mean = sum_over_pixels(sum) / fmaxf(count, 1.f);
#pragma unroll
      for (int k = 0; k < kRows; k++) {
        const float distance = Traits::at(acc, group, e, k) - mean;
        if (inside >> k & 1) squares = fmaf(distance, distance, squares);
      }
      put_warp<Traits>(shared, Traits::column(group) + e, Moments{{count, mean, sum_over_pixels(squares)}});
    }
  }
  if (p.stats.mean == nullptr) return;
  finish_warps<Traits>(p.partials, blockIdx.x, p.main_loop.warps_n, shared,
                       [&](int channel, const Moments& total) { write_stats(p.stats, channel, total); });
}

TileConfig tile_config(const Conv3x3Fwd& op, const Launch& where) {
  return choose_tile_config(op.shape, op.G, op.C, where);
}

}  // namespace

void pack_weights(Conv3x3Fwd* const* ops, int64_t count, const Launch& where) {
  std::vector<PackParams> weights;
  for (int64_t i = 0; i < count; i++) {
    Conv3x3Fwd& op = *ops[i];
    const TileConfig config = tile_config(op, where);
    with_traits<true>(where.math, config, [&](auto traits) {
      weights.push_back(make_pack_params<decltype(traits)>(config, op.weight, op.G, op.C, where));
    });
    op.packed = weights.back().packed;
  }
  pack(weights.data(), count, where);
}

void bn_relu_conv3x3_fwd(const Conv3x3Fwd& op, const Launch& where) {
  const TileConfig config = tile_config(op, where);
  with_traits<true>(where.math, config, [&](auto traits) {
    using Traits = decltype(traits);
    Conv3x3FwdParams p{};
    p.main_loop = make_main_loop_params<Traits>(config, op.x, op.C, op.packed);
    p.main_loop.norm = op.norm;
    p.G = static_cast<int>(op.G), p.dropout = op.dropout, p.y = op.y, p.stats = op.stats;
    if (op.stats.mean != nullptr) p.partials = make_tile_partials<Moments>(config, op.G, where);
    launch_tiles<Traits>(bn_relu_conv3x3_fwd_kernel<Traits>, config, op.G, p, where);
  });
}

}  // namespace densenet_fast::cuda
