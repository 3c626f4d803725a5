// What the 3x3 kernels share: the tiles into which a batch of images is cut, the preparation of the weight, and the
// main loop of forward and input gradient.
//
// The convolution streams its input through shared memory in chunks of 32 bytes of a pixel (one k step of the
// products): a halo tile, staged once for all nine taps, beside the chunk's weights. Half an A operand is 8
// neighbouring pixels of an image row, so a tap is an offset. A warp owns two runs of kRunRows image rows by 8 columns;
// ldmatrix for rows (p, p) of both serves the three vertical taps. docs/internals/cuda.md.
#pragma once

#include "common.cuh"

#include <cmath>
#include <type_traits>

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
  int run_rows, image_runs;
  int runs, columns, column_tiles, row_tiles;
  int halo_columns, halo_pixels;
  int halo_pitch;  // pixels of a plane of 16-byte pieces; 4 modulo 8, so that planes start on different banks

  __host__ __device__ int tiles() const { return row_tiles * column_tiles; }
};

inline Tiling make_tiling(const Shape& shape, int run_rows, int runs, int columns) {
  Tiling t{};
  t.N = static_cast<int>(shape.N), t.H = static_cast<int>(shape.H), t.W = static_cast<int>(shape.W);
  t.run_rows = run_rows, t.image_runs = ceil_div(t.H, run_rows);
  t.runs = runs, t.columns = columns;
  t.column_tiles = ceil_div(t.W, columns), t.row_tiles = ceil_div(t.N * t.image_runs, runs);
  const int images = (runs + t.image_runs - 2) / t.image_runs + 1;  // at most, also behind the last one
  t.halo_columns = columns + 2, t.halo_pixels = (runs * run_rows + 2 * images) * t.halo_columns;
  t.halo_pitch = (t.halo_pixels + 3) / 8 * 8 + 4;
  return t;
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

  __device__ __forceinline__ int image(int run) const { return first_image + (first_run + run) / tiling.image_runs; }
  __device__ __forceinline__ int row(int run) const { return (first_run + run) % tiling.image_runs * tiling.run_rows; }
  // The halo row that the upper taps of a run's first row see.
  __device__ __forceinline__ int halo_row(int run) const {
    return run * tiling.run_rows + 2 * (image(run) - first_image);
  }
  // The pixel at a place of the halo, counted from the first pixel of the first image; -1 in the zero padding.
  __device__ __forceinline__ int source(int place) const {
    const int halo_row = place / tiling.halo_columns, column = first_column + place % tiling.halo_columns - 1;
    const int in_first = (tiling.image_runs - first_run) * tiling.run_rows + 2;  // halo rows of the first image
    const int in_other = tiling.image_runs * tiling.run_rows + 2;
    int image = 0, row = first_run * tiling.run_rows + halo_row - 1;
    if (halo_row >= in_first) {
      image = 1 + (halo_row - in_first) / in_other;
      row = (halo_row - in_first) % in_other - 1;
    }
    const bool inside =
        first_image + image < tiling.N && row >= 0 && row < tiling.H && column >= 0 && column < tiling.W;
    return inside ? (image * tiling.H + row) * tiling.W + column : -1;
  }
  // Pixels before the first image.
  __device__ __forceinline__ int64_t origin() const { return static_cast<int64_t>(first_image) * tiling.H * tiling.W; }
};

// relu(bn(x)) of a piece of a pixel, in place.
template <class input_t>
struct BnReluPiece {
  float2 affine[kVector<input_t>];  // (scale, shift)

  // From a table of all channels, on a 16-byte boundary.
  __device__ __forceinline__ explicit BnReluPiece(const float2* table) {
#pragma unroll
    for (int e = 0; e < kVector<input_t>; e += 2) {
      const float4 two = *reinterpret_cast<const float4*>(table + e);
      affine[e] = make_float2(two.x, two.y), affine[e + 1] = make_float2(two.z, two.w);
    }
  }

  __device__ __forceinline__ void apply(unsigned char* piece) const {
    constexpr int kPairs = kVector<input_t> / 2;
    struct alignas(16) {
      Pair<input_t> pair[kPairs];
    } values = *reinterpret_cast<decltype(values)*>(piece);
#pragma unroll
    for (int i = 0; i < kPairs; i++) {
      const float2 x = values.pair[i].unpack(), first = affine[2 * i], second = affine[2 * i + 1];
      values.pair[i] = Pair<input_t>::pack_relu(fmaf(x.x, first.x, first.y), fmaf(x.y, second.x, second.y));
    }
    *reinterpret_cast<decltype(values)*>(piece) = values;
  }
};

// Preparation, one launch: the weight in the order of the main loop, BatchNorm's affine form, and in backward d.

struct Prepare {
  // packed [column blocks][chunks][warps_n][taps][2][8 * tiles_n] pieces of kVector inputs. Column 2t + e of tile j of
  // a group of n tiles stands for output 2nt + 2j + e of the group: what a thread accumulates is neighbouring channels.
  Weight weight;  // [outputs, inputs, 3, 3]
  int outputs, inputs;
  int tiles_n, group_tiles, warps_n, chunks;
  int64_t weight_pieces;
  void* packed;

  Norm norm;  // [C]
  int C, affine_count;
  float2* affine;  // [affine_count], zero past C

  // d [M, d_stride] = mask * (dy - a - b * (y - mean)), zero past G.
  int64_t M;
  int G, d_stride, dy_granule, y_granule;
  ConstMatrix dy, y;
  Correction correction_y;
  Dropout dropout;
  void* d;
};

void prepare(const Prepare& p, const Launch& where);

// Forward and input gradient: blocks of kWarps warps, `warps_n` of them along the output channels.

struct Source {
  Tiling tiling;
  ConstMatrix x;           // [N * H * W, C] input_t
  int C, chunks, granule;  // of x
  const float2* affine;    // [chunks * kKStep] or, without BN-ReLU, null
  const void* weight;      // packed
  int warps_n;
};

// 8-column tiles of a warp whose accumulators and fragments fit in registers.
template <class math_t>
constexpr int kMostTilesN = std::is_same_v<math_t, Tf32x3Math> ? 3 : 4;

template <class math_t_, int kTilesN_, bool kBnRelu_>
struct Traits {
  using math_t = math_t_;
  using input_t = typename math_t::input_t;
  static constexpr int kTilesN = kTilesN_;  // 8-column tiles of a warp
  static constexpr bool kBnRelu = kBnRelu_;
  static constexpr int kStages = kTilesN == 2 ? 3 : 2;  // few columns mean little work to hide a copy behind
  static constexpr int kColumns = 8 * kTilesN;          // of a warp: a slab
  static constexpr int kGroupTiles = kTilesN == 4 ? 2 : kTilesN, kGroups = kTilesN / kGroupTiles;
  static constexpr int kLaneColumns = 2 * kGroupTiles;  // neighbouring channels of one thread in a group
  static constexpr int kSlabPieces = kTaps * kChunkPieces * kColumns;
  static constexpr int kBlocks = sizeof(input_t) == 2 ? 2 : 1;  // per multiprocessor, that registers must allow
  static constexpr int kUnrolledTaps = std::is_same_v<math_t, Tf32x3Math> ? 1 : 3;  // more would spill its fragments

  // A thread's first column of a group.
  __device__ __forceinline__ static int column(int group) {
    return group * 8 * kGroupTiles + threadIdx.x % 4 * kLaneColumns;
  }
  // Its accumulator of column e of a group, in row k % kRunRows of run k / kRunRows.
  __device__ __forceinline__ static float& at(float (&acc)[kRunRows][kTilesN][4], int group, int e, int k) {
    return acc[k % kRunRows][group * kGroupTiles + e / 2][k / kRunRows * 2 + e % 2];
  }

  static constexpr int stage_bytes(const Tiling& t, int warps_n) {
    return (kChunkPieces * t.halo_pitch + warps_n * kSlabPieces) * 16;
  }
  static constexpr int shared_bytes(const Tiling& t, int warps_n) {
    return kStages * stage_bytes(t, warps_n) + t.halo_pixels * static_cast<int>(sizeof(int));
  }
};

// A warp's part of a tile.
struct WarpPart {
  int run[2], column[2];  // acc[i][j][2 * h + e] is row i of run[h], pixel column[h] + lane / 4; run -1: none
  int slab;               // of output channels

  __device__ __forceinline__ WarpPart(const Tiling& t, int warps_n) {
    const int groups = t.columns / 8, warp = threadIdx.x / 32;
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const int part = warp / warps_n * 2 + h;
      run[h] = part < t.runs * groups ? part / groups : -1;
      column[h] = part % groups * 8;
    }
    slab = blockIdx.y * warps_n + warp % warps_n;
  }

  // This thread's pixel of the batch in row k % kRunRows of run k / kRunRows, or -1.
  __device__ __forceinline__ int64_t pixel(const Tile& tile, int k) const {
    const Tiling& t = tile.tiling;
    const int h = k / kRunRows;
    if (run[h] < 0) return -1;
    const int image = tile.image(run[h]), row = tile.row(run[h]) + k % kRunRows;
    const int at = tile.first_column + column[h] + threadIdx.x % 32 / 4;
    const bool inside = image < t.N && row < t.H && at < t.W;
    return inside ? (static_cast<int64_t>(image) * t.H + row) * t.W + at : -1;
  }
};

// acc += the convolution of the tile. Afterwards the shared memory is free.
template <class traits>
__device__ __forceinline__ void multiply(const Source& p, const Tile& tile, const WarpPart& part, unsigned char* shared,
                                         float (&acc)[kRunRows][traits::kTilesN][4]) {
  using math_t = typename traits::math_t;
  using input_t = typename traits::input_t;
  constexpr int kStages = traits::kStages, kTilesN = traits::kTilesN;
  const Tiling& t = p.tiling;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int plane = t.halo_pitch * 16, stage_bytes = traits::stage_bytes(t, p.warps_n);

  // Every thread copies, and turns into activations, the same piece of its pixels in every chunk.
  const int piece = threadIdx.x % kChunkPieces, first_pixel = threadIdx.x / kChunkPieces;
  constexpr int kPixelStep = kThreads / kChunkPieces;
  int* const source = reinterpret_cast<int*>(shared + kStages * stage_bytes);  // [halo_pixels]
  for (int i = threadIdx.x; i < t.halo_pixels; i += kThreads) source[i] = tile.source(i);
  __syncthreads();

  const input_t* const x = static_cast<const input_t*>(p.x.data) + tile.origin() * p.x.stride;
  const auto copy = [&](int chunk) {
    unsigned char* const stage = shared + chunk % kStages * stage_bytes;
    const int c = (chunk * kChunkPieces + piece) * kVector<input_t>;
#pragma unroll 2
    for (int i = first_pixel; i < t.halo_pixels; i += kPixelStep) {
      const bool inside = source[i] >= 0 && c < p.C;
      copy_piece(stage + piece * plane + i * 16, inside ? x + source[i] * p.x.stride + c : x, inside ? p.C - c : 0,
                 p.granule);
    }
    const int weights = p.warps_n * traits::kSlabPieces * 16;
    const unsigned char* const weight =
        static_cast<const unsigned char*>(p.weight) + static_cast<int64_t>(blockIdx.y * p.chunks + chunk) * weights;
    for (int i = threadIdx.x * 16; i < weights; i += kThreads * 16)
      cp_async_16(stage + kChunkPieces * plane + i, weight + i, 16);
  };
  const auto activate = [&](int chunk, const BnReluPiece<input_t>& bn_relu) {
    unsigned char* const stage = shared + chunk % kStages * stage_bytes;
#pragma unroll 2
    for (int i = first_pixel; i < t.halo_pixels; i += kPixelStep)
      if (source[i] >= 0) bn_relu.apply(stage + piece * plane + i * 16);  // the padding comes after the ReLU
  };

#pragma unroll
  for (int chunk = 0; chunk < kStages - 1; chunk++) {
    if (chunk < p.chunks) copy(chunk);
    cp_async_commit();
  }
  // ldmatrix delivers (run 0, first half step), (run 1, first), (run 0, second), (run 1, second).
  const int h = lane >> 3 & 1, run = max(h ? part.run[1] : part.run[0], 0);
  const int a_lane = (lane >> 4) * plane +
                     (tile.halo_row(run) * t.halo_columns + (h ? part.column[1] : part.column[0]) + lane % 8) * 16;
  const int b_lane = kChunkPieces * plane +
                     (warp % p.warps_n * traits::kSlabPieces + h * traits::kColumns + lane % 8 + (lane >> 4) * 8) * 16;
  for (int chunk = 0; chunk < p.chunks; chunk++) {
    if constexpr (traits::kBnRelu) {
      const BnReluPiece<input_t> bn_relu(p.affine + (chunk * kChunkPieces + piece) * kVector<input_t>);
      cp_async_wait<kStages - 2>();
      activate(chunk, bn_relu);
    } else {
      cp_async_wait<kStages - 2>();
    }
    __syncthreads();  // the chunk is complete, and nobody reads the stage that is filled next
    if (chunk + kStages - 1 < p.chunks) copy(chunk + kStages - 1);
    cp_async_commit();
    if (part.run[0] < 0) continue;
    const unsigned char* const stage = shared + chunk % kStages * stage_bytes;
#pragma unroll traits::kUnrolledTaps
    for (int kx = 0; kx < 3; kx++) {
      Fragment<math_t, 4> a[kRunRows + 2];
#pragma unroll
      for (int i = 0; i < kRunRows + 2; i++) {
        uint32_t raw[4];
        ldmatrix_x4(raw, stage + a_lane + (i * t.halo_columns + kx) * 16);
        a[i] = Fragment<math_t, 4>(raw);
      }
#pragma unroll
      for (int ky = 0; ky < 3; ky++) {
        const auto multiply_rows = [&](const uint32_t (&raw_b)[2], int j) {
          const Fragment<math_t, 2> b(raw_b);
#pragma unroll
          for (int i = 0; i < kRunRows; i++) mma(acc[i][j], a[i + ky], b);
        };
        const unsigned char* const b_tap = stage + b_lane + (ky * 3 + kx) * kChunkPieces * traits::kColumns * 16;
#pragma unroll
        for (int j = 0; j < kTilesN; j += 2) {
          if (j + 1 < kTilesN) {
            uint32_t b[4];
            ldmatrix_x4(b, b_tap + j * 8 * 16);
            multiply_rows({b[0], b[1]}, j), multiply_rows({b[2], b[3]}, j + 1);
          } else {
            uint32_t b[2];
            ldmatrix_x2(b, b_tap + (j - (lane >> 4)) * 8 * 16);
            multiply_rows(b, j);
          }
        }
      }
    }
  }
  cp_async_wait<0>();
  __syncthreads();
}

// kLaneColumns neighbouring channels, the first of them c, of the rows of a matrix [M, C].
// element_t is input_t, const or not.
template <class element_t, int kLaneColumns>
struct Row {
  using input_t = std::remove_const_t<element_t>;
  static constexpr int kBytes = kLaneColumns * sizeof(input_t);
  static constexpr int kUnit = kBytes % 16 == 0 ? 16 : kBytes % 8 == 0 ? 8 : 4;
  struct alignas(kUnit) Unit {
    uint32_t word[kUnit / 4];
  };
  union Values {
    Unit unit[kBytes / kUnit];
    Pair<input_t> pair[kLaneColumns / 2];
    input_t element[kLaneColumns];
    __device__ __forceinline__ Values() {}
  };

  element_t* data;
  int64_t stride;
  int count;   // of the channels that are there
  bool whole;  // all of them, on addresses for Unit

  template <class matrix_t>
  __device__ __forceinline__ Row(const matrix_t& m, int c, int C)
      : data(static_cast<element_t*>(m.data) + c), stride(m.stride), count(min(C - c, kLaneColumns)) {
    const auto bits = reinterpret_cast<uintptr_t>(data) | static_cast<uintptr_t>(stride * sizeof(input_t));
    whole = count == kLaneColumns && bits % kUnit == 0;
  }

  __device__ __forceinline__ void load(int64_t m, float (&v)[kLaneColumns]) const {
    const input_t* const from = data + m * stride;
    Values values;
    if (whole) {
#pragma unroll
      for (int i = 0; i < kBytes / kUnit; i++) values.unit[i] = reinterpret_cast<const Unit*>(from)[i];
    } else {
#pragma unroll
      for (int e = 0; e < kLaneColumns; e++) values.element[e] = e < count ? from[e] : input_t(0.f);
    }
    unpack(values, v);
  }
  // v becomes what has been stored, in input_t's precision.
  __device__ __forceinline__ void store(int64_t m, float (&v)[kLaneColumns]) const {
    input_t* const to = data + m * stride;
    Values values;
#pragma unroll
    for (int e = 0; e < kLaneColumns; e += 2) values.pair[e / 2] = Pair<input_t>::pack(v[e], v[e + 1]);
    if (whole) {
#pragma unroll
      for (int i = 0; i < kBytes / kUnit; i++) reinterpret_cast<Unit*>(to)[i] = values.unit[i];
    } else {
#pragma unroll
      for (int e = 0; e < kLaneColumns; e++)
        if (e < count) to[e] = values.element[e];
    }
    unpack(values, v);
  }

 private:
  __device__ __forceinline__ static void unpack(const Values& values, float (&v)[kLaneColumns]) {
#pragma unroll
    for (int e = 0; e < kLaneColumns; e += 2) {
      const float2 two = values.pair[e / 2].unpack();
      v[e] = two.x, v[e + 1] = two.y;
    }
  }
};

// The sum over the eight pixels of a run's row: the lanes with the same channels.
__device__ __forceinline__ float sum_over_pixels(float x) {
#pragma unroll
  for (int distance = 4; distance < 32; distance *= 2) x += __shfl_xor_sync(~0u, x, distance);
  return x;
}

// One warp's share of a column, which lanes 0 to 3 hold, for finish_warps.
template <class traits, class reduced_t>
__device__ __forceinline__ void put_warp(unsigned char* shared, int column, const reduced_t& r) {
  if (threadIdx.x % 32 < 4) reinterpret_cast<reduced_t*>(shared)[threadIdx.x / 32 * traits::kColumns + column] = r;
}

// The shares of all warps of all blocks, merged: finish(c, total) for every channel.
template <class traits, class reduced_t, class function_t>
__device__ __forceinline__ void finish_warps(const Partials<reduced_t>& partials, int warps_n, unsigned char* shared,
                                             function_t finish) {
  __syncthreads();
  const int slab = threadIdx.x / traits::kColumns, column = threadIdx.x % traits::kColumns;
  const int c = (blockIdx.y * warps_n + slab) * traits::kColumns + column;
  if (slab < warps_n && c < partials.C) {
    reduced_t total;
    for (int warp = slab; warp < kWarps; warp += warps_n)
      total.merge(reinterpret_cast<const reduced_t*>(shared)[warp * traits::kColumns + column]);
    partials.put(blockIdx.x, c, total);
  }
  for (int i = 0; i < warps_n; i++)
    finish_partials<kThreads, traits::kColumns>(partials, blockIdx.x, blockIdx.y * warps_n + i,
                                                reinterpret_cast<float*>(shared), finish);
}

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

inline void make_affine(const Norm& norm, int64_t C, int64_t multiple, Prepare& prepare, const Launch& where) {
  prepare.norm = norm, prepare.C = static_cast<int>(C);
  prepare.affine_count = static_cast<int>(ceil_div(C, multiple) * multiple);
  prepare.affine = static_cast<float2*>(where.workspace->bytes(prepare.affine_count * sizeof(float2)));
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
