// Backward of BN-ReLU-conv3x3 in one pass: dgrad, ReLU mask, BatchNorm sums and weight gradient.
// Contract: densenet_fast/contract/operations.py.
//
// dgrad is the convolution of d with the taps flipped, so with D the transformed d: Q = D U, u = A^T Q A. The
// weight gradient of that convolution is dU += D^T (A a A^T) with a = relu(bn(x)): D is made once, x is read once and
// without a halo, and A a A^T overwrites Q in the pass that reads it. A chunk whose d is not finite takes its u from
// the direct kernel, and so does an image of one tile (see the forward); dweight comes through D in any case.
#include "bn_relu.h"
#include "dropout.h"
#include "sums.h"
#include "winograd.h"
#include "conv3x3_filters.h"
#include "conv3x3_direct.h"
#if defined(DENSENET_FAST_TILES) && !defined(DENSENET_FAST_TERMS)
#include "conv3x3_taps_bwd.h"  // is used instead
#endif

namespace densenet_fast::cpu::DENSENET_FAST_KERNELS {

#if !defined(DENSENET_FAST_TILES) || defined(DENSENET_FAST_TERMS)
namespace {

constexpr int64_t kChannels = 32;  // channels of x per pass: their planes stay in L2

template <int size>
struct Conv3x3Backward {
  static constexpr int kValues = Winograd<size>::kValues;

  const Conv3x3Bwd& op;
  const TileGrid<size> grid;
  const Affine bn;
  const float* mean;  // of x, padded
  const Correction correction_y;
  const int64_t inputs, stride, Cp;  // padded: channels of d, channels of x per pass, channels of x
  const int64_t tiles, d_plane, q_plane, dU_plane, ring_size, direct_size;

  Conv3x3Backward(const Conv3x3Bwd& op, Workspace& workspace)
      : op(op),
        grid(op.shape),
        bn(op.norm, op.C, workspace),
        mean(padded_copy(op.norm.mean, op.C, workspace)),
        correction_y(padded_copy(op.correction_y, op.G, workspace)),
        inputs(padded(op.G)),
        stride(padded(min(kChannels, op.C))),
        Cp(padded(op.C)),
        tiles(grid.chunk_rows * grid.tile_columns),
        d_plane(plane_size(tiles, inputs)),
        q_plane(plane_size(tiles, stride)),
        dU_plane(plane_size(op.G, Cp)),
        ring_size((size + 2) * grid.row_pixels() * inputs),
        direct_size(grid.chunk_rows * size * op.shape.W * stride) {}

  int64_t scratch_size() const { return ring_size + kValues * (d_plane + q_plane); }
  int64_t dU_size() const { return kValues * dU_plane; }
  int64_t taps_size() const { return 9 * op.G * Cp; }

  // Rows of d = mask * (dy - a - b * (y - mean)). `finite_probe` adds up 0 * d, NaN in a lane where a d is not finite.
  auto row_loader(vec& finite_probe) const {
    return [this, &finite_probe](int64_t pixel, float* row) {
      for (int64_t w = 0; w < op.shape.W; w++, pixel++, row += inputs) {
        const element *dy = op.dy.data + pixel * op.dy.stride, *y = op.y.data + pixel * op.y.stride;
        for_channels(op.G, [&](int64_t c, auto lanes) {
          const vec centred = load(y + c, lanes) - load(correction_y.mean + c);
          vec d = load(dy + c, lanes) - load(correction_y.a + c) - load(correction_y.b + c) * centred;
          if (op.dropout.threshold) d *= dropout_mask(op.dropout, pixel * op.G + c);
          finite_probe += d * 0.f;
          store(row + c, d);
        });
      }
    };
  }

  // What is done with a tile of u: it is masked, u or dx written, the sums added to, and for dweight A a A^T put where
  // the tile's Q was, in `planes`.
  template <class Lanes>
  DENSENET_FAST_INLINE void finish_tile(const vec u[size][size], int64_t pixel, int64_t rows, int64_t columns,
                                        int64_t c, Lanes lanes, float* planes, int64_t plane_c, vec& sum_v,
                                        vec& sum_vx) const {
    const vec s = load(bn.scale + c), t = load(bn.shift + c), m = load(mean + c);
    vec v_sum = {}, vx_sum = {}, a[size][size];
    for (int i = 0; i < size; i++)
      for (int k = 0; k < size; k++) {
        if (i >= rows || k >= columns) {
          a[i][k] = vec{};
          continue;
        }
        const int64_t at = pixel + i * op.shape.W + k;
        const vec x = load(op.x.data + at * op.x.stride + c, lanes);
        const vec pre = x * s + t, v = relu_backward(u[i][k], pre);
        element* out = op.u.data + at * op.u.stride + c;
        store(out, op.accumulate ? load(out, lanes) + s * v : v, lanes);
        v_sum += v;
        vx_sum += v * (x - m);
        a[i][k] = relu(pre);
      }
    sum_v += v_sum;
    sum_vx += vx_sum;
    if (op.dweight) winograd_output_transposed<size>(a, planes, q_plane, plane_c);
  }

  // The pass over a chunk's tiles and channels [c0, c0 + stride). u_of(tile_row, column, c, u) gives a tile of u. Sums
  // are those of a tile, a row of tiles, the chunk: the rounding of long ones dominates.
  template <class UOf>
  void finish(int64_t first, int64_t last, int64_t c0, float* Q, float* sum_v, float* sum_vx, const UOf& u_of) const {
    for (int64_t t = first; t < last; t++) {
      float* const row = Q + (t - first) * grid.tile_columns * stride;
      for_channels(min(stride, op.C - c0), [&](int64_t c, auto lanes) {
        vec v = {}, vx = {};
        for (int64_t j = 0; j < grid.tile_columns; j++) {
          vec u[size][size];
          u_of(t, j, c, u);
          finish_tile(u, grid.pixel(t) + size * j, grid.rows_of(t), grid.columns_of(j), c0 + c, lanes, row + j * stride,
                      c, v, vx);
        }
        store(sum_v + c0 + c, load(sum_v + c0 + c) + v);
        store(sum_vx + c0 + c, load(sum_vx + c0 + c) + vx);
      });
    }
  }

  // A whole chunk: by Winograd, or where `direct_scratch` is given by the direct kernel, whose filters are then
  // `packed`. By Winograd it returns false, with nothing written, if d is not finite. The planes of dU, if not null,
  // are written, or added to if `add`.
  bool chunk(int64_t i, bool prefetch, PackedFilters packed, float* direct_scratch, float* scratch, PartialSums& sums,
             int64_t part, float* dU, bool add) const {
    const int64_t first = grid.begin(i), last = grid.end(i), count = (last - first) * grid.tile_columns;
    const int64_t W = op.shape.W;
    float *ring = scratch, *D = ring + ring_size, *Q = D + kValues * d_plane;
    vec finite_probe = {};
    winograd_inputs(grid, first, last, op.G, inputs, ring, D, d_plane, row_loader(finite_probe));
    if (!direct_scratch && !all_zero(finite_probe)) return false;

    float *sum_v = sums.begin_chunk(part), *sum_vx = sum_v + sums.offset_vx();
    for (int64_t c0 = 0; c0 < Cp; c0 += kChannels) {
      const int64_t channels = min(kChannels, Cp - c0);
      if (direct_scratch) {
        direct_outputs(grid, first, last, op.G, inputs, ring, {packed.data + c0 * op.G, packed.plane}, op.G * kPanel,
                       channels, direct_scratch, stride, false, row_loader(finite_probe));
        finish(first, last, c0, Q, sum_v, sum_vx, [&](int64_t t, int64_t j, int64_t c, vec u[size][size]) {
          for (int r = 0; r < size; r++)
            for (int k = 0; k < grid.columns_of(j); k++)
              u[r][k] = load(direct_scratch + (((t - first) * size + r) * W + size * j + k) * stride + c);
        });
      } else {
        Prefetcher prefetcher(kValues * Prefetcher::steps(count, channels, op.G));
        const int64_t pixel = grid.pixel(first), pixels = grid.chunk_pixels(i), wide = min(kChannels, op.C - c0);
        prefetcher.add(op.x.data + pixel * op.x.stride + c0, op.x.stride, pixels, wide);
        prefetcher.add(op.u.data + pixel * op.u.stride + c0, op.u.stride, pixels, wide);
        for (int e = 0; e < kValues; e++)
          gemm_nn(D + e * d_plane, inputs, packed.data + e * packed.plane + c0 * op.G, op.G * kPanel, Q + e * q_plane,
                  stride, count, channels, op.G, false, &prefetcher);
        finish(first, last, c0, Q, sum_v, sum_vx, [&](int64_t t, int64_t j, int64_t c, vec u[size][size]) {
          winograd_output<size>(Q + ((t - first) * grid.tile_columns + j) * stride, q_plane, c, u);
        });
      }
      if (!dU) continue;
      Prefetcher prefetcher(kValues * Prefetcher::steps(op.G, channels, count));
      if (prefetch && c0 + kChannels >= Cp) {
        prefetcher.add(op.dy.data + grid.pixel(last) * op.dy.stride, op.dy.stride, grid.chunk_pixels(i + 1), op.G);
        prefetcher.add(op.y.data + grid.pixel(last) * op.y.stride, op.y.stride, grid.chunk_pixels(i + 1), op.G);
      }
      for (int e = 0; e < kValues; e++)
        gemm_tn(D + e * d_plane, inputs, Q + e * q_plane, stride, kPanel, dU + e * dU_plane + c0, Cp, op.G, channels,
                count, add, &prefetcher);
    }
    sums.end_chunk(part);
    return true;
  }

  // The taps [9][G][Cp] of a part's dU, written, or added to if `add`.
  void write_taps(const float* dU, float* taps, bool add) const {
    for (int64_t at = 0; at < op.G * Cp; at += kWidth) {
      vec u[kValues], g[9];
      for (int e = 0; e < kValues; e++) u[e] = load(dU + e * dU_plane + at);
      winograd_filter_transposed<size>(u, g);
      for (int t = 0; t < 9; t++) {
        float* tap = taps + t * op.G * Cp + at;
        store(tap, add ? load(tap) + g[t] : g[t]);
      }
    }
  }
};

// The backward for op.C of `channels` channels; op.dweight has `channels` inputs.
template <int size>
void backward(const Conv3x3Bwd& op, int64_t channels, Workspace& workspace) {
  const Conv3x3Backward<size> conv(op, workspace);
  const TileGrid<size>& grid = conv.grid;
  const Parts parts(grid.chunks);
  const Filters filters(op.weight, op.G, op.C, true);
  const PackedFilters packed = grid.one_tile() ? PackedFilters{} : filters.pack_winograd<size>(workspace);
  float* scratch = workspace.floats(parts.workers * conv.scratch_size());
  float* dU = op.dweight ? workspace.floats(parts.workers * conv.dU_size()) : nullptr;
  float* taps = op.dweight ? workspace.floats(parts.count * conv.taps_size()) : nullptr;
  float* finite = workspace.floats(grid.chunks);  // [chunks], 1 or 0
  PartialSums sums(parts.count, op.C, workspace);

  each_part(parts, [&](int64_t w, int64_t part) {
    float* mine = dU ? dU + w * conv.dU_size() : nullptr;
    bool any = false;
    for (int64_t i = parts.begin(part); i < parts.end(part); i++) {
      const bool done = !grid.one_tile() && conv.chunk(i, i + 1 < parts.end(part), packed, nullptr,
                                                       scratch + w * conv.scratch_size(), sums, part, mine, any);
      finite[i] = done;
      any |= done;
    }
    if (mine && any) conv.write_taps(mine, taps + part * conv.taps_size(), false);
    else if (mine) memset(taps + part * conv.taps_size(), 0, conv.taps_size() * sizeof(float));
  });

  bool all_finite = true;
  for (int64_t i = 0; i < grid.chunks; i++) all_finite &= finite[i] != 0;
  if (!all_finite) {
    const PackedFilters packed_direct = filters.pack_direct(workspace);
    float* direct = workspace.floats(parts.workers * conv.direct_size);
    each_part(parts, [&](int64_t w, int64_t part) {
      float* mine = dU ? dU + w * conv.dU_size() : nullptr;
      bool any = false;
      for (int64_t i = parts.begin(part); i < parts.end(part); i++)
        if (finite[i] == 0)
          any |= conv.chunk(i, false, packed_direct, direct + w * conv.direct_size, scratch + w * conv.scratch_size(),
                            sums, part, mine, any);
      if (mine && any) conv.write_taps(mine, taps + part * conv.taps_size(), true);
    });
  }
  sums.finish(op.norm, op.shape.rows(), op.dnorm);
  if (taps) sum_flipped(taps, parts.count, op.G, op.C, channels, op.dweight);
}

void backward(const Conv3x3Bwd& op, int64_t channels, Workspace& workspace) {
  if (large_tiles(op.shape, op.C, op.G)) backward<3>(op, channels, workspace);
  else backward<2>(op, channels, workspace);
}

}  // namespace
#endif

void bn_relu_conv3x3_bwd(const Conv3x3Bwd& op, Workspace& workspace) {
  if (op.shape.rows() > kFewRows) return backward(op, op.C, workspace);
  divide_channels(op.C, [&](int64_t first, int64_t last) {
    Conv3x3Bwd slice = op;
    slice.C = last - first;
    slice.x.data += first;
    slice.norm = channels_from(op.norm, first);
    slice.weight.data += first * op.weight.stride[1];
    slice.u.data += first;
    slice.dnorm = channels_from(op.dnorm, first);
    if (op.dweight) slice.dweight += first * 9;
    backward(slice, op.C, workspace);
  });
}

}  // namespace densenet_fast::cpu::DENSENET_FAST_KERNELS
