// The host's part of the 3x3 forward and input gradient: the choice of the tile, the instance of the kernel that has
// it, and its launch.
#pragma once

#include "conv3x3_main_loop.cuh"
#include "conv3x3_prepare.cuh"

#include <cmath>

namespace densenet_fast::cuda::conv3x3 {

// How a convolution is cut: the cheapest of a few tiles by a model of one chunk's time in clocks.
struct Plan {
  Tiling tiling;
  int tiles_n, warps_n;

  int columns() const { return 8 * tiles_n * warps_n; }  // of a block
  int64_t column_blocks(int64_t outputs) const { return ceil_div<int64_t>(outputs, columns()); }
};

inline Plan make_plan(const Shape& shape, int64_t outputs, const Launch& where) {
  constexpr double kProductClocks = 2, kBytesPerClock = 24, kLatency = 300;  // products of a multiprocessor; from L2
  const int groups = static_cast<int>(ceil_div<int64_t>(shape.W, 8)), column_tiles = ceil_div(groups, 8);
  const int columns = 8 * ceil_div(groups, column_tiles);
  const int all_runs = static_cast<int>(shape.N * ceil_div<int64_t>(shape.H, kRunRows));
  Plan best{};
  double least = 0;
  const int most = where.math == Math::kTf32x3 ? kMostTilesN<Tf32x3Math> : kMostTilesN<BFloat16Math>;
  for (int n = 2; n <= most; n++)
    for (int warps_n = 1; warps_n <= 4; warps_n *= 2)
      for (int runs = 1; runs == 1 || runs < 2 * all_runs; runs *= 2) {
        const Plan plan{make_tiling(shape, kRunRows, runs, columns), n, warps_n};
        const int parts = ceil_div(runs * columns / 8, 2);
        const int stages = n == 2 ? 3 : 2, weights = kTaps * kChunkPieces * plan.columns();
        const int bytes = (kChunkPieces * plan.tiling.halo_pitch + weights) * 16;
        if (parts * warps_n > kWarps || stages * bytes + plan.tiling.halo_pixels * 4 > where.device.shared_bytes) break;
        const double blocks = static_cast<double>(plan.tiling.tiles()) * plan.column_blocks(outputs);
        const double products = kProductClocks * kTaps * kRunRows * n * parts * warps_n;
        const double clocks = std::max(products, bytes / kBytesPerClock) + kLatency;
        const double total = std::ceil(blocks / where.device.multiprocessors) * clocks;
        if (best.warps_n == 0 || total < least) best = plan, least = total;
      }
  return best;
}

// function(Traits()) for the plan.
template <bool kBnRelu, class function_t>
void with_traits(Math math, const Plan& plan, function_t function) {
  with_math(math, [&](auto math) {
    switch (plan.tiles_n) {
      case 2: return function(Traits<decltype(math), 2, kBnRelu>());
      case 3: return function(Traits<decltype(math), 3, kBnRelu>());
      default: return function(Traits<decltype(math), kMostTilesN<decltype(math)>, kBnRelu>());
    }
  });
}

// The convolution of x [M, C] with the weight of `prepare`, and how to prepare that.
template <class traits>
Source make_source(const Plan& plan, const ConstMatrix& x, int64_t C, Prepare& prepare, const Launch& where) {
  using input_t = typename traits::input_t;
  Source source{plan.tiling, x, static_cast<int>(C), static_cast<int>(ceil_div<int64_t>(C, kKStep<input_t>))};
  source.granule = granule(x, sizeof(input_t)), source.warps_n = plan.warps_n;
  const int64_t slabs = plan.column_blocks(prepare.outputs) * plan.warps_n;
  prepare.tiles_n = plan.tiles_n, prepare.group_tiles = traits::kGroupTiles, prepare.warps_n = plan.warps_n;
  prepare.chunks = source.chunks, prepare.weight_pieces = slabs * source.chunks * traits::kSlabPieces;
  prepare.packed = where.workspace->bytes(prepare.weight_pieces * 16);
  source.weight = prepare.packed;
  return source;
}

// Partials of a kernel of this plan.
template <class reduced_t>
Partials<reduced_t> plan_partials(const Plan& plan, int64_t outputs, const Launch& where) {
  return make_partials<reduced_t>(outputs, plan.tiling.tiles(), plan.column_blocks(outputs) * plan.warps_n,
                                  *where.workspace);
}

template <class traits, class params_t>
void launch_plan(void (*kernel)(params_t), const Plan& plan, int64_t outputs, const params_t& params,
                 const Launch& where) {
  const dim3 grid(plan.tiling.tiles(), static_cast<unsigned>(plan.column_blocks(outputs)));
  launch(kernel, grid, kThreads, traits::shared_bytes(plan.tiling, plan.warps_n), where, params);
}

}  // namespace densenet_fast::cuda::conv3x3
