// Entries of densenet_fast/ops/stem.py.
#include "arguments.h"

namespace densenet_fast {
namespace {

template <class Device>
void stem_fwd(const Tensor& x, const Tensor& mean, const Tensor& var, const MaybeTensor& gamma, const MaybeTensor& beta,
              double eps, const Tensor& y, const MaybeTensor& y_mean, const MaybeTensor& y_var) {
  Arguments check("stem_fwd", Device::kPlace, x);
  typename Device::StemFwd op{};
  op.shape = check.shape("x", x);
  op.C = x.size(1);
  op.x = check.image("x", x, op.shape, op.C);
  op.norm = check.norm(mean, var, gamma, beta, eps, op.C);
  const Shape pooled{op.shape.N, (op.shape.H + 1) / 2, (op.shape.W + 1) / 2};
  op.y = check.image("y", y, pooled, op.C);
  check.disjoint("y", op.y, pooled.rows(), op.C, "x", op.x, op.shape.rows(), op.C);
  op.stats = check.written_stats(y_mean, y_var, op.C);

  typename Device::Context context(check);
  Device::kernels().stem_fwd(op, context);
}

template <class Device>
std::tuple<Tensor, Tensor> stem_bwd(const Tensor& dy, const Tensor& x, const Tensor& mean, const Tensor& var,
                                    const MaybeTensor& gamma, const MaybeTensor& beta, double eps, bool batch_stats,
                                    const Tensor& dx, const Tensor& a, const Tensor& b) {
  Arguments check("stem_bwd", Device::kPlace, x);
  typename Device::StemBwd op{};
  op.shape = check.shape("x", x);
  op.C = x.size(1);
  op.x = check.image("x", x, op.shape, op.C);
  op.norm = check.norm(mean, var, gamma, beta, eps, op.C);
  const Shape pooled{op.shape.N, (op.shape.H + 1) / 2, (op.shape.W + 1) / 2};
  op.dy = check.image("dy", dy, pooled, op.C);
  op.dx = check.image("dx", dx, op.shape, op.C);
  op.dnorm = check.norm_gradient(a, b, op.C, batch_stats);
  const int64_t M = op.shape.rows();
  check.disjoint("dx", op.dx, M, op.C, "x", op.x, M, op.C);
  check.disjoint("dx", op.dx, M, op.C, "dy", op.dy, pooled.rows(), op.C);

  const VectorPair dnorm(check, op.C);
  dnorm.hold(op.dnorm);
  typename Device::Context context(check);
  Device::kernels().stem_bwd(op, context);
  return {dnorm.first, dnorm.second};
}

template <class Device>
void entries(Library& m) {
  m.impl("stem_fwd.native", TORCH_BOX(&stem_fwd<Device>));
  m.impl("stem_bwd.native", TORCH_BOX(&stem_bwd<Device>));
}

DENSENET_FAST_REGISTER(entries)

}  // namespace
}  // namespace densenet_fast
