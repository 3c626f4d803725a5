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

// Fetches rectangles into L2 a few cache lines at a time while the multiplications run, which hide the latency. Fetched
// in one burst they would wait for the miss buffers.
class Ahead {
 public:
  static constexpr int64_t kEvery = 16;  // steps along the depth between two fetches

  // Fetches of all of a product [rows, columns] of `depth`.
  static int64_t steps(int64_t rows, int64_t columns, int64_t depth) {
    return ceil_div(rows, kRows) * ceil_div(columns, kPanel) * ceil_div(depth, kEvery);
  }
  explicit Ahead(int64_t steps) : steps_(steps) {}

  // x [rows, columns].
  void add(const float* x, int64_t stride, int64_t rows, int64_t columns) {
    const uintptr_t begin = reinterpret_cast<uintptr_t>(x), bytes = columns * sizeof(float);
    const int64_t per_step = ceil_div(rows * static_cast<int64_t>(bytes / kLine + 1), most(steps_, 1));
    rectangles_[count_++] = {begin, begin, bytes, stride * sizeof(float), rows, per_step};
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

// tile = or += A @ P: A(i, k) = a[i * a_row + k * a_depth], row k of P at p + k * p_depth.
template <int MR>
DENSENET_FAST_INLINE void multiply(Tile<MR>& tile, const float* a, int64_t a_row, int64_t a_depth, const float* p,
                                   int64_t p_depth, int64_t depth, Ahead* ahead = nullptr) {
  for (int64_t k = 0; k < depth;) {
    if (ahead) ahead->step();
    const int64_t end = least(depth, k + Ahead::kEvery);
    for (; k < end; k++, a += a_depth, p += p_depth) {
      vec b[kVecs];
      for (int j = 0; j < kVecs; j++) b[j] = load(p + j * kWidth);
      for (int i = 0; i < MR; i++) {
        const vec s = splat(a[i * a_row]);
        for (int j = 0; j < kVecs; j++) tile.r[i][j] += s * b[j];
      }
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
    if (add) each(row, tile, [&](float* p, vec& v, auto part) { store(p, load(p, part) + v, part); });
    else each(row, tile, [&](float* p, vec& v, auto part) { store(p, v, part); });
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
DENSENET_FAST_INLINE void gemm_nn(const float* a, int64_t a_stride, const float* p, int64_t panel, float* c,
                                  int64_t c_stride, int64_t rows, int64_t columns, int64_t depth, bool add,
                                  Ahead* ahead = nullptr) {
  for (int64_t n = 0; n < columns; n += kPanel, p += panel) {
    const StoreTile out{c + n, c_stride, columns - n, add};
    for_strips(rows, [&](auto mr, int64_t r) {
      constexpr int MR = decltype(mr)::value;
      Tile<MR> tile;
      out.template begin<MR>(r, tile);
      multiply<MR>(tile, a + r * a_stride, a_stride, 1, p, kPanel, depth, ahead);
      out.template end<MR>(r, tile);
    });
  }
}

// C [rows, columns] = or += A [depth, rows]^T @ E [depth, columns]; panel j of E at e + j * panel with row stride
// e_stride.
DENSENET_FAST_INLINE void gemm_tn(const float* a, int64_t a_stride, const float* e, int64_t e_stride, int64_t panel,
                                  float* c, int64_t c_stride, int64_t rows, int64_t columns, int64_t depth, bool add,
                                  Ahead* ahead = nullptr) {
  for (int64_t n = 0; n < columns; n += kPanel, e += panel) {
    const StoreTile out{c + n, c_stride, kPanel, add};
    for_strips(rows, [&](auto mr, int64_t r) {
      constexpr int MR = decltype(mr)::value;
      Tile<MR> tile;
      out.template begin<MR>(r, tile);
      multiply<MR>(tile, a + r, 1, a_stride, e, e_stride, depth, ahead);
      out.template end<MR>(r, tile);
    });
  }
}

// One panel [depth][kPanel] of P, zero past its `columns`, of w [depth, columns] times `scale`.
inline void pack_panel(const float* w, int64_t stride, int64_t columns, int64_t depth, float scale, float* p) {
  for (int64_t k = 0; k < depth; k++, w += stride, p += kPanel)
    for (int j = 0; j < kPanel; j += kWidth) {
      const int64_t n = columns - j;
      const vec v = n >= kWidth ? load(w + j) : n > 0 ? load(w + j, Tail{static_cast<int>(n)}) : vec{};
      store(p + j, v * scale);
    }
}

// The same of the transposed matrix, w [columns, depth].
inline void pack_panel_transposed(const float* w, int64_t stride, int64_t columns, int64_t depth, float* p) {
  for (int j = 0; j < kPanel; j += kWidth)
    for (int64_t k = 0; k < depth; k += kWidth) {
      const int64_t count = least(kWidth, depth - k);
      vec rows[kWidth];
      load_columns(w + j * stride + k, stride, columns - j, count, rows);
      for (int64_t i = 0; i < count; i++) store(p + (k + i) * kPanel + j, rows[i]);
    }
}

}  // namespace densenet_fast::cpu::DENSENET_FAST_ISA
