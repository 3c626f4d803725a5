// Entries of the transition: BN-ReLU, 1x1 convolution and average pooling.
#include "entry.h"

namespace densenet_fast {
namespace {

// The shape of y, whose images are half as large as x's.
Shape pooled(const Arguments& check, const Shape& shape) {
  if (shape.H < 2 || shape.W < 2)
    check.refuse("sizes of x", "an image of " + std::to_string(shape.H) + "x" + std::to_string(shape.W),
                 "at least 2x2");
  return {shape.N, shape.H / 2, shape.W / 2};
}

template <class Device>
void transition_fwd(const contract::TransitionFwd& a) {
  Arguments check(a.kName, Device::kOnCuda, a.x);
  typename Device::TransitionFwd op{};
  op.shape = check.shape("x", a.x);
  op.C = a.x.size(1);
  op.x = check.image("x", a.x, op.shape, op.C);
  const Shape of_y = pooled(check, op.shape);
  op.norm = check.norm(a.norm, op.C);
  check.weight(op.weight, "weight", a.weight, op.C, 1);
  op.K = a.weight.size(0);
  op.y = check.image("y", a.y, of_y, op.K);
  check.disjoint("y", op.y, of_y.rows(), op.K, "x", op.x, op.shape.rows(), op.C);
  op.stats = check.stats(a.stats, op.K);

  typename Device::Context context(check);
  Device::kernels().transition_fwd(op, context);
}

template <class Device>
void transition_bwd(const contract::TransitionBwd& a) {
  Arguments check(a.kName, Device::kOnCuda, a.x);
  typename Device::TransitionBwd op{};
  op.shape = check.shape("x", a.x);
  op.C = a.x.size(1);
  op.x = check.image("x", a.x, op.shape, op.C);
  const Shape of_y = pooled(check, op.shape);
  op.norm = check.norm(a.norm, op.C);
  check.weight(op.weight, "weight", a.weight, op.C, 1);
  op.K = a.weight.size(0);
  op.dy = check.image("dy", a.dy, of_y, op.K);
  op.dx = check.image("dx", a.dx, op.shape, op.C);
  const int64_t M = op.shape.rows();
  check.disjoint("dx", op.dx, M, op.C, "x", op.x, M, op.C);
  check.disjoint("dx", op.dx, M, op.C, "dy", op.dy, of_y.rows(), op.K);
  op.dnorm = check.norm_gradient(a.dnorm, op.C);
  check.written_weight(op.dweight, "dweight", a.dweight, op.K, op.C, 1);

  typename Device::Context context(check);
  Device::kernels().transition_bwd(op, context);
}

template <class... Devices>
void entries(Library& m) {
  implement<&transition_fwd<Devices>...>(m);
  implement<&transition_bwd<Devices>...>(m);
}

DENSENET_FAST_REGISTER(entries)

}  // namespace
}  // namespace densenet_fast
