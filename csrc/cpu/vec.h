// Vectors of floats in GCC vector extensions, one width per instruction set, with loads and stores of some lanes.
//
// Every translation unit under csrc/cpu that includes this file is compiled several times (element.h). Nothing here may
// come from a standard template: the linker would keep one copy of it, perhaps the one with the widest instructions.
// Addresses need no alignment.
#pragma once

#include <cstdint>
#include <cstring>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "element.h"

#define DENSENET_FAST_INLINE inline __attribute__((always_inline))

namespace densenet_fast::cpu::DENSENET_FAST_KERNELS {

#if defined(__AVX512F__)
inline constexpr int kWidth = 16;  // floats per vector
inline constexpr int kRows = 12;   // rows of the micro-kernel's tile: 12 of 32 registers hold it
#elif defined(__AVX2__)
inline constexpr int kWidth = 8;
inline constexpr int kRows = 6;
#else
inline constexpr int kWidth = 4;
inline constexpr int kRows = 3;
#endif
inline constexpr int kPanel = 16;              // columns of the micro-kernel's tile; channels are padded to it
inline constexpr int kVecs = kPanel / kWidth;  // vectors per row of the tile

typedef float vec __attribute__((vector_size(kWidth * 4)));
typedef int32_t ivec __attribute__((vector_size(kWidth * 4)));
static_assert(alignof(vec) == sizeof(vec), "behind a reference clang takes it for aligned whatever its type says");
// Of memory, where nothing else points at it.
typedef float vec_in_memory __attribute__((vector_size(kWidth * 4), aligned(4), may_alias));

// One step of a transposition: swaps the off-diagonal blocks, step x step, of rows i and i + step.
template <int step>
DENSENET_FAST_INLINE void exchange(vec& upper, vec& lower) {
  const vec a = upper, b = lower;
#if defined(__clang__)
  for (int i = 0; i < kWidth; i++) {
    upper[i] = i & step ? b[i - step] : a[i];
    lower[i] = i & step ? b[i] : a[i + step];
  }
#else
  ivec from_upper, from_lower;  // lanes of a and, behind them, of b
  for (int i = 0; i < kWidth; i++) {
    from_upper[i] = i & step ? kWidth + i - step : i;
    from_lower[i] = i & step ? kWidth + i : i + step;
  }
  upper = __builtin_shuffle(a, b, from_upper);
  lower = __builtin_shuffle(a, b, from_lower);
#endif
}

template <int step = 1>
DENSENET_FAST_INLINE void transpose(vec rows[kWidth]) {
  for (int i = 0; i < kWidth; i++)
    if (!(i & step)) exchange<step>(rows[i], rows[i + step]);
  if constexpr (2 * step < kWidth) transpose<2 * step>(rows);
}

// Which lanes of a vector are in memory: all, or the first n.
struct AllLanes {};
struct FirstLanes {
  int n;
};

DENSENET_FAST_INLINE vec splat(float s) { return s - vec{}; }
DENSENET_FAST_INLINE ivec splat(int32_t s) { return s - ivec{}; }
DENSENET_FAST_INLINE vec load(const float* p) { return *reinterpret_cast<const vec_in_memory*>(p); }
DENSENET_FAST_INLINE void store(float* p, vec v) { *reinterpret_cast<vec_in_memory*>(p) = v; }
DENSENET_FAST_INLINE vec load(const float* p, AllLanes) { return load(p); }
DENSENET_FAST_INLINE void store(float* p, vec v, AllLanes) { store(p, v); }

#if defined(__AVX512F__)
DENSENET_FAST_INLINE __mmask16 mask_of(FirstLanes t) { return static_cast<__mmask16>((1u << t.n) - 1); }
DENSENET_FAST_INLINE vec load(const float* p, FirstLanes t) { return _mm512_maskz_loadu_ps(mask_of(t), p); }
DENSENET_FAST_INLINE void store(float* p, vec v, FirstLanes t) { _mm512_mask_storeu_ps(p, mask_of(t), v); }
#elif defined(__AVX2__)
DENSENET_FAST_INLINE __m256i mask_of(FirstLanes t) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(t.n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
DENSENET_FAST_INLINE vec load(const float* p, FirstLanes t) { return _mm256_maskload_ps(p, mask_of(t)); }
DENSENET_FAST_INLINE void store(float* p, vec v, FirstLanes t) { _mm256_maskstore_ps(p, mask_of(t), v); }
#else
DENSENET_FAST_INLINE vec load(const float* p, FirstLanes t) {
  vec v = {};
  for (int i = 0; i < t.n; i++) v[i] = p[i];
  return v;
}
DENSENET_FAST_INLINE void store(float* p, vec v, FirstLanes t) {
  for (int i = 0; i < t.n; i++) p[i] = v[i];
}
#endif

// max(x, 0) that keeps NaN: the maximum instruction returns its second operand when either is NaN.
DENSENET_FAST_INLINE vec relu(vec x) {
#if defined(__AVX512F__)
  return _mm512_maskz_max_ps(0xffff, _mm512_setzero_ps(), x);
#elif defined(__AVX2__)
  return _mm256_max_ps(_mm256_setzero_ps(), x);
#else
  return x < 0 ? vec{} : x;
#endif
}

DENSENET_FAST_INLINE bool all_zero(vec x) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_NEQ_UQ) == 0;
#else
  bool zero = true;
  for (int i = 0; i < kWidth; i++) zero &= x[i] == 0;
  return zero;
#endif
}

// The gradient at x of a ReLU from that at its output: dy where x > 0 or NaN, as in PyTorch, else 0.
DENSENET_FAST_INLINE vec relu_backward(vec dy, vec x) {
#if defined(__AVX512F__)
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_NLE_UQ), dy);
#elif defined(__AVX2__)
  return _mm256_and_ps(dy, _mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_NLE_UQ));
#else
  return x <= 0 ? vec{} : dy;
#endif
}

DENSENET_FAST_INLINE int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
DENSENET_FAST_INLINE int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }
DENSENET_FAST_INLINE int64_t ceil_div(int64_t n, int64_t d) { return (n + d - 1) / d; }
DENSENET_FAST_INLINE int64_t round_up(int64_t n, int64_t d) { return ceil_div(n, d) * d; }
DENSENET_FAST_INLINE int64_t padded(int64_t channels) { return round_up(channels, kPanel); }

// f(c, lanes) for each vector of the channels [0, C); only the last one can have FirstLanes.
template <class F>
DENSENET_FAST_INLINE void for_channels(int64_t C, const F& f) {
  int64_t c = 0;
  for (; c + kWidth <= C; c += kWidth) f(c, AllLanes{});
  if (c < C) f(c, FirstLanes{static_cast<int>(C - c)});
}

}  // namespace densenet_fast::cpu::DENSENET_FAST_KERNELS
