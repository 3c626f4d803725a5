// How the 3x3 kernels cut a batch of images: into tiles of 2x2 or 3x3 outputs, the unit of Winograd's transforms, and
// these into chunks, the unit of work of a thread. The rows that a tile reads pass through a ring of padded image rows.
#pragma once

#include "schedule.h"

namespace densenet_fast::cpu::DENSENET_FAST_KERNELS {

// Up to this many pixels the threads divide the channels, not the pixels (divide_channels): transforming and packing
// the filters costs more than the work that each thread then repeats.
constexpr int64_t kFewRows = 256;

// Whether images are cut into tiles of 3x3 outputs: where these take fewer products than tiles of 2x2, 25 for a tile
// and not 16, and the products are most of the work. Transforming the filters counts as kFilters tiles. No image is a
// single tile (TileGrid::one_tile).
inline bool large_tiles(const Shape& shape, int64_t C, int64_t G) {
  constexpr int64_t kFilters = 32;
  const int64_t large = ceil_div(shape.H, 3) * ceil_div(shape.W, 3),
                small = ceil_div(shape.H, 2) * ceil_div(shape.W, 2);
  return min(C, G) >= kPanel && large > 1 && 25 * (shape.N * large + kFilters) < 16 * (shape.N * small + kFilters);
}

// Cuts the images into rows of tiles of `size` x `size` outputs, one sequence over the whole batch, and that into
// chunks of at most kTiles tiles, or of one row. A chunk may span images; their number is a multiple of the thread
// count where there are rows enough, and they are as equal as whole rows allow.
template <int size>
struct TileGrid {
  static constexpr int64_t kTiles = 42;
  Shape shape;
  int64_t tile_rows, tile_columns;       // per image
  int64_t all_rows, chunks, chunk_rows;  // the most rows of a chunk

  explicit TileGrid(const Shape& shape)
      : shape(shape), tile_rows(ceil_div(shape.H, size)), tile_columns(ceil_div(shape.W, size)) {
    all_rows = shape.N * tile_rows;
    chunks = min(all_rows, round_up(ceil_div(all_rows, max(1, kTiles / tile_columns)), thread_count()));
    chunk_rows = ceil_div(all_rows, chunks);
  }
  // The outputs of a tile share rounding errors, so the mean of an image of one tile would be less exact than a direct
  // convolution's (docs/internals/cpu.md): such images take the direct kernel.
  bool one_tile() const { return tile_rows * tile_columns == 1; }
  int64_t begin(int64_t chunk) const { return all_rows * chunk / chunks; }
  int64_t end(int64_t chunk) const { return begin(chunk + 1); }
  int64_t image(int64_t tile_row) const { return tile_row / tile_rows; }
  int64_t top(int64_t tile_row) const { return tile_row % tile_rows * size; }  // image row of the tile row's first row
  // The pixel [0, M) where a tile row begins; M behind the last.
  int64_t pixel(int64_t tile_row) const {
    if (tile_row == all_rows) return shape.rows();
    return (image(tile_row) * shape.H + top(tile_row)) * shape.W;
  }
  int64_t chunk_pixels(int64_t chunk) const { return pixel(end(chunk)) - pixel(begin(chunk)); }
  // Pixels of a padded image row: a column of zeros on the left, one or more on the right.
  int64_t row_pixels() const { return size * tile_columns + 2; }
  // How many rows of a tile's outputs lie in the image, and how many columns.
  int64_t rows_of(int64_t tile_row) const { return min(size, shape.H - top(tile_row)); }
  int64_t columns_of(int64_t tile_column) const { return min(size, shape.W - size * tile_column); }
};

// visit(tile_row, rows) for the tile rows of [first, last): rows[0..size+1] are the padded image rows top-1 ..
// top+size, [row_pixels()][stride], in a ring; load_row(first_pixel, row) writes the W pixels of one.
template <int size, class LoadRow, class Visit>
DENSENET_FAST_INLINE void for_tile_rows(const TileGrid<size>& grid, int64_t first, int64_t last, int64_t stride,
                                        float* ring, const LoadRow& load_row, const Visit& visit) {
  const int64_t H = grid.shape.H, W = grid.shape.W, row_size = grid.row_pixels() * stride;
  float* rows[size + 2];
  for (int i = 0; i < size + 2; i++) rows[i] = ring + i * row_size;
  for (int64_t t = first; t < last; t++) {
    const int64_t top = grid.top(t), image_pixel = grid.image(t) * H * W;
    int fresh = 0;
    if (t > first && top > 0) {  // the upper two rows are the lower two of the tile row above
      for (int i = 0; i < 2; i++) {
        float* row = rows[i];
        rows[i] = rows[i + size];
        rows[i + size] = row;
      }
      fresh = 2;
    }
    for (int i = fresh; i < size + 2; i++) {
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
