// How the 3x3 kernels cut a batch of images: into 2x2 tiles of outputs, the unit of Winograd's transforms, and these
// into chunks, the unit of work of a thread. The rows that a tile reads pass through a ring of padded image rows.
#pragma once

#include "schedule.h"

namespace densenet_fast::cpu::DENSENET_FAST_KERNELS {

// Up to this many pixels the threads divide the channels, not the pixels (divide_channels): transforming and packing
// the filters costs more than the work that each thread then repeats.
constexpr int64_t kFewRows = 256;

// Cuts the images into rows of 2x2 tiles, one sequence over the whole batch, and that into chunks of about kTiles
// tiles. A chunk may span images; their number is a multiple of the thread count where there are rows enough, and they
// are as equal as whole rows allow.
struct TileGrid {
  static constexpr int64_t kTiles = 56;
  Shape shape;
  int64_t tile_rows, tile_columns;       // per image
  int64_t all_rows, chunks, chunk_rows;  // the most rows of a chunk

  explicit TileGrid(const Shape& shape)
      : shape(shape), tile_rows(ceil_div(shape.H, 2)), tile_columns(ceil_div(shape.W, 2)) {
    all_rows = shape.N * tile_rows;
    chunks = min(all_rows, round_up(ceil_div(all_rows * tile_columns, kTiles), thread_count()));
    chunk_rows = ceil_div(all_rows, chunks);
  }
  // The outputs of a tile share rounding errors, so the mean of an image of one tile would be less exact than a direct
  // convolution's (docs/internals/cpu.md): such images take the direct kernel.
  bool one_tile() const { return tile_rows * tile_columns == 1; }
  int64_t begin(int64_t chunk) const { return all_rows * chunk / chunks; }
  int64_t end(int64_t chunk) const { return begin(chunk + 1); }
  int64_t image(int64_t tile_row) const { return tile_row / tile_rows; }
  int64_t top(int64_t tile_row) const { return tile_row % tile_rows * 2; }  // image row of the tile row's first row
  // The pixel [0, M) where a tile row begins; M behind the last.
  int64_t pixel(int64_t tile_row) const {
    if (tile_row == all_rows) return shape.rows();
    return (image(tile_row) * shape.H + top(tile_row)) * shape.W;
  }
  int64_t chunk_pixels(int64_t chunk) const { return pixel(end(chunk)) - pixel(begin(chunk)); }
  // Pixels of a padded image row: a column of zeros on the left, one or two on the right.
  int64_t row_pixels() const { return 2 * tile_columns + 2; }
};

// visit(tile_row, rows) for the tile rows of [first, last): rows[0..3] are the padded image rows top-1 .. top+2,
// [row_pixels()][stride], in a ring of four; load_row(first_pixel, row) writes the W pixels of one.
template <class LoadRow, class Visit>
DENSENET_FAST_INLINE void for_tile_rows(const TileGrid& grid, int64_t first, int64_t last, int64_t stride, float* ring,
                                        const LoadRow& load_row, const Visit& visit) {
  const int64_t H = grid.shape.H, W = grid.shape.W, row_size = grid.row_pixels() * stride;
  float* rows[4] = {ring, ring + row_size, ring + 2 * row_size, ring + 3 * row_size};
  for (int64_t t = first; t < last; t++) {
    const int64_t top = grid.top(t), image_pixel = grid.image(t) * H * W;
    int fresh = 0;
    if (t > first && top > 0) {  // the upper two rows are the lower two of the tile row above
      for (int i = 0; i < 2; i++) {
        float* row = rows[i];
        rows[i] = rows[i + 2];
        rows[i + 2] = row;
      }
      fresh = 2;
    }
    for (int i = fresh; i < 4; i++) {
      const int64_t h = top - 1 + i;
      if (h < 0 || h >= H) {
        memset(rows[i], 0, row_size * sizeof(float));
        continue;
      }
      memset(rows[i], 0, stride * sizeof(float));
      memset(rows[i] + (W + 1) * stride, 0, (grid.row_pixels() - W - 1) * stride * sizeof(float));
      load_row(image_pixel + h * W, rows[i] + stride);
    }
    visit(t, rows);
  }
}

}  // namespace densenet_fast::cpu::DENSENET_FAST_KERNELS
