// Floats as sums of bfloat16, for tiles, whose products are of bfloat16 alone but sixteen times as many in the same
// time: x = x0 + x1 + x2, each of which takes 8 of its 24 bits. x * y is then x0*y0 + x0*y1 + x1*y0 + x0*y2 + x1*y1 +
// x2*y0 but for some 2^-25 of it, less than a float's rounding.
#pragma once

#include "tiles.h"

namespace densenet_fast::cpu::DENSENET_FAST_KERNELS {

inline constexpr int kTerms = 3;

// A float's place in memory, where its terms do not lie together: a row of factors has the first terms of all, then the
// second, then the third ones; a panel of pairs has those of one tile, kTileDepth rows, after those of the other.
struct Terms {
  bfloat16 term[kTerms];
};

// Their bits are the upper ones of terms[]. The first is cut off and the second rounded, so that what is left has no
// sign of its own and errors go in no direction. Inf has NaN behind it.
DENSENET_FAST_INLINE void split(vec v, uvec terms[kTerms]) {
  const auto cut = [](uvec bits) { return bits & 0xffff0000; };
  terms[0] = cut(reinterpret_cast<uvec>(v));
  const vec rest = v - reinterpret_cast<vec>(terms[0]);
  const uvec bits = reinterpret_cast<uvec>(rest);
  terms[1] = cut(bits + 0x7fff + ((bits >> 16) & 1));
  terms[2] = reinterpret_cast<uvec>(rest - reinterpret_cast<vec>(terms[1]));
}

// Columns [c, c + kWidth) of a row of `stride` factors.
DENSENET_FAST_INLINE void put(Terms* row, int64_t stride, int64_t c, vec v) {
  uvec terms[kTerms];
  split(v, terms);
  for (int t = 0; t < kTerms; t++) store_bits(row->term + t * stride + c, upper_halves(terms[t]), AllLanes{});
}

// Rows k and k + 1, k even, of columns [j, j + kWidth) of a panel of pairs.
DENSENET_FAST_INLINE int64_t pair_at(int64_t k, int64_t j) {
  return k / kTileDepth * kTileDepth * kPanel * kTerms + k % kTileDepth * kPanel + 2 * j;
}
DENSENET_FAST_INLINE void put_pairs(Terms* panel, int64_t k, int64_t j, vec first, vec second) {
  uvec lower[kTerms], upper[kTerms];
  split(first, lower);
  split(second, upper);
  bfloat16* p = panel->term + pair_at(k, j);
  for (int t = 0; t < kTerms; t++, p += kTileDepth * kPanel) store_pairs(p, lower[t] >> 16 | (upper[t] & 0xffff0000));
}

// The floats again: the sum of terms, but of Inf only the first.
DENSENET_FAST_INLINE vec sum_of(const uvec terms[kTerms]) {
  const auto term = [&](int t) { return reinterpret_cast<vec>(terms[t]); };
  return term(0) - term(0) == 0 ? term(0) + (term(1) + term(2)) : term(0);
}
// Column k of a row of `stride` factors, in all lanes.
DENSENET_FAST_INLINE vec taken(const Terms* row, int64_t stride, int64_t k) {
  uvec terms[kTerms];
  for (int t = 0; t < kTerms; t++) terms[t] = (static_cast<uint32_t>(row->term[t * stride + k].bits) << 16) + uvec{};
  return sum_of(terms);
}
// Columns [j, j + kWidth) of row k of a panel.
DENSENET_FAST_INLINE vec taken_from_panel(const Terms* panel, int64_t k, int64_t j) {
  const bfloat16* p = panel->term + pair_at(k / 2 * 2, j);
  uvec terms[kTerms];
  for (int t = 0; t < kTerms; t++, p += kTileDepth * kPanel)
    terms[t] = k % 2 ? load_pairs(p) & 0xffff0000 : load_pairs(p) << 16;
  return sum_of(terms);
}

}  // namespace densenet_fast::cpu::DENSENET_FAST_KERNELS
