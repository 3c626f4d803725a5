// The final BN-ReLU and global average. Contract: densenet_fast/ops/head.py.
#include "work.h"

namespace densenet_fast::cpu::DENSENET_FAST_ISA {

namespace {

constexpr int64_t kPixels = 64;  // pixels whose values are summed before they join the image's sum

}  // namespace

void head_fwd(const HeadFwd& op, Workspace& workspace) {
  const int64_t pixels = op.shape.H * op.shape.W;
  const Affine bn(op.norm, op.C, workspace);
  parallel_ranges(op.shape.N, 1, [&](int64_t first, int64_t last) {
    for (int64_t n = first; n < last; n++)
      for_channels(op.C, [&](int64_t c, auto part) {
        const vec s = load(bn.scale + c), t = load(bn.shift + c);
        const float* x = op.x.data + n * pixels * op.x.stride + c;
        vec sum = {};
        for (int64_t p0 = 0; p0 < pixels; p0 += kPixels) {
          vec some = {};
          for (int64_t p = p0; p < least(pixels, p0 + kPixels); p++, x += op.x.stride) some += relu(load(x, part) * s + t);
          sum += some;
        }
        store(op.y + n * op.C + c, sum / splat(static_cast<float>(pixels)), part);
      });
  });
}

void head_bwd(const HeadBwd& op, Workspace& workspace) {
  const int64_t pixels = op.shape.H * op.shape.W, per_image = ceil_div(pixels, kPixels);
  const Affine bn(op.norm, op.C, workspace);
  const float* mean = pad(op.norm.mean, op.C, workspace);
  const Division division(op.shape.N * per_image);
  PartialSums sums(division.workers, op.C, workspace);
  parallel(division.workers, [&](int64_t worker) {
    for (int64_t i = division.begin(worker); i < division.end(worker); i++) {
      const int64_t n = i / per_image, first = i % per_image * kPixels, last = least(pixels, first + kPixels);
      float *sum_v = sums.begin_chunk(worker), *sum_vx = sum_v + sums.offset_vx();
      for (int64_t p = n * pixels + first; p < n * pixels + last; p++) {
        const float *x = op.x.data + p * op.x.stride, *dy = op.dy.data + n * op.dy.stride;
        float* dx = op.dx.data + p * op.dx.stride;
        for_channels(op.C, [&](int64_t c, auto part) {
          const vec xv = load(x + c, part), s = load(bn.scale + c);
          const vec grad = load(dy + c, part) / splat(static_cast<float>(pixels));
          const vec v = keep(grad, xv * s + load(bn.shift + c));
          store(dx + c, s * v, part);
          store(sum_v + c, load(sum_v + c) + v);
          store(sum_vx + c, load(sum_vx + c) + v * (xv - load(mean + c)));
        });
      }
      sums.end_chunk(worker);
    }
  });
  sums.finish(op.sums);
}

}  // namespace densenet_fast::cpu::DENSENET_FAST_ISA
