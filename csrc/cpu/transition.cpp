// BN-ReLU, 2x2 average, conv1x1: the average is taken while the rows are normalised, before the convolution.
// Contract: densenet_fast/contract/operations.py. An odd last row or column of x is left out and gets dx = 0.
#include "bn_relu.h"
#include "sums.h"
#include "conv1x1_fwd.h"

namespace densenet_fast::cpu::DENSENET_FAST_KERNELS {

namespace {

// The four pixels, in [0, N*H*W), that pooled pixel r averages.
struct PoolWindow {
  int64_t pixel[4];
  PoolWindow(const Shape& shape, int64_t r) {
    const int64_t h = shape.H / 2, w = shape.W / 2, image = r / (h * w), q = r % (h * w);
    pixel[0] = (image * shape.H + q / w * 2) * shape.W + q % w * 2;
    pixel[1] = pixel[0] + 1;
    pixel[2] = pixel[0] + shape.W;
    pixel[3] = pixel[2] + 1;
  }
};

// Has the pixels prefetched that pooled rows [row, row + rows) average, channels [c, c + channels).
void prefetch_windows(Prefetcher& prefetcher, const Shape& shape, ConstMatrix x, int64_t row, int64_t rows, int64_t c,
                      int64_t channels) {
  const int64_t first = PoolWindow(shape, row).pixel[0], last = PoolWindow(shape, row + rows - 1).pixel[3];
  prefetcher.add(x.data + first * x.stride + c, x.stride, last + 1 - first, channels);
}

}  // namespace

void transition_fwd(const TransitionFwd& op, Workspace& workspace) {
  const Shape& shape = op.shape;
  const ConstMatrix x = op.x;
  const Affine bn(op.norm, op.C, workspace);
  conv1x1_fwd(
      shape.N * (shape.H / 2) * (shape.W / 2), op.C, op.K, op.weight, op.y, op.stats, workspace,
      [&](int64_t row, int64_t rows, int64_t c0, int64_t channels, factor* a, int64_t a_stride) {
        for (int64_t r = 0; r < rows; r++, a += a_stride) {
          const PoolWindow window(shape, row + r);
          for_channels(channels, [&](int64_t c, auto lanes) {
            const vec s = load(bn.scale + c0 + c), t = load(bn.shift + c0 + c);
            vec sum = {};
            for (int64_t pixel : window.pixel) sum += relu(load(x.data + pixel * x.stride + c0 + c, lanes) * s + t);
            put(a, a_stride, c, sum * .25f);
          });
        }
      },
      [&](Prefetcher& prefetcher, int64_t row, int64_t rows, int64_t c0, int64_t channels) {
        prefetch_windows(prefetcher, shape, x, row, rows, c0, channels);
      });
}

namespace {

struct TransitionBackward {
  const TransitionBwd& op;
  const Affine bn;
  const float* mean;  // [padded(C)]

  // For pooled rows [row, row + rows) and channels [c0, c0 + channels), from v [rows, v_stride], the gradient at each
  // of the averaged pixels (the weights already contain the quarter): dx, the sums, and the average in panels for
  // dweight.
  void scatter(int64_t row, int64_t rows, int64_t c0, int64_t channels, const float* v, int64_t v_stride, float* a,
               float* sum_v, float* sum_vx) const {
    constexpr int64_t kShort = 4;  // rows of a short sum; a longer one would round less, but what it reads is far apart
    for (int64_t first = 0; first < rows; first += kShort, v += kShort * v_stride) {
      const int64_t count = min(kShort, rows - first);
      int64_t windows[kShort][4];
      for (int64_t r = 0; r < count; r++)
        memcpy(windows[r], PoolWindow(op.shape, row + first + r).pixel, sizeof windows[r]);
      for_channels(channels, [&](int64_t i, auto lanes) {
        const int64_t c = c0 + i;
        const vec s = load(bn.scale + c), t = load(bn.shift + c), m = load(mean + c);
        vec v_sum = {}, vx_sum = {};
        for (int64_t r = 0; r < count; r++) {
          const vec grad = load(v + r * v_stride + i);
          vec average = {};
          for (int64_t pixel : windows[r]) {
            const vec x = load(op.x.data + pixel * op.x.stride + c, lanes);
            const vec pre = x * s + t, kept = relu_backward(grad, pre);
            store(op.dx.data + pixel * op.dx.stride + c, s * kept, lanes);
            v_sum += kept;
            vx_sum += kept * (x - m);
            average += relu(pre);
          }
          store(a + (i / kPanel * rows + first + r) * kPanel + i % kPanel, average * .25f);
        }
        store(sum_v + c, load(sum_v + c) + v_sum);
        store(sum_vx + c, load(sum_vx + c) + vx_sum);
      });
    }
  }

  // dx = 0 at the pixels that the average leaves out.
  void clear_left_out() const {
    const auto [N, H, W] = op.shape;
    const auto clear = [&](int64_t pixel) { memset(op.dx.data + pixel * op.dx.stride, 0, op.C * sizeof(element)); };
    for (int64_t n = 0; n < N; n++) {
      if (H % 2)
        for (int64_t w = 0; w < W; w++) clear((n * H + H - 1) * W + w);
      if (W % 2)
        for (int64_t h = 0; h < H; h++) clear((n * H + h) * W + W - 1);
    }
  }
};

}  // namespace

void transition_bwd(const TransitionBwd& op, Workspace& workspace) {
  constexpr int64_t kRowsTarget = 96, kChannels = 128, kStride = kChannels + kPanel;
  const int64_t C = op.C, K = op.K, Cp = padded(C), M = op.shape.N * (op.shape.H / 2) * (op.shape.W / 2);
  const RowBlocks blocks(M, kRowsTarget, kHeight);
  const Parts parts(blocks.count);
  const TransitionBackward backward{op, Affine(op.norm, C, workspace), padded_copy(op.norm.mean, C, workspace)};
  const factor* packed = pack_inputs(op.weight, K, C, .25f, workspace);
  const int64_t depth = whole_depth(K);
  const int64_t v_size = blocks.block * kStride, a_size = blocks.block * kChannels, dw_size = K * Cp;
  const int64_t floats = v_size + a_size + blocks.block * scratch_of(K);
  const int64_t size = floats + blocks.block * scratch_of_factors(K);
  float* scratch = workspace.floats(parts.workers * size);
  float* dw = op.dweight ? workspace.floats(parts.count * dw_size) : nullptr;
  PartialSums sums(parts.count, C, workspace);

  each_part(parts, [&](int64_t w, int64_t part) {
    const TilesInUse tiles;
    float *v = scratch + w * size, *a = v + v_size, *my_dw = dw + part * dw_size;
    for (int64_t i = parts.begin(part); i < parts.end(part); i++) {
      const int64_t row = blocks.begin(i), rows = blocks.size(i);
      const Floats<const float> dy = read_floats(op.dy.data + row * op.dy.stride, op.dy.stride, rows, K, a + a_size);
      const auto of_product = as_factors(dy.data, dy.stride, rows, K, reinterpret_cast<factor*>(v + floats));
      float *sum_v = sums.begin_chunk(part), *sum_vx = sum_v + sums.offset_vx();
      for (int64_t c0 = 0; c0 < Cp; c0 += kChannels) {
        const int64_t channels = min(kChannels, Cp - c0);
        Prefetcher prefetcher(Prefetcher::steps_of_factors(rows, channels, K) +
                              (dw ? Prefetcher::steps(K, channels, rows) : 0));
        const bool last = c0 + kChannels >= Cp;
        if (!last || i + 1 < parts.end(part)) {
          const int64_t next = last ? i + 1 : i, c = last ? 0 : c0 + kChannels, count = min(kChannels, C - c);
          prefetch_windows(prefetcher, op.shape, op.x, blocks.begin(next), blocks.size(next), c, count);
          prefetch_windows(prefetcher, op.shape, op.dx, blocks.begin(next), blocks.size(next), c, count);
        }
        gemm_nn(of_product.data, of_product.stride, packed + c0 * depth, depth * kPanel, v, kStride, rows, channels,
                depth, false, &prefetcher);
        backward.scatter(row, rows, c0, min(channels, C - c0), v, kStride, a, sum_v, sum_vx);
        if (dw)
          gemm_tn(dy.data, dy.stride, a, kPanel, rows * kPanel, my_dw + c0, Cp, K, channels, rows,
                  i > parts.begin(part), &prefetcher);
      }
      sums.end_chunk(part);
    }
  });
  backward.clear_left_out();
  sums.finish(op.norm, op.shape.rows(), op.dnorm);
  if (dw) add_parts(dw, parts.count, K, C, Cp, op.dweight, C);
}

}  // namespace densenet_fast::cpu::DENSENET_FAST_KERNELS
