// How the 3x3 kernels cut a batch of images into tiles, and where the pixels of a tile and of its halo lie.
//
// The rows of all images follow each other, in runs of a few rows, so that images of any size fill a tile: several
// small ones share one. The forward and the input gradient use runs of four rows, the weight gradient runs of one.
#pragma once

#include "common.cuh"

namespace densenet_fast::cuda::conv3x3 {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kTaps = 9;
constexpr int kRunRows = 4;
constexpr int kRows = 2 * kRunRows;  // of pixels that a warp owns
constexpr int kChunkPieces = 2;      // 16-byte pieces of a pixel's chunk

// A tile is `runs` runs of image rows that follow each other through the batch, from one image into the next, by
// `columns` columns. Its halo has two more rows for each image it touches and two more columns.
struct Tiling {
  int N, H, W;
  int run_rows, image_runs;  // rows of a run; runs of an image
  int runs, columns, column_tiles, row_tiles;
  int halo_columns, halo_pixels;
  int halo_pitch;  // pixels of a plane of 16-byte pieces; 4 modulo 8, so that planes start on different banks
  float per_columns, per_halo_columns, per_image_runs, per_image_rows;  // one over these; the last: of a halo

  __host__ __device__ int tiles() const { return row_tiles * column_tiles; }
};

inline Tiling make_tiling(const Shape& shape, int run_rows, int runs, int columns) {
  Tiling t{};
  t.N = static_cast<int>(shape.N), t.H = static_cast<int>(shape.H), t.W = static_cast<int>(shape.W);
  t.run_rows = run_rows, t.image_runs = ceil_div(t.H, run_rows);
  t.runs = runs, t.columns = columns;
  t.column_tiles = ceil_div(t.W, columns), t.row_tiles = ceil_div(t.N * t.image_runs, runs);
  const int images = (runs + t.image_runs - 2) / t.image_runs + 1;  // the most that a tile touches
  t.halo_columns = columns + 2, t.halo_pixels = (runs * run_rows + 2 * images) * t.halo_columns;
  t.halo_pitch = (t.halo_pixels + 3) / 8 * 8 + 4;
  t.per_columns = 1.f / columns, t.per_halo_columns = 1.f / t.halo_columns;
  t.per_image_runs = 1.f / t.image_runs, t.per_image_rows = 1.f / (t.image_runs * run_rows + 2);
  return t;
}

// x / divisor for positions in a tile. Exact below 2^21: (x + 1/2) / divisor is no nearer to an integer than 1/2
// divisor.
__device__ __forceinline__ int divide(int x, float one_over_divisor) {
  return static_cast<int>((static_cast<float>(x) + 0.5f) * one_over_divisor);
}

struct Tile {
  const Tiling& tiling;
  int first_image, first_run;  // where in the batch, and in this image, the tile's rows begin
  int first_column;

  __device__ __forceinline__ Tile(const Tiling& t, int index) : tiling(t) {
    const int run = index / t.column_tiles * t.runs;
    first_image = run / t.image_runs, first_run = run % t.image_runs;
    first_column = index % t.column_tiles * t.columns;
  }

  __device__ __forceinline__ int image(int run) const { return first_image + images_before(run); }
  __device__ __forceinline__ int row(int run) const {
    return (first_run + run - images_before(run) * tiling.image_runs) * tiling.run_rows;
  }
  // The halo row above a run's first row: what its upper taps read.
  __device__ __forceinline__ int halo_row(int run) const { return run * tiling.run_rows + 2 * images_before(run); }
  // The pixel at a position of the halo, counted from the first pixel of the first image; -1 in the zero padding.
  __device__ __forceinline__ int pixel_index(int position) const {
    const int halo_row = divide(position, tiling.per_halo_columns);
    const int column = first_column + position - halo_row * tiling.halo_columns - 1;
    const int in_first = (tiling.image_runs - first_run) * tiling.run_rows + 2;  // halo rows of the first image
    const int in_other = tiling.image_runs * tiling.run_rows + 2;
    int image = 0, row = first_run * tiling.run_rows + halo_row - 1;
    if (halo_row >= in_first) {
      image = 1 + divide(halo_row - in_first, tiling.per_image_rows);
      row = halo_row - in_first - (image - 1) * in_other - 1;
    }
    const bool inside =
        first_image + image < tiling.N && row >= 0 && row < tiling.H && column >= 0 && column < tiling.W;
    return inside ? (image * tiling.H + row) * tiling.W + column : -1;
  }
  // Pixels before the first image.
  __device__ __forceinline__ int64_t origin() const { return static_cast<int64_t>(first_image) * tiling.H * tiling.W; }

 private:
  // Of the tile's images, those that end before a run.
  __device__ __forceinline__ int images_before(int run) const {
    const int behind_first = first_run + run - tiling.image_runs;
    return behind_first < 0 ? 0 : 1 + divide(behind_first, tiling.per_image_runs);
  }
};

}  // namespace densenet_fast::cuda::conv3x3
