// Entries of densenet_fast/ops/head.py.
#include "arguments.h"

namespace densenet_fast {
namespace {

template <class Device>
Tensor head_fwd(const Tensor& x, const Tensor& mean, const Tensor& var, const MaybeTensor& gamma,
                const MaybeTensor& beta, double eps) {
  Arguments check("head_fwd", Device::kPlace, x);
  typename Device::HeadFwd op{};
  op.shape = check.shape("x", x);
  op.C = x.size(1);
  op.x = check.image("x", x, op.shape, op.C);
  op.norm = check.norm(mean, var, gamma, beta, eps, op.C);

  const Tensor y = check.new_matrix(op.shape.N, op.C);
  hold(op.y, y);
  typename Device::Context context(check);
  Device::kernels().head_fwd(op, context);
  return y;
}

template <class Device>
std::tuple<Tensor, Tensor> head_bwd(const Tensor& dy, const Tensor& x, const Tensor& mean, const Tensor& var,
                                    const MaybeTensor& gamma, const MaybeTensor& beta, double eps, bool batch_stats,
                                    const Tensor& dx, const Tensor& a, const Tensor& b) {
  Arguments check("head_bwd", Device::kPlace, x);
  typename Device::HeadBwd op{};
  op.shape = check.shape("x", x);
  op.C = x.size(1);
  op.x = check.image("x", x, op.shape, op.C);
  op.norm = check.norm(mean, var, gamma, beta, eps, op.C);
  op.dy = check.matrix("dy", dy, op.shape.N, op.C);
  op.dx = check.image("dx", dx, op.shape, op.C);
  op.dnorm = check.norm_gradient(a, b, op.C, batch_stats);
  check.disjoint("dx", op.dx, op.shape.rows(), op.C, "x", op.x, op.shape.rows(), op.C);

  const VectorPair dnorm(check, op.C);
  dnorm.hold(op.dnorm);
  typename Device::Context context(check);
  Device::kernels().head_bwd(op, context);
  return {dnorm.first, dnorm.second};
}

template <class Device>
void entries(Library& m) {
  m.impl("head_fwd.native", TORCH_BOX(&head_fwd<Device>));
  m.impl("head_bwd.native", TORCH_BOX(&head_bwd<Device>));
}

DENSENET_FAST_REGISTER(entries)

}  // namespace
}  // namespace densenet_fast
