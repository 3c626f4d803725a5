// BN-ReLU-conv3x3 into a slice of the block's buffer, with dropout and the slice's statistics.
// Contract: densenet_fast/contract/operations.py.
//
// A chunk of tile rows is normalised row by row into a ring of padded rows, transformed, multiplied plane by plane and
// transformed back into the slice. Winograd makes NaN of Inf (Inf - Inf) and overflows sooner; a chunk with a
// non-finite output is therefore done again with the direct kernel, which also serves images of a single tile.
#include "bn_relu.h"
#include "dropout.h"
#include "statistics.h"
#include "winograd.h"
#include "conv3x3_filters.h"
#include "conv3x3_direct.h"
#if defined(DENSENET_FAST_TILES)
#include "conv3x3_taps_fwd.h"  // is used instead
#endif

namespace densenet_fast::cpu::DENSENET_FAST_KERNELS {

#if !defined(DENSENET_FAST_TILES)
namespace {

constexpr int64_t kDepth = 128;  // input channels per pass: their planes stay in L2

template <int size>
struct Conv3x3Forward {
  static constexpr int kValues = Winograd<size>::kValues;
  // Input channels of a sum. With all in one, large tiles would err up to three times as much as a direct convolution.
  static constexpr int64_t kSum = size == 3 ? 32 : kDepth;

  const Conv3x3Fwd& op;
  const TileGrid<size> grid;
  const Affine bn;
  const int64_t stride, outputs;  // floats per pixel of the scratch: input channels of a pass, output channels
  const int64_t tiles, v_plane, m_plane, ring_size, y_size;

  Conv3x3Forward(const Conv3x3Fwd& op, Workspace& workspace)
      : op(op),
        grid(op.shape),
        bn(op.norm, op.C, workspace),
        stride(padded(min(kDepth, op.C))),
        outputs(padded(op.G)),
        tiles(grid.chunk_rows * grid.tile_columns),
        v_plane(plane_size(tiles, stride)),
        m_plane(plane_size(tiles, outputs)),
        ring_size((size + 2) * grid.row_pixels() * stride),
        y_size(grid.chunk_rows * size * op.shape.W * outputs) {}

  auto row_loader(int64_t c0, int64_t depth) const {
    return [this, c0, depth](int64_t pixel, float* row) {
      bn_relu_rows(op.x.data + pixel * op.x.stride + c0, op.x.stride, bn.scale + c0, bn.shift + c0, row, stride,
                   op.shape.W, depth);
    };
  }

  // Writes the chunk's outputs and returns whether all are finite. outputs_of(tile_row, column, c, y) gives a tile.
  template <class OutputsOf>
  bool write(int64_t first, int64_t last, const OutputsOf& outputs_of) const {
    const int64_t W = op.shape.W;
    vec finite_probe = {};  // adds up 0 * y, NaN in a lane where a y is not finite
    for (int64_t t = first; t < last; t++) {
      const int64_t rows = grid.rows_of(t);
      for (int64_t j = 0; j < grid.tile_columns; j++) {
        const int64_t pixel = grid.pixel(t) + size * j, columns = grid.columns_of(j);
        for_channels(op.G, [&](int64_t c, auto lanes) {
          vec y[size][size];
          outputs_of(t, j, c, y);
          for (int i = 0; i < rows; i++)
            for (int k = 0; k < columns; k++) {
              const int64_t at = pixel + i * W + k;
              finite_probe += y[i][k] * 0.f;
              if (op.dropout.threshold) y[i][k] *= dropout_mask(op.dropout, at * op.G + c);
              store(op.y.data + at * op.y.stride + c, y[i][k], lanes);
            }
        });
      }
    }
    return all_zero(finite_probe);
  }

  int64_t winograd_scratch() const { return ring_size + kValues * (v_plane + m_plane); }

  bool winograd_chunk(int64_t chunk, PackedFilters packed, float* scratch, bool prefetch) const {
    const int64_t first = grid.begin(chunk), last = grid.end(chunk), count = (last - first) * grid.tile_columns;
    float *ring = scratch, *V = ring + ring_size, *products = V + kValues * v_plane;
    for (int64_t c0 = 0; c0 < op.C; c0 += kDepth) {
      const int64_t depth = min(kDepth, op.C - c0);
      winograd_inputs(grid, first, last, depth, stride, ring, V, v_plane, row_loader(c0, depth));
      Prefetcher prefetcher(kValues * Prefetcher::steps(count, outputs, depth));
      if (c0 == 0)
        prefetcher.add(op.y.data + grid.pixel(first) * op.y.stride, op.y.stride, grid.chunk_pixels(chunk), op.G);
      if (c0 + kDepth < op.C || prefetch) {
        const bool same = c0 + kDepth < op.C;
        const int64_t pixel = grid.pixel(same ? first : last), c = same ? c0 + kDepth : 0;
        const int64_t rows = same ? grid.chunk_pixels(chunk) : grid.chunk_pixels(chunk + 1);
        prefetcher.add(op.x.data + pixel * op.x.stride + c, op.x.stride, rows, min(kDepth, op.C - c));
      }
      for (int e = 0; e < kValues; e++)
        for (int64_t c = 0; c < depth; c += kSum)
          gemm_nn(V + e * v_plane + c, stride, packed.data + e * packed.plane + (c0 + c) * kPanel, op.C * kPanel,
                  products + e * m_plane, outputs, count, outputs, min(kSum, depth - c), c0 + c > 0, &prefetcher);
    }
    return write(first, last, [&](int64_t t, int64_t j, int64_t c, vec y[size][size]) {
      winograd_output<size>(products + ((t - first) * grid.tile_columns + j) * outputs, m_plane, c, y);
    });
  }

  int64_t direct_scratch() const { return ring_size + y_size; }

  void direct_chunk(int64_t chunk, PackedFilters packed, float* scratch) const {
    const int64_t first = grid.begin(chunk), last = grid.end(chunk), W = op.shape.W;
    float *ring = scratch, *y = ring + ring_size;
    for (int64_t c0 = 0; c0 < op.C; c0 += kDepth) {
      const int64_t depth = min(kDepth, op.C - c0);
      direct_outputs(grid, first, last, depth, stride, ring, {packed.data + c0 * kPanel, packed.plane}, op.C * kPanel,
                     op.G, y, outputs, c0 > 0, row_loader(c0, depth));
    }
    write(first, last, [&](int64_t t, int64_t j, int64_t c, vec tile[size][size]) {
      for (int i = 0; i < size; i++)
        for (int k = 0; k < grid.columns_of(j); k++)
          tile[i][k] = load(y + (((t - first) * size + i) * W + size * j + k) * outputs + c);
    });
  }
};

template <int size>
void forward(const Conv3x3Fwd& op, Workspace& workspace) {
  const Conv3x3Forward<size> conv(op, workspace);
  const TileGrid<size>& grid = conv.grid;
  const Division division(grid.chunks);
  const Filters filters(op.weight, op.G, op.C, false);
  PackedFilters packed = grid.one_tile() ? PackedFilters{} : filters.pack_winograd<size>(workspace);
  float* scratch = workspace.floats(division.workers * conv.winograd_scratch());
  float* finite = workspace.floats(grid.chunks);  // [chunks], 1 or 0
  PartialStats partial(op.stats, grid.chunks, op.G, workspace);
  const auto set_stats = [&](int64_t i) {
    if (partial.wanted())
      partial.set(i, op.y.data + grid.pixel(grid.begin(i)) * op.y.stride, op.y.stride, grid.chunk_pixels(i));
  };

  share_tasks(division, workspace, [&](int64_t w, int64_t i, bool more) {
    finite[i] = !grid.one_tile() && conv.winograd_chunk(i, packed, scratch + w * conv.winograd_scratch(), more);
    if (finite[i] != 0) set_stats(i);
  });

  bool all_finite = true;
  for (int64_t i = 0; i < grid.chunks; i++) all_finite &= finite[i] != 0;
  if (!all_finite) {
    packed = filters.pack_direct(workspace);
    scratch = workspace.floats(division.workers * conv.direct_scratch());
    share_tasks(division, workspace, [&](int64_t w, int64_t i, bool) {
      if (finite[i] != 0) return;
      conv.direct_chunk(i, packed, scratch + w * conv.direct_scratch());
      set_stats(i);
    });
  }
  if (partial.wanted()) partial.merge([&](int64_t i) { return grid.chunk_pixels(i); });
}

void forward(const Conv3x3Fwd& op, Workspace& workspace) {
  if (large_tiles(op.shape, op.C, op.G)) forward<3>(op, workspace);
  else forward<2>(op, workspace);
}

}  // namespace
#endif

void bn_relu_conv3x3_fwd(const Conv3x3Fwd& op, Workspace& workspace) {
  if (op.shape.rows() > kFewRows || op.dropout.threshold) return forward(op, workspace);
  divide_channels(op.G, [&](int64_t first, int64_t last) {
    Conv3x3Fwd slice = op;
    slice.G = last - first;
    slice.weight.data += first * op.weight.stride[0];
    slice.y.data += first;
    slice.stats = channels_from(op.stats, first);
    forward(slice, workspace);
  });
}

}  // namespace densenet_fast::cpu::DENSENET_FAST_KERNELS
