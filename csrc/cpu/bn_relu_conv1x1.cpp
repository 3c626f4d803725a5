// BN-ReLU-conv1x1 from the block's buffer to z, and its backward in one pass over the buffer.
// Contract: densenet_fast/contract/operations.py; algorithm: docs/internals/cpu.md.
#include "bn_relu.h"
#include "conv1x1_fwd.h"
#include "sums.h"

namespace densenet_fast::cpu::DENSENET_FAST_KERNELS {

namespace {

void forward(const Conv1x1Fwd& op, Workspace& workspace) {
  const ConstMatrix x = op.x;
  const Affine bn(op.norm, op.C, workspace);
  conv1x1_fwd(
      op.M, op.C, op.K, op.weight, op.z, op.stats, workspace,
      [&](int64_t row, int64_t rows, int64_t c0, int64_t channels, factor* a, int64_t a_stride) {
        bn_relu_rows(x.data + row * x.stride + c0, x.stride, bn.scale + c0, bn.shift + c0, a, a_stride, rows, channels);
      },
      [&](Prefetcher& prefetcher, int64_t row, int64_t rows, int64_t c0, int64_t channels) {
        prefetcher.add(x.data + row * x.stride + c0, x.stride, rows, channels);
      });
}

// The micro-kernel's epilogue for v = dz @ W of one panel of channels: the ReLU's mask, dx, both sums, and a =
// relu(bn(x)) for the weight gradient. v never leaves the registers.
struct MaskAndScatter {
  const element* x;  // [rows, channels]
  int64_t x_stride;
  element* dx;  // [rows, channels]
  int64_t dx_stride;
  const float *scale, *shift, *mean;  // [kPanel]
  float* a;                           // [rows, kPanel]
  float *sum_v, *sum_vx;              // [kPanel]
  int64_t channels;                   // of this panel, 1 to kPanel

  template <int MR>
  DENSENET_FAST_INLINE void begin(int64_t row, Accumulators<MR>& acc) const {
    for (int i = 0; i < MR; i++) {
      __builtin_prefetch(x + (row + i + kRows) * x_stride, 0, 3);
      __builtin_prefetch(dx + (row + i + kRows) * dx_stride, 1, 3);
      for (int j = 0; j < kVecs; j++) acc.r[i][j] = vec{};
    }
  }
  template <int MR>
  DENSENET_FAST_INLINE void end(int64_t row, const Accumulators<MR>& acc) const {
    for (int j = 0; j < kVecs; j++) {
      const int64_t n = channels - j * kWidth;
      if (n >= kWidth) finish<MR>(row, j, acc, AllLanes{});
      else if (n > 0) finish<MR>(row, j, acc, FirstLanes{static_cast<int>(n)});
    }
  }

 private:
  template <int MR, class Lanes>
  DENSENET_FAST_INLINE void finish(int64_t row, int j, const Accumulators<MR>& acc, Lanes lanes) const {
    const int c = j * kWidth;
    const vec s = load(scale + c), t = load(shift + c), m = load(mean + c);
    vec v_sum = {}, vx_sum = {};  // short sums first, then into the long ones, whose rounding dominates the error
    for (int i = 0; i < MR; i++) {
      const vec xv = load(x + (row + i) * x_stride + c, lanes);
      const vec pre = xv * s + t;
      const vec v = relu_backward(acc.r[i][j], pre);
      element* g = dx + (row + i) * dx_stride + c;
      store(a + (row + i) * kPanel + c, relu(pre));
      store(g, load(g, lanes) + s * v, lanes);
      v_sum += v;
      vx_sum += v * (xv - m);
    }
    store(sum_v + c, load(sum_v + c) + v_sum);
    store(sum_vx + c, load(sum_vx + c) + vx_sum);
  }
};

// d [rows, padded(K)] = scale * u - a - b * (z - mean), the vectors padded.
void apply_norm2(const element* u, int64_t u_stride, const element* z, int64_t z_stride, const float* scale,
                 const Correction& correction, float* d, int64_t d_stride, int64_t rows, int64_t K) {
  for (int64_t r = 0; r < rows; r++, u += u_stride, z += z_stride, d += d_stride) {
    for_channels(K, [&](int64_t k, auto lanes) {
      const vec centred = load(z + k, lanes) - load(correction.mean + k), scaled = load(u + k, lanes) * load(scale + k);
      store(d + k, scaled - load(correction.a + k) - load(correction.b + k) * centred);
    });
  }
}

// The backward for op.C of `channels` channels; op.dweight has rows of `channels`.
void backward(const Conv1x1Bwd& op, int64_t channels, Workspace& workspace) {
  constexpr int64_t kRowsTarget = 96, kChannels = 128;  // one tile of d and of a stays in L2
  const int64_t C = op.C, K = op.K, Cp = padded(C), d_stride = padded(K) + kPanel;
  const RowBlocks blocks(op.M, kRowsTarget, kHeight);
  const Parts parts(blocks.count);
  const Affine bn(op.norm, C, workspace);
  const float* mean = padded_copy(op.norm.mean, C, workspace);
  const float* scale2 = Affine(op.norm2, K, workspace).scale;
  const Correction correction2 = padded_copy(op.correction2, K, workspace);
  const factor* packed = pack_inputs(op.weight, K, C, 1, workspace);
  const int64_t depth = whole_depth(K);
  const int64_t d_size = blocks.block * d_stride, a_size = blocks.block * kChannels, dw_size = K * Cp;
  const int64_t whole = whole_depth(blocks.block);
  const int64_t size = d_size + a_size + whole * (2 * scratch_of_factors(K) + scratch_of_factors(kChannels));
  float* scratch = workspace.floats(parts.workers * size);
  float* dw = op.dweight ? workspace.floats(parts.count * dw_size) : nullptr;
  PartialSums sums(parts.count, C, workspace);

  each_part(parts, [&](int64_t w, int64_t part) {
    const TilesInUse tiles;
    float *d = scratch + w * size, *a = d + d_size, *my_dw = dw + part * dw_size;
    for (int64_t i = parts.begin(part); i < parts.end(part); i++) {
      const int64_t row = blocks.begin(i), rows = blocks.size(i);
      float *sum_v = sums.begin_chunk(part), *sum_vx = sum_v + sums.offset_vx();
      apply_norm2(op.u.data + row * op.u.stride, op.u.stride, op.z.data + row * op.z.stride, op.z.stride, scale2,
                  correction2, d, d_stride, rows, K);
      float* const narrow = a + a_size;
      const auto dz = as_factors(d, d_stride, rows, K, reinterpret_cast<factor*>(narrow));
      auto* const dz_place = reinterpret_cast<factor*>(narrow + whole * scratch_of_factors(K));
      const auto dz_columns = columns_as_factors(d, d_stride, dw ? rows : 0, K, dz_place);
      for (int64_t c0 = 0; c0 < Cp; c0 += kChannels) {
        const int64_t channels = min(kChannels, Cp - c0);
        Prefetcher prefetcher(Prefetcher::steps_of_factors(rows, channels, K) +
                              (dw ? Prefetcher::steps_of_factors(K, channels, rows) : 0));
        const bool last = c0 + kChannels >= Cp;
        if (!last || i + 1 < parts.end(part)) {
          const int64_t next_c = last ? 0 : c0 + kChannels, next = last ? row + rows : row;
          const int64_t next_rows = last ? blocks.size(i + 1) : rows, next_channels = min(kChannels, C - next_c);
          prefetcher.add(op.x.data + next * op.x.stride + next_c, op.x.stride, next_rows, next_channels);
          prefetcher.add(op.dx.data + next * op.dx.stride + next_c, op.dx.stride, next_rows, next_channels);
          if (last) {
            prefetcher.add(op.u.data + next * op.u.stride, op.u.stride, next_rows, K);
            prefetcher.add(op.z.data + next * op.z.stride, op.z.stride, next_rows, K);
          }
        }
        multiply_panels(dz.data, dz.stride, 1, packed + c0 * depth, kPanel, depth * kPanel, rows, channels, depth,
                        &prefetcher, [&](int64_t n) {
                          const int64_t c = c0 + n;
                          return MaskAndScatter{op.x.data + row * op.x.stride + c,
                                                op.x.stride,
                                                op.dx.data + row * op.dx.stride + c,
                                                op.dx.stride,
                                                bn.scale + c,
                                                bn.shift + c,
                                                mean + c,
                                                a + n * rows,
                                                sum_v + c,
                                                sum_vx + c,
                                                min(kPanel, C - c)};
                        });
        if (dw) {
          const int64_t depth_of_rows = whole_depth(rows);
          auto* const place = reinterpret_cast<factor*>(narrow + 2 * whole * scratch_of_factors(K));
          const factor* activated = nullptr;
          for (int64_t c = channels - kPanel; c >= 0; c -= kPanel)
            activated = rows_as_factors(a + c * rows, kPanel, rows, kPanel, place + c * depth_of_rows).data;
          gemm_tn(dz_columns.data, dz_columns.stride, activated, kPanel, depth_of_rows * kPanel, my_dw + c0, Cp, K,
                  channels, depth_of_rows, i > parts.begin(part), &prefetcher);
        }
      }
      sums.end_chunk(part);
    }
  });
  sums.finish(op.norm, op.M, op.dnorm);
  if (dw) add_parts(dw, parts.count, K, C, Cp, op.dweight, channels);
}

}  // namespace

void bn_relu_conv1x1_fwd(const Conv1x1Fwd& op, Workspace& workspace) {
  if (op.M > 2 * op.K) return forward(op, workspace);
  divide_channels(op.K, [&](int64_t first, int64_t last) {
    Conv1x1Fwd slice = op;
    slice.K = last - first;
    slice.weight.data += first * op.weight.stride[0];
    slice.z.data += first;
    slice.stats = channels_from(op.stats, first);
    forward(slice, workspace);
  });
}

void bn_relu_conv1x1_bwd(const Conv1x1Bwd& op, Workspace& workspace) {
  if (op.M > op.C) return backward(op, op.C, workspace);
  divide_channels(op.C, [&](int64_t first, int64_t last) {
    Conv1x1Bwd slice = op;
    slice.C = last - first;
    slice.x.data += first;
    slice.norm = channels_from(op.norm, first);
    slice.weight.data += first * op.weight.stride[1];
    slice.dx.data += first;
    slice.dnorm = channels_from(op.dnorm, first);
    if (op.dweight) slice.dweight += first;
    backward(slice, op.C, workspace);
  });
}

}  // namespace densenet_fast::cpu::DENSENET_FAST_KERNELS
