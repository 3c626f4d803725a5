// BN-ReLU-maxpool 3x3, stride 2, padding 1, in one pass. Contract: densenet_fast/contract/operations.py.
//
// The backward finds the maxima again: the first of equal values in row-major order takes the gradient, as in PyTorch.
#include "bn_relu.h"
#include "statistics.h"
#include "sums.h"

namespace densenet_fast::cpu::DENSENET_FAST_KERNELS {

namespace {

// The window of output pixel (h, w): its maximum of bn(x), before the ReLU, and its position 3 * i + j in the window.
// A NaN wins over every number and over an earlier NaN.
struct Maximum {
  vec value;
  ivec position;

  template <class Lanes>
  DENSENET_FAST_INLINE Maximum(const element* image, int64_t x_stride, const Shape& shape, int64_t h, int64_t w, vec s,
                               vec t, Lanes lanes) {
    value = splat(-__builtin_inff());
    position = ivec{};
    for (int i = 0; i < 3; i++)
      for (int j = 0; j < 3; j++) {
        const int64_t y = 2 * h - 1 + i, x = 2 * w - 1 + j;
        if (y < 0 || y >= shape.H || x < 0 || x >= shape.W) continue;
        const vec p = load(image + (y * shape.W + x) * x_stride, lanes) * s + t;
        const ivec wins = (p > value) | (p != p);
        value = wins ? p : value;
        position = wins ? splat(3 * i + j) : position;
      }
  }
};

}  // namespace

void stem_fwd(const StemFwd& op, Workspace& workspace) {
  const Shape& shape = op.shape;
  const int64_t h_out = ceil_div(shape.H, 2), w_out = ceil_div(shape.W, 2), C = op.C;
  const Affine bn(op.norm, C, workspace);
  const Division division(shape.N * h_out);
  PartialStats partial(op.stats, division.tasks, C, workspace);
  share_tasks(division, workspace, [&](int64_t, int64_t i, bool) {  // one row of the output
    const element* image = op.x.data + i / h_out * shape.H * shape.W * op.x.stride;
    element* y = op.y.data + i * w_out * op.y.stride;
    for (int64_t w = 0; w < w_out; w++)
      for_channels(C, [&](int64_t c, auto lanes) {
        const Maximum m(image + c, op.x.stride, shape, i % h_out, w, load(bn.scale + c), load(bn.shift + c), lanes);
        store(y + w * op.y.stride + c, relu(m.value), lanes);
      });
    if (partial.wanted()) partial.set(i, y, op.y.stride, w_out);
  });
  if (partial.wanted()) partial.merge([&](int64_t) { return w_out; });
}

namespace {

struct StemBackward {
  const StemBwd& op;
  const Affine bn;
  const float* mean;  // [Cp]
  const int64_t h_out, w_out, Cp;

  int64_t row_size() const { return w_out * Cp; }

  // Output row h of an image: the gradient before the ReLU and the position of each maximum, [w_out, Cp].
  void find_maxima(int64_t n, int64_t h, float* grad, float* position) const {
    const element* image = op.x.data + n * op.shape.H * op.shape.W * op.x.stride;
    const element* dy = op.dy.data + (n * h_out + h) * w_out * op.dy.stride;
    for (int64_t w = 0; w < w_out; w++)
      for_channels(op.C, [&](int64_t c, auto lanes) {
        const Maximum m(image + c, op.x.stride, op.shape, h, w, load(bn.scale + c), load(bn.shift + c), lanes);
        store(grad + w * Cp + c, relu_backward(load(dy + w * op.dy.stride + c, lanes), m.value));
        memcpy(position + w * Cp + c, &m.position, sizeof(ivec));
      });
  }

  // Input row y of image n from output rows `y / 2` (grad[0], position[0]) and, for odd y, the next one.
  void gather(int64_t n, int64_t y, float* const grad[2], float* const position[2], float* sum_v, float* sum_vx) const {
    const int64_t W = op.shape.W, row = (n * op.shape.H + y) * W;
    for (int64_t x = 0; x < W; x++)
      for_channels(op.C, [&](int64_t c, auto lanes) {
        vec v = {};
        for (int64_t h = y / 2; h <= (y + 1) / 2 && h < h_out; h++)
          for (int64_t w = x / 2; w <= (x + 1) / 2 && w < w_out; w++) {
            const int64_t from = w * Cp + c, which = h - y / 2;
            const int here = static_cast<int>(3 * (y - 2 * h + 1) + x - 2 * w + 1);
            ivec at;
            memcpy(&at, position[which] + from, sizeof(ivec));
            v += at == splat(here) ? load(grad[which] + from) : vec{};
          }
        const vec centred = load(op.x.data + (row + x) * op.x.stride + c, lanes) - load(mean + c);
        store(op.dx.data + (row + x) * op.dx.stride + c, load(bn.scale + c) * v, lanes);
        store(sum_v + c, load(sum_v + c) + v);
        store(sum_vx + c, load(sum_vx + c) + v * centred);
      });
  }
};

}  // namespace

void stem_bwd(const StemBwd& op, Workspace& workspace) {
  constexpr int64_t kRowsPerTask = 16;  // output rows; one row of maxima is found twice per task
  const int64_t h_out = ceil_div(op.shape.H, 2), w_out = ceil_div(op.shape.W, 2);
  const StemBackward backward{
      op, Affine(op.norm, op.C, workspace), padded_copy(op.norm.mean, op.C, workspace), h_out, w_out, padded(op.C)};
  const int64_t per_image = ceil_div(h_out, kRowsPerTask), size = backward.row_size();
  const Parts parts(op.shape.N * per_image);
  float* scratch = workspace.floats(parts.workers * 4 * size);
  PartialSums sums(parts.count, op.C, workspace);
  each_part(parts, [&](int64_t worker, int64_t part) {
    float* mine = scratch + worker * 4 * size;
    for (int64_t task = parts.begin(part); task < parts.end(part); task++) {
      const int64_t n = task / per_image, first = task % per_image * kRowsPerTask;
      const int64_t last = min(h_out, first + kRowsPerTask);
      float *grad[2] = {mine, mine + size}, *position[2] = {mine + 2 * size, mine + 3 * size};
      backward.find_maxima(n, first, grad[0], position[0]);
      for (int64_t h = first; h < last; h++) {
        float *sum_v = sums.begin_chunk(part), *sum_vx = sum_v + sums.offset_vx();
        if (h + 1 < h_out) backward.find_maxima(n, h + 1, grad[1], position[1]);
        backward.gather(n, 2 * h, grad, position, sum_v, sum_vx);
        if (2 * h + 1 < op.shape.H) backward.gather(n, 2 * h + 1, grad, position, sum_v, sum_vx);
        float* freed = grad[0];
        grad[0] = grad[1], grad[1] = freed;
        freed = position[0];
        position[0] = position[1], position[1] = freed;
        sums.end_chunk(part);
      }
    }
  });
  sums.finish(op.norm, op.shape.rows(), op.dnorm);
}

}  // namespace densenet_fast::cpu::DENSENET_FAST_KERNELS
