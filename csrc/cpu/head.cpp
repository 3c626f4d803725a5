// The final BN-ReLU and global average. Contract: densenet_fast/contract/operations.py.
#include "bn_relu.h"
#include "sums.h"

namespace densenet_fast::cpu::DENSENET_FAST_KERNELS {

namespace {

constexpr int64_t kPixels = 32;  // pixels that are summed up before the sum is added to a longer one
constexpr int64_t kSums = 4;     // side by side, into which the backward divides a chunk's pixels

}  // namespace

void head_fwd(const HeadFwd& op, Workspace& workspace) {
  const int64_t pixels = op.shape.H * op.shape.W;
  const Affine bn(op.norm, op.C, workspace);
  parallel_ranges(op.shape.N, 1, [&](int64_t first, int64_t last) {
    for (int64_t n = first; n < last; n++)
      for_channels(op.C, [&](int64_t c, auto lanes) {
        const vec s = load(bn.scale + c), t = load(bn.shift + c);
        const element* x = op.x.data + n * pixels * op.x.stride + c;
        vec sum = {};
        for (int64_t p0 = 0; p0 < pixels; p0 += kPixels) {
          vec some = {};
          for (int64_t p = p0; p < min(pixels, p0 + kPixels); p++, x += op.x.stride)
            some += relu(load(x, lanes) * s + t);
          sum += some;
        }
        store(op.y + n * op.C + c, sum / splat(static_cast<float>(pixels)), lanes);
      });
  });
}

void head_bwd(const HeadBwd& op, Workspace& workspace) {
  const int64_t pixels = op.shape.H * op.shape.W, per_image = ceil_div(pixels, kPixels);
  const Affine bn(op.norm, op.C, workspace);
  const float* mean = padded_copy(op.norm.mean, op.C, workspace);
  const Division division(op.shape.N * per_image);
  PartialSums sums(division.workers, op.C, workspace);
  parallel(division.workers, [&](int64_t worker) {
    for (int64_t i = division.begin(worker); i < division.end(worker); i++) {
      const int64_t n = i / per_image, first = i % per_image * kPixels, last = min(pixels, first + kPixels);
      float *sum_v = sums.begin_chunk(worker), *sum_vx = sum_v + sums.offset_vx();
      for_channels(op.C, [&](int64_t c, auto lanes) {
        const vec s = load(bn.scale + c), t = load(bn.shift + c), m = load(mean + c);
        const vec grad = load(op.dy.data + n * op.dy.stride + c, lanes) / splat(static_cast<float>(pixels));
        // The gradient is the same at every pixel, so the rounding errors of one long sum would not cancel.
        vec v_sum[kSums] = {}, vx_sum[kSums] = {};
        for (int64_t p = first; p < last; p++) {
          const vec x = load(op.x.data + (n * pixels + p) * op.x.stride + c, lanes);
          const vec v = relu_backward(grad, x * s + t);
          store(op.dx.data + (n * pixels + p) * op.dx.stride + c, s * v, lanes);
          v_sum[p % kSums] += v;
          vx_sum[p % kSums] += v * (x - m);
        }
        store(sum_v + c, (v_sum[0] + v_sum[1]) + (v_sum[2] + v_sum[3]));
        store(sum_vx + c, (vx_sum[0] + vx_sum[1]) + (vx_sum[2] + vx_sum[3]));
      });
      sums.end_chunk(worker);
    }
  });
  sums.finish(op.norm, op.shape.rows(), op.dnorm);
}

}  // namespace densenet_fast::cpu::DENSENET_FAST_KERNELS
