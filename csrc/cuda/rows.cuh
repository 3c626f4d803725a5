// Kernels that walk down the rows of [M, C]: a thread keeps one 16-byte piece of a row, with the coefficients of its
// channels, and a block ends with what its threads reduced for each channel.
#pragma once

#include "common.cuh"

namespace densenet_fast::cuda {

template <class input_t_>
struct RowTraits {
  using input_t = input_t_;
  static constexpr int kThreads = 256, kColumns = 64;
  static constexpr int kVector = cuda::kVector<input_t>, kPieces = kColumns / kVector;
  static constexpr int kRows = kThreads / kPieces;    // rows that a block reads at once
  static constexpr int kParts = kThreads / kColumns;  // of finish_partials

  __device__ __forceinline__ static int piece() { return threadIdx.x % kPieces; }
  __device__ __forceinline__ static int row() { return threadIdx.x / kPieces; }
  __device__ __forceinline__ static int first_channel() { return blockIdx.y * kColumns + piece() * kVector; }
};

// relu(bn(x)) of one piece, rounded as if it were stored; bn[e].x is also the derivative of bn(x).
template <class input_t>
struct Activation {
  static constexpr int V = kVector<input_t>;
  float2 bn[V];  // (scale, shift)

  __device__ __forceinline__ Activation(const Norm& norm, int c, int C) {
#pragma unroll
    for (int e = 0; e < V; e++) bn[e] = affine(norm, c + e, C);
  }
  __device__ __forceinline__ Piece<input_t> operator()(const Piece<input_t>& x) const {
    Piece<input_t> y;
#pragma unroll
    for (int e = 0; e < V; e += 2) {
      const float2 pair =
          Pair<input_t>::pack_relu(fmaf(x.value[e], bn[e].x, bn[e].y), fmaf(x.value[e + 1], bn[e + 1].x, bn[e + 1].y))
              .unpack();
      y.value[e] = pair.x, y.value[e + 1] = pair.y;
    }
    return y;
  }
};

// Turns the gradient at the ReLU's output into dx and adds it to the sums of the norm's backward.
template <class input_t>
struct NormBackward {
  static constexpr int V = kVector<input_t>;
  const Activation<input_t>& activation;
  float mean[V];
  Sums sums[V];

  __device__ __forceinline__ NormBackward(const Activation<input_t>& a, const Norm& norm, int c, int C)
      : activation(a) {
#pragma unroll
    for (int e = 0; e < V; e++) mean[e] = c + e < C ? norm.mean[c + e] : 0.f;
  }
  // v, the gradient behind the ReLU, becomes dx.
  __device__ __forceinline__ void apply(const Piece<input_t>& x, Piece<input_t>& v) {
    const Piece<input_t> y = activation(x);
#pragma unroll
    for (int e = 0; e < V; e++) {
      const float masked = y.value[e] <= 0.f ? 0.f : v.value[e];  // a NaN lets the gradient through, as in PyTorch
      sums[e].merge({{masked, masked * (x.value[e] - mean[e])}});
      v.value[e] = activation.bn[e].x * masked;
    }
  }
};

// Floats of shared memory for merge_rows and finish_rows.
template <class Traits, class reduced_t>
constexpr int kRowsFloats = Traits::kRows * Traits::kColumns * reduced_t::kValues;

// Merges what the block's threads reduced: the first kColumns threads call put(c, total) with their channel.
template <class Traits, class reduced_t, class function_t>
__device__ __forceinline__ void merge_rows(const reduced_t (&mine)[Traits::kVector], float* shared, int column_block,
                                           function_t put) {
  constexpr int kPlane = Traits::kRows * Traits::kColumns;  // shared: [kValues][kRows, kColumns]
  float* const at = shared + Traits::row() * Traits::kColumns + Traits::piece() * Traits::kVector;
#pragma unroll
  for (int e = 0; e < Traits::kVector; e += 4)
#pragma unroll
    for (int i = 0; i < reduced_t::kValues; i++)
      *reinterpret_cast<float4*>(at + i * kPlane + e) =
          make_float4(mine[e].value[i], mine[e + 1].value[i], mine[e + 2].value[i], mine[e + 3].value[i]);
  __syncthreads();
  if (threadIdx.x >= Traits::kColumns) return;
  reduced_t total;
  for (int r = 0; r < Traits::kRows; r++) {
    reduced_t next;
#pragma unroll
    for (int i = 0; i < reduced_t::kValues; i++)
      next.value[i] = shared[i * kPlane + r * Traits::kColumns + threadIdx.x];
    total.merge(next);
  }
  put(column_block * Traits::kColumns + static_cast<int>(threadIdx.x), total);
}

// The same of the blocks of all tiles: finish(c, total) for every channel.
template <class Traits, class reduced_t, class function_t>
__device__ __forceinline__ void finish_rows(const Partials<reduced_t>& partials,
                                            const reduced_t (&mine)[Traits::kVector], float* shared, int tile,
                                            int column_block, function_t finish) {
  merge_rows<Traits>(mine, shared, column_block, [&](int c, const reduced_t& total) {
    if (c < partials.C) partials.put(tile, c, total);
  });
  finish_partials<Traits::kThreads, Traits::kColumns>(partials, tile, column_block, shared, finish);
}

}  // namespace densenet_fast::cuda
