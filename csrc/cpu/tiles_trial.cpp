// Whether tiles multiply as gemm.h has them do, asked before the first kernel does: small integers have one exact sum.
#include "gemm.h"

#if defined(DENSENET_FAST_TILES)

namespace densenet_fast::cpu::DENSENET_FAST_KERNELS {

bool tiles_multiply() {
  constexpr int kRowsHere = 3 * kTileRows, kColumns = 3 * kPanel, kDepth = 3 * kTileDepth;  // blocks of every shape
  const auto integer = [](int i, int j) { return static_cast<float>((i * 5 + j * 3 + i * j) % 17 - 8); };
  alignas(64) bfloat16 a[kRowsHere][kDepth], p[kColumns / kPanel][kDepth / kPair][kPanel][kPair];
  const auto set = [](bfloat16& to, float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    to.bits = bits >> 16;
  };
  for (int k = 0; k < kDepth; k++) {
    for (int r = 0; r < kRowsHere; r++) set(a[r][k], integer(r, k));
    for (int c = 0; c < kColumns; c++) set(p[c / kPanel][k / kPair][c % kPanel][k % kPair], integer(k, c));
  }
  float sums[kRowsHere][kColumns];
  {
    const TilesInUse tiles;
    gemm_nn(a[0], kDepth, p[0][0][0], kDepth * kPanel, sums[0], kColumns, kRowsHere, kColumns, kDepth, false);
  }
  for (int r = 0; r < kRowsHere; r++)
    for (int c = 0; c < kColumns; c++) {
      float sum = 0;
      for (int k = 0; k < kDepth; k++) sum += integer(r, k) * integer(k, c);
      if (sums[r][c] != sum) return false;
    }
  return true;
}

}  // namespace densenet_fast::cpu::DENSENET_FAST_KERNELS
#endif
