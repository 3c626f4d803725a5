// The kernels of conv3x3_prepare.cuh: each thread makes one 16-byte piece of a packed weight or of d, or one entry of
// BatchNorm's affine form.
#include "conv3x3_prepare.cuh"
#include "conv3x3_tiling.cuh"
#include "dropout.cuh"

namespace densenet_fast::cuda::conv3x3 {
namespace {

template <class input_t>
__device__ __forceinline__ void pack_weight(const PackParams& p, int64_t index) {
  const int rows = 8 * p.tiles_n;
  int64_t rest = index;
  const auto next = [&rest](int size) {
    const int i = static_cast<int>(rest % size);
    rest /= size;
    return i;
  };
  const int row = next(rows), half = next(kChunkPieces), tap = next(kTaps);
  const int warp = next(p.warps_n), chunk = next(p.chunks);
  const int n = p.group_tiles, j = row / 8 % n, column = row % 8;
  const int output = (static_cast<int>(rest) * p.warps_n + warp) * rows + row / (8 * n) * 8 * n + column / 2 * 2 * n +
                     2 * j + column % 2;
  const int input = (chunk * kChunkPieces + half) * kVector<input_t>;
  const int64_t* const stride = p.weight.stride;
  const input_t* from = static_cast<const input_t*>(p.weight.data) + output * stride[0] + input * stride[1] +
                        tap / 3 * stride[2] + tap % 3 * stride[3];
  input_t* to = static_cast<input_t*>(p.packed) + index * kVector<input_t>;
#pragma unroll
  for (int e = 0; e < kVector<input_t>; e++)
    to[e] = output < p.outputs && input + e < p.inputs ? from[e * stride[1]] : input_t(0.f);
}

template <class input_t>
__device__ __forceinline__ void correct_gradient(const PrepareParams& p, int64_t index) {
  const int pieces = p.d_stride / kVector<input_t>, c = static_cast<int>(index % pieces) * kVector<input_t>;
  const int64_t m = index / pieces, element = m * p.G + c;
  const Piece<input_t> dy =
      Piece<input_t>::load(static_cast<const input_t*>(p.dy.data) + m * p.dy.stride + c, p.G - c, p.dy_granule);
  const Piece<input_t> y =
      Piece<input_t>::load(static_cast<const input_t*>(p.y.data) + m * p.y.stride + c, p.G - c, p.y_granule);
  Piece<input_t> d{};
#pragma unroll
  for (int e = 0; e < kVector<input_t>; e++) {
    if (c + e >= p.G) break;
    d.value[e] =
        dy.value[e] - p.correction_y.a[c + e] - p.correction_y.b[c + e] * (y.value[e] - p.correction_y.mean[c + e]);
    if (p.dropout.threshold > 0) d.value[e] *= dropout_multiplier(p.dropout, element + e);
  }
  d.store(static_cast<input_t*>(p.d) + m * p.d_stride + c, kVector<input_t>, 16);
}

// By value, as running statistics are: batch_norm.cu.
struct PackAllParams {
  static constexpr int kWeights = 48;
  PackParams weight[kWeights];
};

template <class input_t>
__global__ void __launch_bounds__(kThreads) conv3x3_pack_kernel(const PackAllParams p) {
  const PackParams& weight = p.weight[blockIdx.y];
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (index < weight.pieces) pack_weight<input_t>(weight, index);
}

template <class input_t>
__global__ void __launch_bounds__(kThreads) conv3x3_prepare_kernel(const PrepareParams p) {
  int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (index < p.weight.pieces) return pack_weight<input_t>(p.weight, index);
  index -= p.weight.pieces;
  if (index < p.affine_count) {
    p.affine[index] = affine(p.norm, static_cast<int>(index), p.C);
    return;
  }
  index -= p.affine_count;
  if (index < p.M * (p.d_stride / kVector<input_t>)) correct_gradient<input_t>(p, index);
}

}  // namespace

void pack(const PackParams* weights, int64_t count, const Launch& where) {
  for (int64_t first = 0; first < count; first += PackAllParams::kWeights) {
    PackAllParams p{};
    const int n = static_cast<int>(std::min<int64_t>(count - first, PackAllParams::kWeights));
    std::copy_n(weights + first, n, p.weight);
    int64_t pieces = 0;
    for (int i = 0; i < n; i++) pieces = std::max(pieces, p.weight[i].pieces);
    const dim3 grid(static_cast<unsigned>(ceil_div<int64_t>(pieces, kThreads)), n);
    with_input(where.math,
               [&](auto input) { launch(conv3x3_pack_kernel<decltype(input)>, grid, kThreads, 0, where, p); });
  }
}

void prepare(const PrepareParams& p, const Launch& where) {
  with_input(where.math, [&](auto input) {
    using input_t = decltype(input);
    const int64_t count = p.weight.pieces + p.affine_count + p.M * (p.d_stride / kVector<input_t>);
    launch(conv3x3_prepare_kernel<input_t>, ceil_div<int64_t>(count, kThreads), kThreads, 0, where, p);
  });
}

}  // namespace densenet_fast::cuda::conv3x3
