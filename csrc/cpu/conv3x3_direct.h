// The direct 3x3 convolution: nine products a tile row. It serves images of a single tile, and chunks in which Winograd
// would make NaN of Inf.
#pragma once

#include "conv3x3_filters.h"
#include "conv3x3_tiles.h"
#include "gemm.h"

namespace densenet_fast::cpu::DENSENET_FAST_KERNELS {

// Direct convolution of the tile rows [first, last) of one block of input channels: y [tile row][size][W][y_stride] =
// or
// += the sum of nine products. `packed` points at the block's first input in the first panel; panels are `panel` floats
// apart.
template <int size, class LoadRow>
inline void direct_outputs(const TileGrid<size>& grid, int64_t first, int64_t last, int64_t inputs, int64_t stride,
                           float* ring, PackedFilters packed, int64_t panel, int64_t outputs, float* y,
                           int64_t y_stride, bool add, const LoadRow& load_row) {
  const int64_t W = grid.shape.W;
  for_tile_rows(grid, first, last, stride, ring, load_row, [&](int64_t t, float* const* rows) {
    for (int i = 0; i < size; i++) {
      bool more = add;
      for (int tap = 0; tap < 9; tap++) {
        const int row = tap / 3, column = tap % 3;
        if ((grid.shape.H == 1 && row != 1) || (W == 1 && column != 1)) continue;  // nothing but padding
        gemm_nn(rows[i + row] + column * stride, stride, packed.data + tap * packed.plane, panel,
                y + ((t - first) * size + i) * W * y_stride, y_stride, W, padded(outputs), inputs, more);
        more = true;
      }
    }
  });
}

}  // namespace densenet_fast::cpu::DENSENET_FAST_KERNELS
