// The tile registers of AMX, as far as products of bfloat16 need them: eight, of 16 rows of 64 bytes each. Where the
// compiler may not use them they are memory, and plain C++ does what Intel's manual says of the instructions, so that
// all that is built on them can be tested anywhere.
#pragma once

#include <cstddef>

#include "load.h"

namespace densenet_fast::cpu::DENSENET_FAST_KERNELS {

inline constexpr int kTileRows = 16, kTileBytes = 64;
inline constexpr int kTileDepth = kTileBytes / sizeof(bfloat16);  // of one product

#if defined(__AMX_TILE__) && defined(__AMX_BF16__)

// What ldtilecfg reads.
struct alignas(64) TileShapes {
  uint8_t palette = 1, first_row = 0, reserved[14] = {};
  uint16_t bytes[16] = {};  // of a row
  uint8_t rows[16] = {};
  constexpr TileShapes() {
    for (int tile = 0; tile < 8; tile++) bytes[tile] = kTileBytes, rows[tile] = kTileRows;
  }
};
static_assert(sizeof(TileShapes) == 64 && offsetof(TileShapes, bytes) == 16 && offsetof(TileShapes, rows) == 48);
inline constexpr TileShapes kTileShapes;

// The tiles are this thread's for as long as this lives. Others give them other shapes (oneDNN), and the system keeps 8
// KB more of a thread that it interrupts while tiles are in use: nothing else may run until they are released.
//
// Assembly, because the intrinsics of GCC before 14 do not tell the compiler which memory they read.
class TilesInUse {
 public:
  TilesInUse() { asm volatile("ldtilecfg %0" ::"m"(kTileShapes)); }
  ~TilesInUse() { asm volatile("tilerelease" ::: "memory"); }
  TilesInUse(const TilesInUse&) = delete;
};

template <int tile>
DENSENET_FAST_INLINE void tile_zero() {
  asm volatile("tilezero %%tmm%c0" ::"i"(tile));
}
// 16 rows of 64 bytes, `stride` bytes apart.
template <int tile>
DENSENET_FAST_INLINE void tile_load(const void* p, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(p), "r"(stride), "i"(tile) : "memory");
}
template <int tile>
DENSENET_FAST_INLINE void tile_store(void* p, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(p), "r"(stride), "i"(tile) : "memory");
}
// sum[m][n] += a[m][2k] * b[k][2n] + a[m][2k + 1] * b[k][2n + 1] for all k: floats, and pairs of bfloat16.
template <int sum, int a, int b>
DENSENET_FAST_INLINE void tile_multiply() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(sum), "i"(a), "i"(b));  // AT&T: the last operand first
}

#else

struct Tiles {
  uint32_t row[8][kTileRows][kTileBytes / 4];
  bool in_use = false;
};
inline thread_local Tiles of_this_thread;

class TilesInUse {
 public:
  TilesInUse() {
    if (of_this_thread.in_use) __builtin_trap();
    memset(of_this_thread.row, 0, sizeof of_this_thread.row);
    of_this_thread.in_use = true;
  }
  ~TilesInUse() { of_this_thread.in_use = false; }
  TilesInUse(const TilesInUse&) = delete;
};

// A tile's rows. The instructions are undefined while no tiles are in use.
inline uint32_t (*tile_rows(int tile)) [kTileBytes / 4] {
  if (!of_this_thread.in_use) __builtin_trap();
  return of_this_thread.row[tile];
}

template <int tile>
inline void tile_zero() {
  memset(tile_rows(tile), 0, kTileRows * kTileBytes);
}
template <int tile>
inline void tile_load(const void* p, int64_t stride) {
  for (int m = 0; m < kTileRows; m++) memcpy(tile_rows(tile)[m], static_cast<const char*>(p) + m * stride, kTileBytes);
}
template <int tile>
inline void tile_store(void* p, int64_t stride) {
  for (int m = 0; m < kTileRows; m++) memcpy(static_cast<char*>(p) + m * stride, tile_rows(tile)[m], kTileBytes);
}

// Subnormal numbers are zero, as operands and as results.
DENSENET_FAST_INLINE vec flushed(uvec bits) {
  return reinterpret_cast<vec>((bits & 0x7f800000) == 0 ? bits & 0x80000000 : bits);
}
DENSENET_FAST_INLINE vec flushed(vec v) { return flushed(reinterpret_cast<uvec>(v)); }

// The first of each pair are added up by themselves, the second, too. (Products of bfloat16 have no rounding in fp32,
// so it does not matter whether this fuses them with the sums.)
template <int sum, int a, int b>
inline void tile_multiply() {
  const auto sums = tile_rows(sum), left = tile_rows(a), right = tile_rows(b);
  for (int m = 0; m < kTileRows; m++)
    for (int n = 0; n < kTileBytes / 4; n += kWidth) {
      vec first = {}, second = {};
      for (int k = 0; k < kTileRows; k++) {
        const uvec l = left[m][k] + uvec{};
        uvec r;
        memcpy(&r, right[k] + n, sizeof r);
        first = flushed(first + flushed(l << 16) * flushed(r << 16));
        second = flushed(second + flushed(l & 0xffff0000) * flushed(r & 0xffff0000));
      }
      vec found;
      memcpy(&found, sums[m] + n, sizeof found);
      found = flushed(found + flushed(first + second));
      memcpy(sums[m] + n, &found, sizeof found);
    }
}

#endif

}  // namespace densenet_fast::cpu::DENSENET_FAST_KERNELS
