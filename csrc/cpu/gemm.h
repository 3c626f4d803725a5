// Products of small matrices in cache: a micro-kernel that holds a tile of kRows x kPanel results in registers.
//
// The second operand comes in panels of kPanel columns. What becomes of a finished tile is the caller's: an `Out` has
// begin<MR>(row, tile) and end<MR>(row, tile), inlined around the loop over the depth.
#pragma once

#include "vec.h"

namespace densenet_fast::cpu::DENSENET_FAST_ISA {

template <int MR>
struct Tile {
  vec r[MR][kVecs];
};

template <int N>
struct Rows {
  static constexpr int value = N;
};

// tile = or += A @ P: A(i, k) = a[i * a_row + k * a_depth], row k of P at p + k * p_depth.
template <int MR>
DENSENET_FAST_INLINE void multiply(Tile<MR>& tile, const float* a, int64_t a_row, int64_t a_depth, const float* p,
                                   int64_t p_depth, int64_t depth) {
  for (int64_t k = 0; k < depth; k++, a += a_depth, p += p_depth) {
    vec b[kVecs];
    for (int j = 0; j < kVecs; j++) b[j] = load(p + j * kWidth);
    for (int i = 0; i < MR; i++) {
      const vec s = splat(a[i * a_row]);
      for (int j = 0; j < kVecs; j++) tile.r[i][j] += s * b[j];
    }
  }
}

template <int MR, class F>
DENSENET_FAST_INLINE void with_rows(int64_t rows, const F& f) {
  if constexpr (MR == 1) {
    f(Rows<1>{});
  } else {
    if (rows == MR) return f(Rows<MR>{});
    with_rows<MR - 1>(rows, f);
  }
}

// f(Rows<MR>, first_row) over strips of nearly equal height, none above kRows.
template <class F>
DENSENET_FAST_INLINE void for_strips(int64_t rows, const F& f) {
  const int64_t strips = ceil_div(rows, kRows);
  int64_t r = 0;
  for (int64_t left = strips; left > 0; left--) {
    const int64_t height = ceil_div(rows - r, left);
    with_rows<kRows>(height, [&](auto mr) { f(mr, r); });
    r += height;
  }
}

// Fetches a rectangle into L2 a few cache lines at a time, once per micro-kernel call: its latency hides behind the
// multiplications. Fetched in one burst it would wait for the miss buffers.
class Prefetch {
 public:
  Prefetch() = default;
  // x [rows, columns], in `steps` steps.
  Prefetch(const float* x, int64_t stride, int64_t rows, int64_t columns, int64_t steps)
      : p_(reinterpret_cast<const char*>(x)), stride_(stride * 4), bytes_(columns * 4), rows_(rows) {
    per_step_ = ceil_div(rows * ceil_div(bytes_, 64), most(steps, 1));
  }
  DENSENET_FAST_INLINE void step() {
    for (int64_t i = 0; i < per_step_ && rows_ > 0; i++) {
      __builtin_prefetch(p_ + done_, 0, 2);
      done_ += 64;
      if (done_ >= bytes_) done_ = 0, rows_--, p_ += stride_;
    }
  }

 private:
  const char* p_ = nullptr;
  int64_t stride_ = 0, bytes_ = 0, rows_ = 0, done_ = 0, per_step_ = 0;
};

// Micro-kernel calls of a product with `rows` x `columns` results.
inline int64_t calls(int64_t rows, int64_t columns) { return ceil_div(rows, kRows) * ceil_div(columns, kPanel); }

// Stores or adds to c [rows, columns], of which this panel has the first `columns`. What is added is summed up on its
// own first: a long sum in one accumulator would round more.
struct StoreTile {
  float* c;
  int64_t stride, columns;
  bool add;

  template <int MR>
  DENSENET_FAST_INLINE void begin(int64_t, Tile<MR>& tile) const {
    for (int i = 0; i < MR; i++)
      for (int j = 0; j < kVecs; j++) tile.r[i][j] = vec{};
  }
  template <int MR>
  DENSENET_FAST_INLINE void end(int64_t row, Tile<MR>& tile) const {
    if (add)
      each(row, tile, [&](float* p, vec& v, auto part) { store(p, load(p, part) + v, part); });
    else
      each(row, tile, [&](float* p, vec& v, auto part) { store(p, v, part); });
  }

 private:
  template <int MR, class F>
  DENSENET_FAST_INLINE void each(int64_t row, Tile<MR>& tile, const F& f) const {
    if (columns >= kPanel) {
      for (int i = 0; i < MR; i++)
        for (int j = 0; j < kVecs; j++) f(c + (row + i) * stride + j * kWidth, tile.r[i][j], Full{});
    } else {
      for (int i = 0; i < MR; i++)
        for (int j = 0; j < kVecs; j++) {
          const int64_t n = most(0, least(kWidth, columns - j * kWidth));
          f(c + (row + i) * stride + j * kWidth, tile.r[i][j], Tail{static_cast<int>(n)});
        }
    }
  }
};

// C [rows, columns] = or += A [rows, depth] @ P, P in panels [columns / kPanel][depth][kPanel] at a stride of `panel`.
inline void gemm_nn(const float* a, int64_t a_stride, const float* p, int64_t panel, float* c, int64_t c_stride,
                    int64_t rows, int64_t columns, int64_t depth, bool add, Prefetch* ahead = nullptr) {
  for (int64_t n = 0; n < columns; n += kPanel, p += panel) {
    const StoreTile out{c + n, c_stride, columns - n, add};
    for_strips(rows, [&](auto mr, int64_t r) {
      constexpr int MR = decltype(mr)::value;
      if (ahead) ahead->step();
      Tile<MR> tile;
      out.template begin<MR>(r, tile);
      multiply<MR>(tile, a + r * a_stride, a_stride, 1, p, kPanel, depth);
      out.template end<MR>(r, tile);
    });
  }
}

// C [rows, columns] += A [depth, rows]^T @ E [depth, columns]; panel j of E at e + j * panel with row stride e_stride.
inline void gemm_tn(const float* a, int64_t a_stride, const float* e, int64_t e_stride, int64_t panel, float* c,
                    int64_t c_stride, int64_t rows, int64_t columns, int64_t depth, Prefetch* ahead = nullptr,
                    Prefetch* ahead2 = nullptr) {
  for (int64_t n = 0; n < columns; n += kPanel, e += panel) {
    const StoreTile out{c + n, c_stride, kPanel, true};
    for_strips(rows, [&](auto mr, int64_t r) {
      constexpr int MR = decltype(mr)::value;
      if (ahead) ahead->step();
      if (ahead2) ahead2->step();
      Tile<MR> tile;
      out.template begin<MR>(r, tile);
      multiply<MR>(tile, a + r, 1, a_stride, e, e_stride, depth);
      out.template end<MR>(r, tile);
    });
  }
}

// P [padded(columns) / kPanel][depth][kPanel], its columns past `columns` zero, from value(k, n).
template <class Value>
inline void pack_panel(float* p, int64_t n0, int64_t columns, int64_t depth, const Value& value) {
  const int64_t width = least(kPanel, columns - n0);
  for (int64_t k = 0; k < depth; k++, p += kPanel) {
    for (int64_t j = 0; j < width; j++) p[j] = value(k, n0 + j);
    for (int64_t j = width; j < kPanel; j++) p[j] = 0;
  }
}

}  // namespace densenet_fast::cpu::DENSENET_FAST_ISA
