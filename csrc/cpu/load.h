// Loads and stores of the types that activations have: floats as they are (vec.h), 16-bit types widened to vectors of
// floats and rounded, to the nearest and of two as near the even one.
#pragma once

#include "vec.h"

namespace densenet_fast::cpu::DENSENET_FAST_KERNELS {

typedef uint32_t uvec __attribute__((vector_size(kWidth * 4)));
typedef uint16_t halves __attribute__((vector_size(kWidth * 2)));
static_assert(alignof(halves) == sizeof(halves) && alignof(uvec) == sizeof(uvec), "as that of vec.h");
typedef uint16_t halves_in_memory __attribute__((vector_size(kWidth * 2), aligned(2), may_alias));
typedef uint32_t pairs_in_memory __attribute__((vector_size(kWidth * 4), aligned(2), may_alias));

// The bits of a bfloat16 are a float's upper ones.
DENSENET_FAST_INLINE halves upper_halves(uvec bits) {
#if defined(__AVX512BW__) && (defined(__clang__) || __GNUC__ >= 12)
  typedef uint16_t words __attribute__((vector_size(64)));
  const words w = reinterpret_cast<words>(bits);
  return __builtin_shufflevector(w, w, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
#else
  return __builtin_convertvector(bits >> 16, halves);
#endif
}
DENSENET_FAST_INLINE vec widened(halves h, bfloat16) {
  return reinterpret_cast<vec>(__builtin_convertvector(h, uvec) << 16);
}
DENSENET_FAST_INLINE halves rounded(vec v, bfloat16) {
  const uvec bits = reinterpret_cast<uvec>(v), nearest = bits + 0x7fff + ((bits >> 16) & 1);
  return upper_halves(v == v ? nearest : bits | 0x400000);  // the carry would end NaN
}

// Those of a float16: a sign, 5 of an exponent, 10 of a fraction.
#if defined(__AVX512F__)
DENSENET_FAST_INLINE vec widened(halves h, float16) { return _mm512_cvtph_ps(reinterpret_cast<__m256i>(h)); }
DENSENET_FAST_INLINE halves rounded(vec v, float16) {
  return reinterpret_cast<halves>(_mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(__AVX2__)
DENSENET_FAST_INLINE vec widened(halves h, float16) { return _mm256_cvtph_ps(reinterpret_cast<__m128i>(h)); }
DENSENET_FAST_INLINE halves rounded(vec v, float16) {
  return reinterpret_cast<halves>(_mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
#else
DENSENET_FAST_INLINE vec widened(halves h, float16) {
  constexpr uint32_t kBias = 127 - 15;  // between the exponents
  const uvec bits = __builtin_convertvector(h, uvec), magnitude = (bits & 0x7fff) << 13;
  const uvec normal = magnitude + (kBias << 23), special = normal + (kBias << 23);  // Inf and NaN
  // A subnormal is its fraction with the least exponent, less the 1 that such a float has before the point.
  const vec one = reinterpret_cast<vec>(((kBias + 1) << 23) + uvec{});
  const vec subnormal = reinterpret_cast<vec>(normal + (1 << 23)) - one;
  uvec found = magnitude < 1 << 23 ? reinterpret_cast<uvec>(subnormal) : normal;
  found = magnitude >= 31 << 23 ? special : found;
  return reinterpret_cast<vec>(found | ((bits & 0x8000) << 16));
}
DENSENET_FAST_INLINE halves rounded(vec v, float16) {
  constexpr uint32_t kBias = 127 - 15;
  const uvec bits = reinterpret_cast<uvec>(v), sign = bits & 0x80000000, magnitude = bits ^ sign;
  const uvec normal = (magnitude - (kBias << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  // A sum with 2^-1 leaves a subnormal's fraction, rounded, in the lowest bits.
  const uvec half = (126 << 23) + uvec{};
  const vec shifted = reinterpret_cast<vec>(magnitude) + reinterpret_cast<vec>(half);
  uvec found = magnitude < (kBias + 1) << 23 ? reinterpret_cast<uvec>(shifted) - half : normal;
  found = magnitude >= (127 + 16) << 23 ? 0x7c00 + uvec{} : found;
  found = v == v ? found : 0x7e00 + uvec{};
  return __builtin_convertvector(found | (sign >> 16), halves);
}
#endif

// The bits in memory, all or the first n.
DENSENET_FAST_INLINE halves load_bits(const void* p, AllLanes) { return *static_cast<const halves_in_memory*>(p); }
DENSENET_FAST_INLINE void store_bits(void* p, halves h, AllLanes) { *static_cast<halves_in_memory*>(p) = h; }
#if defined(__AVX512F__)
DENSENET_FAST_INLINE halves load_bits(const void* p, FirstLanes t) {
  return reinterpret_cast<halves>(_mm256_maskz_loadu_epi16(mask_of(t), p));
}
DENSENET_FAST_INLINE void store_bits(void* p, halves h, FirstLanes t) {
  _mm256_mask_storeu_epi16(p, mask_of(t), reinterpret_cast<__m256i>(h));
}
#elif defined(__AVX2__)
// Masks are of 32 bits: lanes are read and written in pairs, and the last of an odd number by itself.
DENSENET_FAST_INLINE __m128i mask_of_pairs(FirstLanes t) {
  return _mm_cmpgt_epi32(_mm_set1_epi32(t.n / 2), _mm_setr_epi32(0, 1, 2, 3));
}
DENSENET_FAST_INLINE halves load_bits(const void* p, FirstLanes t) {
  halves h = reinterpret_cast<halves>(_mm_maskload_epi32(static_cast<const int*>(p), mask_of_pairs(t)));
  if (t.n & 1) h[t.n - 1] = static_cast<const uint16_t*>(p)[t.n - 1];
  return h;
}
DENSENET_FAST_INLINE void store_bits(void* p, halves h, FirstLanes t) {
  _mm_maskstore_epi32(static_cast<int*>(p), mask_of_pairs(t), reinterpret_cast<__m128i>(h));
  if (t.n & 1) static_cast<uint16_t*>(p)[t.n - 1] = h[t.n - 1];
}
#else
DENSENET_FAST_INLINE halves load_bits(const void* p, FirstLanes t) {
  halves h = {};
  memcpy(&h, p, t.n * sizeof(uint16_t));
  return h;
}
DENSENET_FAST_INLINE void store_bits(void* p, halves h, FirstLanes t) { memcpy(p, &h, t.n * sizeof(uint16_t)); }
#endif

// And of pairs.
DENSENET_FAST_INLINE uvec load_pairs(const bfloat16* p) { return *reinterpret_cast<const pairs_in_memory*>(p); }
DENSENET_FAST_INLINE void store_pairs(bfloat16* p, uvec pairs) { *reinterpret_cast<pairs_in_memory*>(p) = pairs; }

template <class narrow, class Lanes = AllLanes>
DENSENET_FAST_INLINE vec load(const narrow* p, Lanes lanes = {}) {
  return widened(load_bits(p, lanes), narrow{});
}
template <class narrow, class Lanes = AllLanes>
DENSENET_FAST_INLINE void store(narrow* p, vec v, Lanes lanes = {}) {
  store_bits(p, rounded(v, narrow{}), lanes);
}

// Columns [c, c + kWidth) of a row of what products multiply (of `stride` Terms see terms.h).
template <class number_t>
DENSENET_FAST_INLINE void put(number_t* row, int64_t, int64_t c, vec v) {
  store(row + c, v);
}

// Columns of a matrix as vectors: out[j] has element j of each of kWidth rows, `stride` elements apart, zero for rows
// past `rows`. Only the first `columns` (at most kWidth) of each row are read; the out[j] beyond them are unspecified.
DENSENET_FAST_INLINE void load_columns(const element* p, int64_t stride, int64_t rows, int64_t columns,
                                       vec out[kWidth]) {
  const FirstLanes lanes{static_cast<int>(columns)};
  for (int i = 0; i < kWidth; i++)
    out[i] = i >= rows ? vec{} : columns == kWidth ? load(p + i * stride) : load(p + i * stride, lanes);
  transpose(out);
}

// The inverse: rows [0, rows) at p get their first `columns` elements. `in` is overwritten.
DENSENET_FAST_INLINE void store_columns(element* p, int64_t stride, int64_t rows, int64_t columns, vec in[kWidth]) {
  transpose(in);
  for (int64_t i = 0; i < rows; i++) store(p + i * stride, in[i], FirstLanes{static_cast<int>(columns)});
}

}  // namespace densenet_fast::cpu::DENSENET_FAST_KERNELS
