// The host's part of the 3x3 forward and input gradient: the choice of the tile, the instance of the kernel that has
// it, and its launch.
#pragma once

#include "conv3x3_main_loop.cuh"
#include "conv3x3_prepare.cuh"

#include <cmath>

namespace densenet_fast::cuda::conv3x3 {

// The tile of a block and how its warps divide it.
struct TileConfig {
  Tiling tiling;
  int tiles_n, warps_n;  // 8-column tiles of a warp; warps along the output channels

  int columns() const { return 8 * tiles_n * warps_n; }  // of a block
  int64_t column_blocks(int64_t outputs) const { return ceil_div<int64_t>(outputs, columns()); }
};

// The cheapest of some thirty, by a model of one chunk's time in clocks: its products or its bytes from L2, whichever
// takes longer. Where none leaves room for the coefficients of all channels, one that the driver refuses.
inline TileConfig choose_tile_config(const Shape& shape, int64_t outputs, int64_t coefficients, const Launch& where) {
  // Of a multiprocessor: clocks of one mma, bytes from L2 in a clock, clocks that no chunk hides.
  constexpr double kProductClocks = 2, kBytesPerClock = 24, kLatency = 300;
  const int groups = static_cast<int>(ceil_div<int64_t>(shape.W, 8)), column_tiles = ceil_div(groups, 8);
  const int columns = 8 * ceil_div(groups, column_tiles);
  const int all_runs = static_cast<int>(shape.N * ceil_div<int64_t>(shape.H, kRunRows));
  TileConfig best{};
  double least = 0;
  const int most = where.math == Math::kTf32x3 ? kMaxTilesN<Tf32x3Math> : kMaxTilesN<BFloat16Math>;
  for (int n = 2; n <= most; n++)
    for (int warps_n = 1; warps_n <= 4; warps_n *= 2)
      for (int runs = 1; runs == 1 || runs < 2 * all_runs; runs *= 2) {
        const TileConfig config{make_tiling(shape, kRunRows, runs, columns), n, warps_n};
        const int parts = ceil_div(runs * columns / 8, 2);
        const int weights = kTaps * kChunkPieces * config.columns();
        const int bytes = (kChunkPieces * config.tiling.halo_pitch + weights) * 16;
        const int64_t all_bytes = kMainLoopStages * bytes + coefficients * 8 + config.tiling.halo_pixels * 4;
        const bool fits = all_bytes <= where.device.shared_bytes;
        if (parts * warps_n > kWarps || (!fits && best.warps_n > 0)) break;
        const double blocks = static_cast<double>(config.tiling.tiles()) * config.column_blocks(outputs);
        const double products = kProductClocks * kTaps * kRunRows * n * parts * warps_n;
        const double clocks = std::max(products, bytes / kBytesPerClock) + kLatency;
        const double total = fits ? std::ceil(blocks / where.device.multiprocessors) * clocks : HUGE_VAL;
        if (best.warps_n == 0 || total < least) best = config, least = total;
      }
  return best;
}

// function(Conv3x3Traits()) of the instance that has this tile.
template <bool kBnRelu, class function_t>
void with_traits(Math math, const TileConfig& config, function_t function) {
  with_math(math, [&](auto math) {
    switch (config.tiles_n) {
      case 2: return function(Conv3x3Traits<decltype(math), 2, kBnRelu>());
      case 3: return function(Conv3x3Traits<decltype(math), 3, kBnRelu>());
      default: return function(Conv3x3Traits<decltype(math), kMaxTilesN<decltype(math)>, kBnRelu>());
    }
  });
}

// How a weight [outputs, inputs, 3, 3] must be packed, and room for it.
template <class Traits>
PackParams make_pack_params(const TileConfig& config, const Weight& weight, int64_t outputs, int64_t inputs,
                            const Launch& where) {
  PackParams p{weight, static_cast<int>(outputs), static_cast<int>(inputs)};
  p.tiles_n = config.tiles_n, p.group_tiles = Traits::kGroupTiles, p.warps_n = config.warps_n;
  p.chunks = ceil_div(p.inputs, kKStep<typename Traits::input_t>);
  p.pieces = config.column_blocks(outputs) * config.warps_n * p.chunks * Traits::kSlabPieces;
  p.packed = where.workspace->bytes(p.pieces * 16);
  return p;
}

// The main loop's parameters for x [M, C].
template <class Traits>
MainLoopParams make_main_loop_params(const TileConfig& config, const ConstMatrix& x, int64_t C, const void* weight) {
  using input_t = typename Traits::input_t;
  MainLoopParams p{config.tiling, x, static_cast<int>(C)};
  p.chunks = ceil_div(p.C, kKStep<input_t>), p.granule = granule(x, sizeof(input_t));
  p.weight = weight, p.warps_n = config.warps_n;
  p.coefficients_at = Traits::kStages * Traits::stage_bytes(config.tiling, config.warps_n);
  p.pixels_at = p.coefficients_at + Traits::coefficient_bytes(p.chunks);
  return p;
}

// Room for the partial results of a kernel with this tile.
template <class reduced_t>
Partials<reduced_t> make_tile_partials(const TileConfig& config, int64_t outputs, const Launch& where) {
  return make_partials<reduced_t>(outputs, config.tiling.tiles(), config.column_blocks(outputs) * config.warps_n,
                                  kThreads / (8 * config.tiles_n), *where.workspace);
}

// `before`: blocks in front of the tiles', along x.
template <class Traits, class params_t>
void launch_tiles(void (*kernel)(params_t), const TileConfig& config, int64_t outputs, const params_t& params,
                  const Launch& where, int before = 0) {
  const dim3 grid(before + config.tiling.tiles(), static_cast<unsigned>(config.column_blocks(outputs)));
  const int shared_bytes = Traits::shared_bytes(config.tiling, config.warps_n, params.main_loop.chunks);
  launch(kernel, grid, kThreads, shared_bytes, where, params);
}

}  // namespace densenet_fast::cuda::conv3x3
