// Entries of densenet_fast/ops/transition.py.
#include "arguments.h"

namespace densenet_fast {
namespace {

void check_poolable(const Arguments& check, const Shape& shape) {
  if (shape.H < 2 || shape.W < 2)
    check.refuse("sizes of x", "an image of " + std::to_string(shape.H) + "x" + std::to_string(shape.W),
                 "at least 2x2");
}

template <class Device>
void transition_fwd(const Tensor& x, const Tensor& mean, const Tensor& var, const MaybeTensor& gamma,
                    const MaybeTensor& beta, double eps, const Tensor& weight, const Tensor& y,
                    const MaybeTensor& y_mean, const MaybeTensor& y_var) {
  Arguments check("transition_fwd", Device::kPlace, x);
  typename Device::TransitionFwd op{};
  op.shape = check.shape("x", x);
  op.C = x.size(1);
  op.x = check.image("x", x, op.shape, op.C);
  check_poolable(check, op.shape);
  op.norm = check.norm(mean, var, gamma, beta, eps, op.C);
  check.weight(op.weight, "weight", weight, op.C, 1);
  op.K = weight.size(0);
  const Shape pooled{op.shape.N, op.shape.H / 2, op.shape.W / 2};
  op.y = check.image("y", y, pooled, op.K);
  check.disjoint("y", op.y, pooled.rows(), op.K, "x", op.x, op.shape.rows(), op.C);
  op.stats = check.written_stats(y_mean, y_var, op.K);

  typename Device::Context context(check);
  Device::kernels().transition_fwd(op, context);
}

template <class Device>
std::tuple<Tensor, Tensor, Tensor> transition_bwd(const Tensor& dy, const Tensor& x, const Tensor& mean,
                                                  const Tensor& var, const MaybeTensor& gamma, const MaybeTensor& beta,
                                                  double eps, const Tensor& weight, bool batch_stats, const Tensor& dx,
                                                  const Tensor& a, const Tensor& b, bool wgrad) {
  Arguments check("transition_bwd", Device::kPlace, x);
  typename Device::TransitionBwd op{};
  op.shape = check.shape("x", x);
  op.C = x.size(1);
  op.x = check.image("x", x, op.shape, op.C);
  check_poolable(check, op.shape);
  op.norm = check.norm(mean, var, gamma, beta, eps, op.C);
  check.weight(op.weight, "weight", weight, op.C, 1);
  op.K = weight.size(0);
  const Shape pooled{op.shape.N, op.shape.H / 2, op.shape.W / 2};
  op.dy = check.image("dy", dy, pooled, op.K);
  op.dx = check.image("dx", dx, op.shape, op.C);
  op.dnorm = check.norm_gradient(a, b, op.C, batch_stats);
  const int64_t M = op.shape.rows();
  check.disjoint("dx", op.dx, M, op.C, "x", op.x, M, op.C);
  check.disjoint("dx", op.dx, M, op.C, "dy", op.dy, pooled.rows(), op.K);

  const VectorPair dnorm(check, op.C);
  const Tensor dweight = check.new_weight(weight, wgrad);
  dnorm.hold(op.dnorm);
  hold(op.dweight, dweight, wgrad);
  typename Device::Context context(check);
  Device::kernels().transition_bwd(op, context);
  return {dnorm.first, dnorm.second, dweight};
}

template <class Device>
void entries(Library& m) {
  m.impl("transition_fwd.native", TORCH_BOX(&transition_fwd<Device>));
  m.impl("transition_bwd.native", TORCH_BOX(&transition_bwd<Device>));
}

DENSENET_FAST_REGISTER(entries)

}  // namespace
}  // namespace densenet_fast
