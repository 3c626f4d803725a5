// What the kernels share: pieces of 16 bytes, BatchNorm's affine form, reductions that end in the last block to arrive,
// and launches. docs/internals/cuda.md.
#pragma once

#include <algorithm>
#include <stdexcept>
#include <string>

#include "kernels.h"
#include "mma.cuh"

namespace densenet_fast::cuda {

inline void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // clears the error: the next check would report it again
  throw std::runtime_error(std::string("densenet_fast: CUDA: ") + cudaGetErrorString(error));
}

// Call before a launch of `kernel` on the current device. Beyond 48 KB of shared memory, static and dynamic together, a
// kernel needs an attribute, or the launch fails; it is set once for each kernel and device, and again for more.
void allow_shared_bytes(const void* kernel, int dynamic_bytes, const DeviceProperties& device);

template <class params_t>
void launch(void (*kernel)(params_t), dim3 grid, int threads, int shared_bytes, const Launch& where,
            const params_t& params) {
  if (shared_bytes > 0) allow_shared_bytes(reinterpret_cast<const void*>(kernel), shared_bytes, where.device);
  kernel<<<grid, threads, shared_bytes, where.stream>>>(params);
  check(cudaGetLastError());
}

// function(input_t()) for the type of the activations.
template <class function_t>
void with_input(Math math, function_t function) {
  switch (math) {
    case Math::kBFloat16: return function(bf16());
    case Math::kHalf: return function(f16());
    default: return function(float());
  }
}

// function(math_t()) for how products are made.
template <class function_t>
void with_math(Math math, function_t function) {
  switch (math) {
    case Math::kBFloat16: return function(BFloat16Math());
    case Math::kHalf: return function(HalfMath());
    case Math::kTf32: return function(Tf32Math());
    case Math::kTf32x3: return function(Tf32x3Math());
  }
}

template <class int_t>
__host__ __device__ constexpr int_t ceil_div(int_t a, int_t b) {
  return (a + b - 1) / b;
}

// Rows are copied in pieces of 16 bytes; where they do not start on 16 bytes, in smaller and slower steps.

// The bytes that one copy instruction may move, given where the rows start: 16, 4, or 0 for element by element.
inline int granule(const ConstMatrix& m, int element_size) {
  const auto bits = reinterpret_cast<uintptr_t>(m.data) | static_cast<uintptr_t>(m.stride * element_size);
  return bits % 16 == 0 ? 16 : bits % 4 == 0 ? 4 : 0;
}

// Of the first `count` (at most kVector, also negative) elements of a piece.
template <class input_t>
__device__ __forceinline__ int piece_bytes(int count) {
  return min(max(count, 0), kVector<input_t>) * static_cast<int>(sizeof(input_t));
}

// Copies `count` elements to a piece in shared memory and zeroes its rest; lands at
// cp_async_wait.
template <class input_t>
__device__ __forceinline__ void copy_piece(unsigned char* to, const input_t* from, int count, int granule) {
  const int bytes = piece_bytes<input_t>(count);
  if (granule == 16) {
    cp_async_16(to, from, bytes);
  } else if (granule == 4) {
#pragma unroll 1
    for (int i = 0; i < 16; i += 4)
      cp_async_4(to + i, reinterpret_cast<const unsigned char*>(from) + i, min(max(bytes - i, 0), 4));
  } else {
#pragma unroll 1
    for (int e = 0; e < kVector<input_t>; e++) reinterpret_cast<input_t*>(to)[e] = e < count ? from[e] : input_t(0.f);
  }
}

// copy_piece of a thread's rows r < kRows, every kStep-th, from the first one on: `to` lies kPitch bytes from row to
// row. Rows from `left` on are zeros. What the granule is is asked once: it is 16 as a rule.
template <int kRows, int kStep, int kPitch, class input_t>
__device__ __forceinline__ void copy_rows(unsigned char* to, const input_t* from, int64_t stride, int left, int count,
                                          int granule) {
  if (granule == 16) {
    const int bytes = piece_bytes<input_t>(count);
#pragma unroll
    for (int r = 0; r < kRows; r += kStep) cp_async_16(to + r * kPitch, from + r * stride, r < left ? bytes : 0);
  } else {
#pragma unroll 1
    for (int r = 0; r < kRows; r += kStep)
      copy_piece(to + r * kPitch, from + r * stride, r < left ? count : 0, granule);
  }
}

// `count` elements from a piece in shared memory to a row.
template <class input_t>
__device__ __forceinline__ void store_piece(input_t* to, const unsigned char* from, int count, int granule) {
  if (granule == 16 && count >= kVector<input_t>) {
    *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(from);
  } else {
#pragma unroll 1
    for (int e = 0; e < min(count, kVector<input_t>); e++) to[e] = reinterpret_cast<const input_t*>(from)[e];
  }
}

// A piece of a row in registers, in fp32.
template <class input_t>
struct Piece {
  float value[kVector<input_t>];

  // Elements at and past `count` are zero.
  __device__ __forceinline__ static Piece load(const input_t* from, int count, int granule) {
    alignas(16) input_t raw[kVector<input_t>];
    if (granule == 16 && count >= kVector<input_t>) {
      *reinterpret_cast<uint4*>(raw) = *reinterpret_cast<const uint4*>(from);
    } else {
#pragma unroll
      for (int e = 0; e < kVector<input_t>; e++) raw[e] = e < count ? from[e] : input_t(0.f);
    }
    Piece p;
#pragma unroll
    for (int e = 0; e < kVector<input_t>; e += 2) {
      const float2 pair = reinterpret_cast<const Pair<input_t>*>(raw)[e / 2].unpack();
      p.value[e] = pair.x, p.value[e + 1] = pair.y;
    }
    return p;
  }

  __device__ __forceinline__ void store(input_t* to, int count, int granule) const {
    alignas(16) input_t raw[kVector<input_t>];
#pragma unroll
    for (int e = 0; e < kVector<input_t>; e += 2)
      reinterpret_cast<Pair<input_t>*>(raw)[e / 2] = Pair<input_t>::pack(value[e], value[e + 1]);
    if (granule == 16 && count >= kVector<input_t>) {
      *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(raw);
    } else {
#pragma unroll
      for (int e = 0; e < kVector<input_t>; e++)
        if (e < count) to[e] = raw[e];
    }
  }
};

// BatchNorm

__device__ __forceinline__ float rstd(const Norm& norm, int c) {
  return rsqrtf(norm.var[c] + static_cast<float>(norm.eps));
}

// What (scale, shift) of a channel is made of. No load is behind a branch, where another one would be waited for first:
// instead of what there is not something else is read.
struct NormChannel {
  float mean, var, gamma, beta;

  __device__ __forceinline__ NormChannel() {}
  __device__ __forceinline__ NormChannel(const Norm& norm, int c)
      : mean(norm.mean[c]),
        var(norm.var[c]),
        gamma((norm.gamma ? norm.gamma : norm.mean)[c]),
        beta((norm.beta ? norm.beta : norm.mean)[c]) {}
  __device__ __forceinline__ float2 affine(const Norm& norm) const {
    const float inverse = rsqrtf(var + static_cast<float>(norm.eps)), scale = norm.gamma ? gamma * inverse : inverse;
    return make_float2(scale, fmaf(-mean, scale, norm.beta ? beta : 0.f));
  }
};

// (scale, shift) with bn(x) = scale * x + shift; zero past the last channel, the identity where there is no norm.
__device__ __forceinline__ float2 affine(const Norm& norm, int c, int C) {
  if (c >= C) return make_float2(0.f, 0.f);
  if (norm.mean == nullptr) return make_float2(1.f, 0.f);
  return NormChannel(norm, c).affine(norm);
}

// The same of channels [0, count), by all threads of a block, each of which asks for several before it waits.
template <int kThreads>
__device__ __forceinline__ void affine_table(float2* table, const Norm& norm, int count, int C) {
  constexpr int kAtOnce = 4;
#pragma unroll 1
  for (int first = threadIdx.x; first < count; first += kAtOnce * kThreads) {
    NormChannel channels[kAtOnce];
    if (norm.mean != nullptr)
#pragma unroll
      for (int i = 0; i < kAtOnce; i++) channels[i] = NormChannel(norm, min(first + i * kThreads, C - 1));
#pragma unroll
    for (int i = 0; i < kAtOnce; i++) {
      const int c = first + i * kThreads;
      const float2 value = norm.mean != nullptr ? channels[i].affine(norm) : make_float2(1.f, 0.f);
      if (c < count) table[c] = c < C ? value : make_float2(0.f, 0.f);
    }
  }
}

// Count, mean and sum of squared deviations, merged by Chan's formula.
struct Moments {
  static constexpr int kValues = 3;
  float value[kValues] = {0.f, 0.f, 0.f};

  // x as the `count`-th value; inverse = 1 / count.
  __device__ __forceinline__ void add(float x, float count, float inverse) {
    const float distance = x - value[1];
    value[0] = count;
    value[1] = fmaf(distance, inverse, value[1]);
    value[2] = fmaf(distance, x - value[1], value[2]);
  }

  __device__ __forceinline__ void merge(const Moments& other) {
    const float n = other.value[0];
    if (n == 0.f) return;
    const float total = value[0] + n, weight = __fdividef(n, total), distance = other.value[1] - value[1];
    value[1] += distance * weight;
    value[2] += other.value[2] + distance * distance * (value[0] * weight);
    value[0] = total;
  }
};

// sum(v) and sum(v * (x - mean)).
struct Sums {
  static constexpr int kValues = 2;
  float value[kValues] = {0.f, 0.f};

  __device__ __forceinline__ void merge(const Sums& other) {
    value[0] += other.value[0];
    value[1] += other.value[1];
  }
};

__device__ __forceinline__ void write_stats(const Stats& stats, int c, const Moments& m) {
  stats.mean[c] = m.value[1];
  stats.var[c] = m.value[2] / m.value[0];
}

// The end of a norm's backward over `count` values per channel.
__device__ __forceinline__ void write_gradient(const NormGradient& g, const Norm& norm, float count, int c,
                                               const Sums& sums) {
  const float inverse = rstd(norm, c), scale = norm.gamma ? norm.gamma[c] * inverse : inverse;
  const float dbeta = sums.value[0], dgamma = sums.value[1] * inverse;
  g.dgamma[c] = dgamma;
  g.dbeta[c] = dbeta;
  if (g.a != nullptr) {
    g.a[c] += scale * dbeta / count;
    g.b[c] += scale * inverse * dgamma / count;
  }
}

// Reductions over tiles: every block leaves one partial for each of its columns. The last block of a group to arrive
// merges the group's partials, the last of these merges the groups, each in the order of the tiles: the result does not
// depend on the order of arrival.

template <class reduced_t>
struct Partials {
  float* tiles;        // [tile_count, kValues, C]
  float* groups;       // [group_count, kValues, C]
  unsigned* counters;  // [column blocks, group_count + 1], zero before and after
  int C, tile_count, group_size, group_count;

  __device__ __forceinline__ void put(int tile, int c, const reduced_t& r) const { put_at(tiles, tile, c, r); }
  __device__ __forceinline__ void put_at(float* to, int row, int c, const reduced_t& r) const {
#pragma unroll
    for (int i = 0; i < reduced_t::kValues; i++)
      to[(static_cast<int64_t>(row) * reduced_t::kValues + i) * C + c] = r.value[i];
  }
  // Reads what other blocks wrote: from L2, because a multiprocessor's L1 cache may hold older values.
  __device__ __forceinline__ reduced_t get_at(const float* from, int row, int c) const {
    reduced_t r;
#pragma unroll
    for (int i = 0; i < reduced_t::kValues; i++)
      r.value[i] = __ldcg(from + (static_cast<int64_t>(row) * reduced_t::kValues + i) * C + c);
    return r;
  }
};

// `parts`: so many threads of a block share a column when it merges, kThreads / kColumns of finish_partials. All tiles
// are one group where that is short; else there are about as many groups as tiles in one, because a block merges
// either.
template <class reduced_t>
Partials<reduced_t> make_partials(int64_t C, int64_t tile_count, int64_t column_blocks, int parts,
                                  Workspace& workspace) {
  int64_t group = 16 * parts;
  if (tile_count > group)
    for (group = 16; group * group < tile_count;) group++;
  Partials<reduced_t> p{};
  p.C = static_cast<int>(C);
  p.tile_count = static_cast<int>(tile_count);
  p.group_size = static_cast<int>(group);
  p.group_count = ceil_div(p.tile_count, p.group_size);
  p.tiles = workspace.floats(tile_count * reduced_t::kValues * C);
  p.groups = workspace.floats(p.group_count * reduced_t::kValues * C);
  p.counters = workspace.counters(column_blocks * (p.group_count + 1));
  return p;
}

// Whether this block is the last of `count` to count up. What all of them wrote before is then visible to it.
__device__ __forceinline__ bool last_to_arrive(unsigned* counter, int count) {
  __shared__ bool is_last;
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    is_last = atomicInc(counter, count - 1) == static_cast<unsigned>(count - 1);
    __threadfence();
  }
  __syncthreads();
  return is_last;
}

// Bytes of shared memory that finish_partials needs.
template <class reduced_t, int kThreads>
constexpr int kFinishBytes = kThreads * reduced_t::kValues * sizeof(float);

// Called by all threads of every block when the partials of `tile` and columns [c0, c0 + kColumns) are put;
// finish(c, total) is called once for every column. `shared`: kFinishBytes that are free to be overwritten.
template <int kThreads, int kColumns, class reduced_t, class function_t>
__device__ __forceinline__ void finish_partials(const Partials<reduced_t>& p, int tile, int column_block, float* shared,
                                                function_t finish) {
  constexpr int kParts = kThreads / kColumns;  // threads beyond the last whole part only wait
  const int column = threadIdx.x % kColumns, part = threadIdx.x / kColumns, c = column_block * kColumns + column;
  const auto merge_range = [&](const float* rows, int first, int end) {
    reduced_t total;
    if (c < p.C && part < kParts) {
      constexpr int kAtOnce = 8;  // are asked for before the first is waited for
#pragma unroll 1
      for (int row = first + part; row < end; row += kAtOnce * kParts) {
        reduced_t next[kAtOnce];
#pragma unroll
        for (int i = 0; i < kAtOnce; i++)
          if (row + i * kParts < end) next[i] = p.get_at(rows, row + i * kParts, c);
#pragma unroll
        for (int i = 0; i < kAtOnce; i++) total.merge(next[i]);
      }
    }
#pragma unroll
    for (int i = 0; i < reduced_t::kValues; i++) shared[i * kThreads + threadIdx.x] = total.value[i];
    __syncthreads();
    if (part == 0)
#pragma unroll 1
      for (int other = 1; other < kParts; other++) {
        reduced_t next;
#pragma unroll
        for (int i = 0; i < reduced_t::kValues; i++) next.value[i] = shared[i * kThreads + other * kColumns + column];
        total.merge(next);
      }
    return total;  // of part 0
  };

  unsigned* const counters = p.counters + static_cast<int64_t>(column_block) * (p.group_count + 1);
  const int group = tile / p.group_size, first = group * p.group_size, end = min(first + p.group_size, p.tile_count);
  if (!last_to_arrive(counters + group, end - first)) return;
  reduced_t total = merge_range(p.tiles, first, end);
  if (p.group_count > 1) {
    if (part == 0 && c < p.C) p.put_at(p.groups, group, c, total);
    if (!last_to_arrive(counters + p.group_count, p.group_count)) return;
    total = merge_range(p.groups, 0, p.group_count);
  }
  if (part == 0 && c < p.C) finish(c, total);
}

}  // namespace densenet_fast::cuda
