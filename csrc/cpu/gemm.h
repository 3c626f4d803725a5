// Products of small matrices in cache: a micro-kernel that holds a tile of kRows x kPanel results in registers.
//
// The second operand comes in panels of kPanel columns. What is done with a finished tile is the caller's choice, an
// epilogue: its begin<MR>(row, acc) and end<MR>(row, acc) are inlined around the loop over the depth, or follow one of
// which AMX's registers have held the results of more rows and columns (tiles.h).
#pragma once

#if defined(DENSENET_FAST_TILES)
#include "terms.h"
#else
#include "load.h"
#endif

namespace densenet_fast::cpu::DENSENET_FAST_KERNELS {

// What the 1x1 convolutions' products multiply, y = A @ W^T and dA = dy @ W: floats, or bfloat16 where an instruction
// multiplies pairs of them and adds both products up in fp32, or on tiles floats as three bfloat16. The portable
// kernels do that too if they are told to, so that it can be tested anywhere.
#if defined(DENSENET_FAST_TERMS)
using factor = Terms;
inline constexpr int kPair = 2;
#elif defined(DENSENET_FAST_PAIRS)
using factor = bfloat16;
inline constexpr int kPair = 2;
#else
using factor = float;
inline constexpr int kPair = 1;
#endif

// Of the 1x1 convolutions' products: their depth is made a multiple of kDepthUnit, with zeros in both operands; kHeight
// rows and kBreadth columns are made at once, and the rows in memory are a multiple of kHeight.
#if defined(DENSENET_FAST_TILES)
inline constexpr int kDepthUnit = kTileDepth, kHeight = 2 * kTileRows, kBreadth = 2 * kPanel;
#else
inline constexpr int kDepthUnit = kPair, kHeight = kRows, kBreadth = kPanel;
class TilesInUse {  // none
 public:
  TilesInUse() {}
};
#endif
inline int64_t whole_depth(int64_t depth) { return round_up(depth, kDepthUnit); }

// MR rows of a tile of results, in registers.
template <int MR>
struct Accumulators {
  vec r[MR][kVecs];
};

// A number, of rows mostly, known when compiling.
template <int N>
struct Height {
  static constexpr int value = N;
};

// Prefetches rectangles into L2 a few cache lines at a time while the multiplications run, which hide the latency. All
// at once they would wait for the miss buffers.
class Prefetcher {
 public:
  static constexpr int64_t kInterval = 16;  // steps along the depth between two calls of step()

  // How often a product [rows, columns] of `depth` calls step(): of floats, and one of factors.
  static int64_t steps(int64_t rows, int64_t columns, int64_t depth) {
    return ceil_div(rows, kRows) * ceil_div(columns, kPanel) * ceil_div(depth, kInterval);
  }
  static int64_t steps_of_factors(int64_t rows, int64_t columns, int64_t depth) {
    return ceil_div(rows, kHeight) * ceil_div(columns, kBreadth) * ceil_div(depth, max(kInterval, kDepthUnit));
  }
  explicit Prefetcher(int64_t steps) : steps_(steps) {}

  // Has x [rows, columns] prefetched, spread evenly over all steps.
  void add(const element* x, int64_t stride, int64_t rows, int64_t columns) {
    const uintptr_t begin = reinterpret_cast<uintptr_t>(x), bytes = columns * sizeof(element);
    const int64_t per_step = ceil_div(rows * static_cast<int64_t>(bytes / kLine + 1), max(steps_, 1));
    rectangles_[count_++] = {begin, begin, bytes, stride * sizeof(element), rows, per_step};
  }
  DENSENET_FAST_INLINE void step() {
    for (int i = 0; i < count_; i++) {
      Rectangle& r = rectangles_[i];
      for (int64_t n = r.per_step; n > 0 && r.rows > 0; n--) {
        __builtin_prefetch(reinterpret_cast<const void*>(r.at), 0, 2);
        r.at = (r.at | (kLine - 1)) + 1;
        if (r.at >= r.row + r.bytes) r.rows--, r.at = r.row += r.stride;
      }
    }
  }

 private:
  static constexpr uintptr_t kLine = 64;
  struct Rectangle {
    uintptr_t at, row, bytes, stride;
    int64_t rows, per_step;
  };
  Rectangle rectangles_[4];
  int count_ = 0;
  int64_t steps_;
};

// acc += A @ P: A(i, k) = a[i * a_row + k * a_depth], row k of P at p + k * p_depth.
template <int MR>
DENSENET_FAST_INLINE void multiply(Accumulators<MR>& acc, const float* a, int64_t a_row, int64_t a_depth,
                                   const float* p, int64_t p_depth, int64_t depth, Prefetcher* prefetcher = nullptr) {
  for (int64_t k = 0; k < depth;) {
    if (prefetcher) prefetcher->step();
    const int64_t end = min(depth, k + Prefetcher::kInterval);
    for (; k < end; k++, a += a_depth, p += p_depth) {
      vec b[kVecs];
      for (int j = 0; j < kVecs; j++) b[j] = load(p + j * kWidth);
      for (int i = 0; i < MR; i++) {
        const vec s = splat(a[i * a_row]);
        for (int j = 0; j < kVecs; j++) acc.r[i][j] += s * b[j];
      }
    }
  }
}

#if defined(DENSENET_FAST_PAIRS)
// sum + a0 * b0 + a1 * b1 in each lane of pairs.
DENSENET_FAST_INLINE vec add_products(vec sum, uvec a, uvec b) {
#if defined(__AVX512BF16__)
  return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
#else
  sum += reinterpret_cast<vec>(a << 16) * reinterpret_cast<vec>(b << 16);
  return sum + reinterpret_cast<vec>(a & 0xffff0000) * reinterpret_cast<vec>(b & 0xffff0000);
#endif
}

// The same of bfloat16, a depth of whole pairs: those of A side by side, of P in rows k and k + 1 interleaved.
template <int MR>
DENSENET_FAST_INLINE void multiply(Accumulators<MR>& acc, const bfloat16* a, int64_t a_row, int64_t a_depth,
                                   const bfloat16* p, int64_t p_depth, int64_t depth,
                                   Prefetcher* prefetcher = nullptr) {
  for (int64_t k = 0; k < depth;) {
    if (prefetcher) prefetcher->step();
    const int64_t end = min(depth, k + Prefetcher::kInterval);
    for (; k < end; k += kPair, a += kPair * a_depth, p += kPair * p_depth) {
      uvec b[kVecs];
      for (int j = 0; j < kVecs; j++) b[j] = load_pairs(p + j * kPair * kWidth);
      for (int i = 0; i < MR; i++) {
        uint32_t pair;
        memcpy(&pair, a + i * a_row, sizeof pair);
        for (int j = 0; j < kVecs; j++) acc.r[i][j] = add_products(acc.r[i][j], pair + uvec{}, b[j]);
      }
    }
  }
}
#endif

template <int MR, class F>
DENSENET_FAST_INLINE void with_height(int64_t rows, const F& f) {
  if constexpr (MR == 1) {
    f(Height<1>{});
  } else {
    if (rows == MR) return f(Height<MR>{});
    with_height<MR - 1>(rows, f);
  }
}

// f(Height<MR>, first_row) over strips of nearly equal height, none above kRows.
template <class F>
DENSENET_FAST_INLINE void for_strips(int64_t rows, const F& f) {
  const int64_t strips = ceil_div(rows, kRows);
  int64_t r = 0;
  for (int64_t left = strips; left > 0; left--) {
    const int64_t height = ceil_div(rows - r, left);
    with_height<kRows>(height, [&](auto mr) { f(mr, r); });
    r += height;
  }
}

// Writes a tile to the panel of c whose first `columns` columns exist, or adds it. A sum over the depth starts from
// zero even where it is added to c: one long sum in one accumulator would round more.
struct StoreEpilogue {
  float* c;
  int64_t stride, columns;
  bool add;

  template <int MR>
  DENSENET_FAST_INLINE void begin(int64_t, Accumulators<MR>& acc) const {
    for (int i = 0; i < MR; i++)
      for (int j = 0; j < kVecs; j++) acc.r[i][j] = vec{};
  }
  template <int MR>
  DENSENET_FAST_INLINE void end(int64_t row, Accumulators<MR>& acc) const {
    if (add) each(row, acc, [&](float* p, vec& v, auto lanes) { store(p, load(p, lanes) + v, lanes); });
    else each(row, acc, [&](float* p, vec& v, auto lanes) { store(p, v, lanes); });
  }

 private:
  template <int MR, class F>
  DENSENET_FAST_INLINE void each(int64_t row, Accumulators<MR>& acc, const F& f) const {
    if (columns >= kPanel) {
      for (int i = 0; i < MR; i++)
        for (int j = 0; j < kVecs; j++) f(c + (row + i) * stride + j * kWidth, acc.r[i][j], AllLanes{});
    } else {
      for (int i = 0; i < MR; i++)
        for (int j = 0; j < kVecs; j++) {
          const int64_t n = max(0, min(kWidth, columns - j * kWidth));
          f(c + (row + i) * stride + j * kWidth, acc.r[i][j], FirstLanes{static_cast<int>(n)});
        }
    }
  }
};

// A @ P, P in panels at a stride of `panel`; epilogue_of(n) is that of the panel of column n.
template <class number_t, class EpilogueOf>
DENSENET_FAST_INLINE void multiply_panels(const number_t* a, int64_t a_row, int64_t a_depth, const number_t* p,
                                          int64_t p_depth, int64_t panel, int64_t rows, int64_t columns, int64_t depth,
                                          Prefetcher* prefetcher, const EpilogueOf& epilogue_of) {
  for (int64_t n = 0; n < columns; n += kPanel, p += panel) {
    const auto epilogue = epilogue_of(n);
    for_strips(rows, [&](auto mr, int64_t r) {
      constexpr int MR = decltype(mr)::value;
      Accumulators<MR> acc;
      epilogue.template begin<MR>(r, acc);
      multiply<MR>(acc, a + r * a_row, a_row, a_depth, p, p_depth, depth, prefetcher);
      epilogue.template end<MR>(r, acc);
    });
  }
}

#if defined(DENSENET_FAST_TILES)
// Tiles 0 to 3 hold R x N tiles of sums, [row][column]; 4 and 5 are of A, 6 and 7 of P.
template <int R, int N, class F>
DENSENET_FAST_INLINE void each_sum(const F& f) {
  f(Height<0>{}, 0, 0);
  if constexpr (N > 1) f(Height<1>{}, 0, 1);
  if constexpr (R > 1) f(Height<2>{}, 1, 0);
  if constexpr (R > 1 && N > 1) f(Height<3>{}, 1, 1);
}

// Which of their products: a float is a sum of terms, of which those of the first make large sums.
enum class Of { all_terms, small_terms, first_terms };

// Adds A [R * kTileRows, depth] times N panels to the sums: per kTileDepth R + N loads for R * N products.
template <int R, int N, Of of>
DENSENET_FAST_INLINE void add_tiles(const bfloat16* a, int64_t a_row, const bfloat16* p, int64_t panel, int64_t depth,
                                    Prefetcher* prefetcher) {
  constexpr int64_t kPairs = kPair * kPanel * sizeof(bfloat16);
  const int64_t a_bytes = a_row * sizeof(bfloat16);
  if constexpr (of == Of::small_terms) return;
  for (int64_t k = 0; k < depth; k += kTileDepth, a += kTileDepth, p += kTileDepth * kPanel) {
    if (prefetcher) prefetcher->step();
    tile_load<4>(a, a_bytes);
    tile_load<6>(p, kPairs);
    tile_multiply<0, 4, 6>();
    if constexpr (N > 1) tile_load<7>(p + panel, kPairs);
    if constexpr (N > 1) tile_multiply<1, 4, 7>();
    if constexpr (R > 1) tile_load<5>(a + kTileRows * a_row, a_bytes);
    if constexpr (R > 1) tile_multiply<2, 5, 6>();
    if constexpr (R > 1 && N > 1) tile_multiply<3, 5, 7>();
  }
}

// The same of floats: six products of terms, in an order in which most operands stay where they are. Where the small
// ones are added up first, no sum is large enough to round much.
template <int R, int N, Of of>
DENSENET_FAST_INLINE void add_tiles(const Terms* a, int64_t a_row, const Terms* p, int64_t panel, int64_t depth,
                                    Prefetcher* prefetcher) {
  constexpr int64_t kPairs = kPair * kPanel * sizeof(bfloat16);
  const int64_t a_bytes = a_row * sizeof(Terms);
  const bfloat16* of_a = a->term;
  const auto take_a = [&](int term) __attribute__((always_inline)) {
    tile_load<4>(of_a + term * a_row, a_bytes);
    if constexpr (R > 1) tile_load<5>(of_a + (kTileRows * kTerms + term) * a_row, a_bytes);
  };
  const auto take_p = [&](int term) __attribute__((always_inline)) {
    tile_load<6>(p->term + term * kTileDepth * kPanel, kPairs);
    if constexpr (N > 1) tile_load<7>(p[panel].term + term * kTileDepth * kPanel, kPairs);
  };
  const auto multiply_all = []() __attribute__((always_inline)) {
    tile_multiply<0, 4, 6>();
    if constexpr (N > 1) tile_multiply<1, 4, 7>();
    if constexpr (R > 1) tile_multiply<2, 5, 6>();
    if constexpr (R > 1 && N > 1) tile_multiply<3, 5, 7>();
  };
  for (int64_t k = 0; k < depth; k += kTileDepth, of_a += kTileDepth, p += kTileDepth * kPanel) {
    if (prefetcher) prefetcher->step();
    if constexpr (of != Of::first_terms) {
      take_p(0), take_a(2), multiply_all();
      take_a(1), multiply_all();
      take_p(1), multiply_all();
      take_a(0), multiply_all();
      take_p(2), multiply_all();
    }
    if constexpr (of == Of::first_terms) take_a(0);
    if constexpr (of != Of::small_terms) take_p(0), multiply_all();
  }
}

#if defined(DENSENET_FAST_TERMS)
template <int MR>
DENSENET_FAST_INLINE bool all_finite(const Accumulators<MR>& acc) {
  vec probe = {};  // NaN in a lane where one is not
  for (int i = 0; i < MR; i++)
    for (int j = 0; j < kVecs; j++) probe += acc.r[i][j] * 0.f;
  return all_zero(probe);
}
#endif

// [rows, columns] block by block: add(Height<R>, Height<N>, row, column) adds to the sums of R tiles of rows and N of
// columns, which then go through cache, where the epilogues find them strip by strip. add_floats(row, column, count,
// sums) adds to `count` rows of a panel, in floats.
template <class Add, class AddFloats, class EpilogueOf>
DENSENET_FAST_INLINE void multiply_blocks(int64_t rows, int64_t columns, const Add& add, const AddFloats& add_floats,
                                          const EpilogueOf& epilogue_of) {
  for (int64_t n = 0; n < columns; n += kBreadth)
    for (int64_t row = 0; row < rows; row += kHeight) {
      alignas(64) float sums[2][kHeight][kPanel];
      const auto block = [&](auto high, auto broad) __attribute__((always_inline)) {
        constexpr int R = decltype(high)::value, N = decltype(broad)::value;
        each_sum<R, N>([](auto sum, int, int) { tile_zero<decltype(sum)::value>(); });
        add(high, broad, row, n);
        each_sum<R, N>([&](auto sum, int i, int j) {
          tile_store<decltype(sum)::value>(sums[j][i * kTileRows], sizeof sums[0][0]);
        });
      };
      const bool two_high = rows - row > kTileRows, two_broad = columns - n > kPanel;
      if (two_high && two_broad) block(Height<2>{}, Height<2>{});
      else if (two_high) block(Height<2>{}, Height<1>{});
      else if (two_broad) block(Height<1>{}, Height<2>{});
      else block(Height<1>{}, Height<1>{});
      for (int j = 0; j <= two_broad; j++) {
        const auto epilogue = epilogue_of(n + j * kPanel);
        for_strips(min(kHeight, rows - row), [&](auto mr, int64_t r) {
          constexpr int MR = decltype(mr)::value;
          Accumulators<MR> acc;
          epilogue.template begin<MR>(row + r, acc);
          memcpy(&acc, sums[j][r], sizeof acc);
#if defined(DENSENET_FAST_TERMS)
          if (!all_finite(acc)) {  // Inf less its first term is NaN, and the terms of the other factor differ in sign
            acc = {};
            add_floats(row + r, n + j * kPanel, MR, acc.r[0]);
          }
#endif
          epilogue.template end<MR>(row + r, acc);
        });
      }
    }
}

// Adds A [count, depth] times a panel to sums [count][kPanel], both taken as floats.
template <class number_t>
__attribute__((noinline)) void add_floats(const number_t* a, int64_t a_row, const number_t* panel, int64_t depth,
                                          int count, vec* sums) {
  for (int64_t k = 0; k < depth; k++)
    for (int j = 0; j < kVecs; j++) {
      const vec row = taken_from_panel(panel, k, j * kWidth);
      for (int i = 0; i < count; i++) sums[i * kVecs + j] += taken(a + i * a_row, a_row, k) * row;
    }
}

// multiply_panels while tiles are in use: A's depth side by side, whole units of it, its rows readable up to a multiple
// of kTileRows; P as for pairs.
template <class EpilogueOf>
DENSENET_FAST_INLINE void multiply_panels(const factor* a, int64_t a_row, int64_t, const factor* p, int64_t,
                                          int64_t panel, int64_t rows, int64_t columns, int64_t depth,
                                          Prefetcher* prefetcher, const EpilogueOf& epilogue_of) {
  multiply_blocks(
      rows, columns,
      [&](auto high, auto broad, int64_t row, int64_t n) __attribute__((always_inline)) {
        add_tiles<decltype(high)::value, decltype(broad)::value, Of::all_terms>(
            a + row * a_row, a_row, p + n / kPanel * panel, panel, depth, prefetcher);
      },
      [&](int64_t row, int64_t n, int count, auto* sums) {
        add_floats(a + row * a_row, a_row, p + n / kPanel * panel, depth, count, sums);
      },
      epilogue_of);
}
#endif

// C [rows, columns] = or += A [rows, depth] @ P, P in panels [columns / kPanel][depth][kPanel] at a stride of `panel`.
template <class number_t>
DENSENET_FAST_INLINE void gemm_nn(const number_t* a, int64_t a_stride, const number_t* p, int64_t panel, float* c,
                                  int64_t c_stride, int64_t rows, int64_t columns, int64_t depth, bool add,
                                  Prefetcher* prefetcher = nullptr) {
  multiply_panels(a, a_stride, 1, p, kPanel, panel, rows, columns, depth, prefetcher,
                  [&](int64_t n) { return StoreEpilogue{c + n, c_stride, columns - n, add}; });
}

// C [rows, columns] = or += A [depth, rows]^T @ E [depth, columns]; panel j of E at e + j * panel with row stride
// e_stride. Of bfloat16 rows k and k + 1 of both are interleaved.
template <class number_t>
DENSENET_FAST_INLINE void gemm_tn(const number_t* a, int64_t a_stride, const number_t* e, int64_t e_stride,
                                  int64_t panel, float* c, int64_t c_stride, int64_t rows, int64_t columns,
                                  int64_t depth, bool add, Prefetcher* prefetcher = nullptr) {
  constexpr int64_t kStep = sizeof(float) / sizeof(number_t);
  multiply_panels(a, kStep, a_stride, e, e_stride, panel, rows, columns, depth, prefetcher,
                  [&](int64_t n) { return StoreEpilogue{c + n, c_stride, kPanel, add}; });
}

#if defined(DENSENET_FAST_TILES)
// The same of factors for tiles, A^T [rows, depth] given.
DENSENET_FAST_INLINE void gemm_tn(const factor* a, int64_t a_stride, const factor* e, int64_t, int64_t panel, float* c,
                                  int64_t c_stride, int64_t rows, int64_t columns, int64_t depth, bool add,
                                  Prefetcher* prefetcher = nullptr) {
  gemm_nn(a, a_stride, e, panel, c, c_stride, rows, columns, depth, add, prefetcher);
}
#endif

// Packs w [depth, columns], times `scale`, as one panel [depth][kPanel] of P, zero past `columns`.
inline void pack_panel(const element* w, int64_t stride, int64_t columns, int64_t depth, float scale, float* p) {
  for (int64_t k = 0; k < depth; k++, w += stride, p += kPanel)
    for (int j = 0; j < kPanel; j += kWidth) {
      const int64_t n = columns - j;
      const vec v = n >= kWidth ? load(w + j) : n > 0 ? load(w + j, FirstLanes{static_cast<int>(n)}) : vec{};
      store(p + j, v * scale);
    }
}

// The same of the transposed matrix, w [columns, depth].
inline void pack_panel_transposed(const element* w, int64_t stride, int64_t columns, int64_t depth, float* p) {
  for (int j = 0; j < kPanel; j += kWidth)
    for (int64_t k = 0; k < depth; k += kWidth) {
      const int64_t count = min(kWidth, depth - k);
      vec rows[kWidth];
      load_columns(w + j * stride + k, stride, columns - j, count, rows);
      for (int64_t i = 0; i < count; i++) store(p + (k + i) * kPanel + j, rows[i]);
    }
}

#if defined(DENSENET_FAST_PAIRS)
// Pairs of two rows' values.
DENSENET_FAST_INLINE uvec pairs_of(vec first, vec second) {
  return __builtin_convertvector(rounded(first, bfloat16{}), uvec) |
         __builtin_convertvector(rounded(second, bfloat16{}), uvec) << 16;
}
// Rows k and k + 1, k even, of columns [j, j + kWidth) of a panel of pairs.
DENSENET_FAST_INLINE void put_pairs(bfloat16* panel, int64_t k, int64_t j, vec first, vec second) {
  store_pairs(panel + k * kPanel + kPair * j, pairs_of(first, second));
}

// Both for products of pairs: zero also in the rows that the depth lacks of whole units.
inline void pack_panel(const element* w, int64_t stride, int64_t columns, int64_t depth, float scale, factor* p) {
  for (int64_t k = 0; k < whole_depth(depth); k += kPair, w += kPair * stride)
    for (int j = 0; j < kPanel; j += kWidth) {
      const FirstLanes lanes{static_cast<int>(max(0, min(kWidth, columns - j)))};
      const vec first = k < depth ? load(w + j, lanes) : vec{};
      const vec second = k + 1 < depth ? load(w + stride + j, lanes) : vec{};
      put_pairs(p, k, j, first * scale, second * scale);
    }
}

#if defined(DENSENET_FAST_TERMS)
inline void pack_panel_transposed(const float* w, int64_t stride, int64_t columns, int64_t depth, Terms* p) {
  for (int j = 0; j < kPanel; j += kWidth)
    for (int64_t k = 0; k < whole_depth(depth); k += kWidth) {
      const int64_t count = max(0, min(kWidth, depth - k));
      vec rows[kWidth];
      load_columns(w + j * stride + k, stride, columns - j, count, rows);
      for (int64_t i = count; i < kWidth; i++) rows[i] = vec{};
      for (int i = 0; i < kWidth; i += kPair) put_pairs(p, k + i, j, rows[i], rows[i + 1]);
    }
}
#else
inline void pack_panel_transposed(const bfloat16* w, int64_t stride, int64_t columns, int64_t depth, bfloat16* p) {
  for (int j = 0; j < kPanel; j += kWidth)
    for (int64_t k = 0; k < whole_depth(depth); k += kPair * kWidth) {
      const int64_t count = max(0, min(kPair * kWidth, depth - k));
      vec rows[kWidth];  // of pairs
      for (int i = 0; i < kWidth; i++) {
        uvec row = {};
        if (j + i < columns) memcpy(&row, w + (j + i) * stride + k, count * sizeof(bfloat16));
        rows[i] = reinterpret_cast<vec>(row);
      }
      transpose(rows);
      for (int64_t i = 0; i < kWidth && k + kPair * i < whole_depth(depth); i++)
        store_pairs(p + (k + kPair * i) * kPanel + kPair * j, reinterpret_cast<uvec>(rows[i]));
    }
}
#endif
#endif

}  // namespace densenet_fast::cpu::DENSENET_FAST_KERNELS
