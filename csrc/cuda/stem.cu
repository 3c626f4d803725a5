// BN-ReLU-maxpool 3x3, stride 2, padding 1, in one pass. Contract: densenet_fast/contract/operations.py.
// The backward finds the maxima of a tile's windows again and keeps their positions in shared memory: the first of
// equal values in row-major order takes the gradient, and a NaN wins, as in PyTorch.
#include "rows.cuh"

namespace densenet_fast::cuda {
namespace {

struct Image {
  const void* x;  // [N, H, W, C] input_t
  int64_t stride;
  int H, W, C, granule;

  __host__ __device__ int64_t out_height() const { return ceil_div(H, 2); }
  __host__ __device__ int64_t out_width() const { return ceil_div(W, 2); }
};

// The maximum of a window of relu(bn(x)), as it would be stored, and its position 3 * row + column in the window.
template <class input_t>
struct Maximum {
  static constexpr int V = kVector<input_t>;
  Piece<input_t> value;
  int position[V];

  // `x`: the image, at this piece's channels; (row, column): of the output.
  __device__ __forceinline__ Maximum(const Image& image, const input_t* x, int count, int row, int column,
                                     const Activation<input_t>& activation) {
#pragma unroll
    for (int e = 0; e < V; e++) value.value[e] = -INFINITY, position[e] = 0;
#pragma unroll
    for (int tap = 0; tap < 9; tap++) {
      const int h = 2 * row - 1 + tap / 3, w = 2 * column - 1 + tap % 3;
      if (h < 0 || h >= image.H || w < 0 || w >= image.W) continue;
      const auto at =
          Piece<input_t>::load(x + (static_cast<int64_t>(h) * image.W + w) * image.stride, count, image.granule);
      const Piece<input_t> y = activation(at);
#pragma unroll
      for (int e = 0; e < V; e++)
        if (y.value[e] > value.value[e] || y.value[e] != y.value[e]) value.value[e] = y.value[e], position[e] = tap;
    }
  }
};

constexpr int kStemTileRows = 256;  // of y

struct StemFwdParams {
  Image image;
  Norm norm;
  Matrix y;
  int64_t M;  // rows of y
  int y_granule;
  Stats stats;
  Partials<Moments> partials;
};

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads) stem_fwd_kernel(const StemFwdParams p) {
  using input_t = typename Traits::input_t;
  constexpr int V = Traits::kVector;
  __shared__ __align__(16) float shared[kRowsFloats<Traits, Moments>];
  const int c = Traits::first_channel(), count = p.image.C - c;
  const int64_t width = p.image.out_width(), size = p.image.out_height() * width;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kStemTileRows;
  const int rows = static_cast<int>(min(p.M - first, static_cast<int64_t>(kStemTileRows)));
  const Activation<input_t> activation(p.norm, c, p.image.C);
  Moments moments[V];
  float seen = 0.f;
  for (int i = Traits::row(); i < rows; i += Traits::kRows) {
    const int64_t m = first + i, n = m / size, pixel = m % size;
    const input_t* const x = static_cast<const input_t*>(p.image.x) + n * p.image.H * p.image.W * p.image.stride + c;
    const Maximum<input_t> maximum(p.image, x, count, static_cast<int>(pixel / width), static_cast<int>(pixel % width),
                                   activation);
    maximum.value.store(static_cast<input_t*>(p.y.data) + m * p.y.stride + c, count, p.y_granule);
    const float weight = 1.f / ++seen;
#pragma unroll
    for (int e = 0; e < V; e++) moments[e].add(maximum.value.value[e], seen, weight);
  }
  if (p.stats.mean == nullptr) return;
  finish_rows<Traits>(p.partials, moments, shared, blockIdx.x, blockIdx.y,
                      [&](int channel, const Moments& total) { write_stats(p.stats, channel, total); });
}

// A block's tile: windows of y, and one more row and column of them that reach into its pixels of x.
constexpr int kWindowRows = 8, kWindowColumns = 16;

struct StemBwdParams {
  Image image;
  Norm norm;
  ConstMatrix dy;
  Matrix dx;
  int dy_granule, dx_granule, tiles_y, tiles_x;
  float count;
  NormGradient dnorm;
  Partials<Sums> partials;
};

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads) stem_bwd_kernel(const StemBwdParams p) {
  using input_t = typename Traits::input_t;
  constexpr int V = Traits::kVector, kPitch = kWindowColumns + 1, kWindows = (kWindowRows + 1) * kPitch;
  constexpr int kPixelColumns = 2 * kWindowColumns, kPixels = 2 * kWindowRows * kPixelColumns;
  __shared__ __align__(16) float shared[kRowsFloats<Traits, Sums>];
  __shared__ uint8_t positions[kWindows][Traits::kColumns];
  const Image& image = p.image;
  const int c = Traits::first_channel(), count = image.C - c;
  const int out_height = static_cast<int>(image.out_height()), out_width = static_cast<int>(image.out_width());
  const int n = blockIdx.x / (p.tiles_y * p.tiles_x), tile = blockIdx.x % (p.tiles_y * p.tiles_x);
  const int row0 = tile / p.tiles_x * kWindowRows, column0 = tile % p.tiles_x * kWindowColumns;
  const int64_t pixels = static_cast<int64_t>(n) * image.H * image.W;
  const input_t* const x = static_cast<const input_t*>(image.x) + pixels * image.stride + c;
  input_t* const dx = static_cast<input_t*>(p.dx.data) + pixels * p.dx.stride + c;
  const input_t* const dy =
      static_cast<const input_t*>(p.dy.data) + static_cast<int64_t>(n) * out_height * out_width * p.dy.stride + c;
  const Activation<input_t> activation(p.norm, c, image.C);

  for (int i = Traits::row(); i < kWindows; i += Traits::kRows) {
    const int row = row0 + i / kPitch, column = column0 + i % kPitch;
    if (row >= out_height || column >= out_width) continue;
    const Maximum<input_t> maximum(image, x, count, row, column, activation);
#pragma unroll
    for (int e = 0; e < V; e++) positions[i][Traits::piece() * V + e] = static_cast<uint8_t>(maximum.position[e]);
  }
  __syncthreads();

  NormBackward<input_t> backward(activation, p.norm, c, image.C);
  for (int i = Traits::row(); i < kPixels; i += Traits::kRows) {
    const int h = 2 * row0 + i / kPixelColumns, w = 2 * column0 + i % kPixelColumns;
    if (h >= image.H || w >= image.W) continue;
    Piece<input_t> v{};
    for (int row = h / 2; row <= min((h + 1) / 2, out_height - 1); row++)
      for (int column = w / 2; column <= min((w + 1) / 2, out_width - 1); column++) {
        const auto at = Piece<input_t>::load(dy + (static_cast<int64_t>(row) * out_width + column) * p.dy.stride, count,
                                             p.dy_granule);
        const uint8_t* const position = positions[(row - row0) * kPitch + column - column0] + Traits::piece() * V;
        const int here = 3 * (h - 2 * row + 1) + w - 2 * column + 1;
#pragma unroll
        for (int e = 0; e < V; e++) v.value[e] += position[e] == here ? at.value[e] : 0.f;
      }
    const int64_t m = static_cast<int64_t>(h) * image.W + w;
    backward.apply(Piece<input_t>::load(x + m * image.stride, count, image.granule), v);
    v.store(dx + m * p.dx.stride, count, p.dx_granule);
  }
  finish_rows<Traits>(p.partials, backward.sums, shared, blockIdx.x, blockIdx.y, [&](int channel, const Sums& total) {
    write_gradient(p.dnorm, p.norm, p.count, channel, total);
  });
}

Image make_image(const Shape& shape, int64_t C, const ConstMatrix& x, const Launch& where) {
  return {x.data,
          x.stride,
          static_cast<int>(shape.H),
          static_cast<int>(shape.W),
          static_cast<int>(C),
          granule(x, where.element_size())};
}

}  // namespace

void stem_fwd(const StemFwd& op, const Launch& where) {
  with_input(where.math, [&](auto input) {
    using Traits = RowTraits<decltype(input)>;
    StemFwdParams p{make_image(op.shape, op.C, op.x, where), op.norm, op.y};
    p.M = op.shape.N * p.image.out_height() * p.image.out_width(), p.y_granule = granule(op.y, where.element_size());
    p.stats = op.stats;
    const int64_t tiles = ceil_div<int64_t>(p.M, kStemTileRows), blocks = ceil_div<int64_t>(op.C, Traits::kColumns);
    if (op.stats.mean != nullptr)
      p.partials = make_partials<Moments>(op.C, tiles, blocks, Traits::kParts, *where.workspace);
    launch(stem_fwd_kernel<Traits>, dim3(tiles, blocks), Traits::kThreads, 0, where, p);
  });
}

void stem_bwd(const StemBwd& op, const Launch& where) {
  with_input(where.math, [&](auto input) {
    using Traits = RowTraits<decltype(input)>;
    StemBwdParams p{make_image(op.shape, op.C, op.x, where), op.norm, op.dy, op.dx};
    p.dy_granule = granule(op.dy, where.element_size()), p.dx_granule = granule(op.dx, where.element_size());
    p.tiles_y = static_cast<int>(ceil_div<int64_t>(p.image.out_height(), kWindowRows));
    p.tiles_x = static_cast<int>(ceil_div<int64_t>(p.image.out_width(), kWindowColumns));
    p.count = static_cast<float>(op.shape.rows()), p.dnorm = op.dnorm;
    const int64_t tiles = op.shape.N * p.tiles_y * p.tiles_x, blocks = ceil_div<int64_t>(op.C, Traits::kColumns);
    p.partials = make_partials<Sums>(op.C, tiles, blocks, Traits::kParts, *where.workspace);
    launch(stem_bwd_kernel<Traits>, dim3(tiles, blocks), Traits::kThreads, 0, where, p);
  });
}

}  // namespace densenet_fast::cuda
