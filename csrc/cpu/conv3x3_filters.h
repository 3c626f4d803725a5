// The packed filters of the 3x3 kernels: read from any memory layout, transformed for Winograd or left as they are, in
// panels of outputs.
#pragma once

#include "in_floats.h"
#include "sums.h"
#include "winograd.h"

namespace densenet_fast::cpu::DENSENET_FAST_KERNELS {

// Filters packed in panels of outputs, in one plane for each of a transformed tile's values or of the 9 taps.
struct PackedFilters {
  const float* data;  // [planes][padded(outputs) / kPanel][inputs][kPanel]
  int64_t plane;      // floats from one plane to the next
};

#if defined(DENSENET_FAST_TILES)
// Filters in panels of outputs and pairs of inputs, one plane for each of the 9 taps.
struct PackedTaps {
  const factor* data;    // [9][padded(outputs) / kPanel][depth][kPanel]
  int64_t plane, depth;  // the inputs to a whole depth
};
#endif

// dweight [G, channels, 3, 3], its first C inputs, from the taps [9][G][padded(C)] of all parts, which are flipped.
inline void sum_flipped(const float* taps, int64_t parts, int64_t G, int64_t C, int64_t channels, element* dweight) {
  const int64_t Cp = padded(C);
  parallel_ranges(G, ceil_div(kGrain, 9 * parts * Cp), [&](int64_t begin, int64_t end) {
    for (int64_t g = begin; g < end; g++)
      for (int64_t c = 0; c < C; c += kWidth)
        for (int first = 0; first < 9; first += kWidth) {
          vec columns[kWidth] = {};
          const int64_t n = min(kWidth, 9 - first);
          for (int64_t t = 0; t < n; t++)
            columns[t] = sum_parts(taps + ((8 - first - t) * G + g) * Cp + c, parts, 9 * G * Cp);
          store_columns(dweight + (g * channels + c) * 9 + first, 9, min(kWidth, C - c), n, columns);
        }
  });
}

// The filters of the convolution with `weight` [G, C, 3, 3], outputs G and inputs C, or of the transposed convolution:
// outputs C, inputs G, taps flipped in both axes.
class Filters {
 public:
  Filters(const Weight& weight, int64_t G, int64_t C, bool transposed)
      : data_(weight.data),
        outputs_(transposed ? C : G),
        inputs_(transposed ? G : C),
        out_stride_(weight.stride[transposed]),
        in_stride_(weight.stride[!transposed]),
        dense_(weight.stride[2] == 3 && weight.stride[3] == 1),
        flipped_(transposed) {
    for (int tap = 0; tap < 9; tap++)
      offset_[flipped_ ? 8 - tap : tap] = tap / 3 * weight.stride[2] + tap % 3 * weight.stride[3];
  }

  // Transformed by Winograd, for tiles of `size` x `size` outputs.
  template <int size>
  PackedFilters pack_winograd(Workspace& workspace) const {
    return pack<Winograd<size>::kValues>(workspace, [](const vec g[9], vec u[]) { winograd_filter<size>(g, u); });
  }
  // The taps themselves, for the direct kernel.
  PackedFilters pack_direct(Workspace& workspace) const {
    return pack<9>(workspace, [](const vec g[9], vec u[]) { memcpy(u, g, 9 * sizeof(vec)); });
  }

#if defined(DENSENET_FAST_TILES)
  // The taps, for products of pairs.
  PackedTaps pack_taps(Workspace& workspace) const {
    const int64_t depth = whole_depth(inputs_), plane = padded(outputs_) * depth, blocks = depth / kWidth;
    factor* packed = factors(9 * plane, workspace);
    parallel_ranges(padded(outputs_) / kPanel * blocks, kGrain / (16 * kPanel * kWidth),
                    [&](int64_t first, int64_t last) {
                      for (int64_t i = first; i < last; i++)
                        for (int64_t j = 0; j < kPanel; j += kWidth) {
                          const int64_t n = i / blocks * kPanel, k = i % blocks * kWidth;
                          vec taps[kWidth][9];
                          const int64_t count = max(0, min(kWidth, inputs_ - k));
                          if (count > 0) read(n + j, k, count, taps);
                          memset(taps + count, 0, (kWidth - count) * sizeof taps[0]);
                          for (int64_t in = 0; in < kWidth; in += kPair)
                            for (int t = 0; t < 9; t++)
                              put_pairs(packed + t * plane + n * depth, k + in, j, taps[in][t], taps[in + 1][t]);
                        }
                    });
    return {packed, plane, depth};
  }
#endif

 private:
  // transform(g, u) makes the planes' values u from the taps g of kWidth filters.
  template <int planes, class Transform>
  PackedFilters pack(Workspace& workspace, const Transform& transform) const {
    const int64_t plane = plane_size(padded(outputs_), inputs_), blocks = ceil_div(inputs_, kWidth);
    float* packed = workspace.floats(planes * plane);
    const auto pack_block = [&](int64_t i) {
      const int64_t n = i / blocks * kPanel, k = i % blocks * kWidth, count = min(kWidth, inputs_ - k);
      for (int64_t j = 0; j < kPanel; j += kWidth) {
        vec taps[kWidth][9], u[planes];
        read(n + j, k, count, taps);
        for (int64_t in = 0; in < count; in++) {
          transform(taps[in], u);
          for (int e = 0; e < planes; e++) store(packed + e * plane + n * inputs_ + (k + in) * kPanel + j, u[e]);
        }
      }
    };
    parallel_ranges(padded(outputs_) / kPanel * blocks, kGrain / (16 * kPanel * kWidth),
                    [&](int64_t first, int64_t last) {
                      for (int64_t i = first; i < last; i++) pack_block(i);
                    });
    return {packed, plane};
  }

  // taps[i][tap] of outputs [out, out + kWidth), zero past the last, and inputs [in, in + count), count <= kWidth. Read
  // along the dimension that lies side by side in memory, and transposed if that is not the outputs.
  void read(int64_t out, int64_t in, int64_t count, vec taps[kWidth][9]) const {
    const element* const p = data_ + out * out_stride_ + in * in_stride_;
    const int64_t outputs = max(0, min(kWidth, outputs_ - out));
    vec columns[kWidth];
    if (dense_ && !flipped_ && in_stride_ == 9) {
      for (int64_t i = 0; i < 9 * count; i += kWidth)
        load_columns(p + i, out_stride_, outputs, min(kWidth, 9 * count - i), taps[0] + i);
    } else if (in_stride_ == 1) {
      for (int tap = 0; tap < 9; tap++) {
        load_columns(p + offset_[tap], out_stride_, outputs, count, columns);
        for (int64_t i = 0; i < count; i++) taps[i][tap] = columns[i];
      }
    } else if (out_stride_ == 1) {
      const FirstLanes lanes{static_cast<int>(outputs)};
      for (int64_t i = 0; i < count; i++)
        for (int tap = 0; tap < 9; tap++)
          taps[i][tap] = outputs == kWidth ? load(p + i * in_stride_ + offset_[tap])
                                           : load(p + i * in_stride_ + offset_[tap], lanes);
    } else if (dense_) {
      for (int64_t i = 0; i < count; i++)
        for (int first = 0; first < 9; first += kWidth) {
          const int64_t n = min(kWidth, 9 - first);
          load_columns(p + i * in_stride_ + first, out_stride_, outputs, n, columns);
          for (int64_t t = 0; t < n; t++) taps[i][flipped_ ? 8 - first - t : first + t] = columns[t];
        }
    } else {
      for (int64_t i = 0; i < count; i++)
        for (int tap = 0; tap < 9; tap++)
          for (int64_t j = 0; j < kWidth; j++)
            taps[i][tap][j] =
                j < outputs ? load(p + i * in_stride_ + j * out_stride_ + offset_[tap], FirstLanes{1})[0] : 0;
    }
  }

  const element* data_;
  int64_t outputs_, inputs_, out_stride_, in_stride_, offset_[9];
  bool dense_, flipped_;  // whether the taps lie side by side; whether their order is reversed
};

}  // namespace densenet_fast::cpu::DENSENET_FAST_KERNELS
