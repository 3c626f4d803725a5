// Entries of densenet_fast/ops/stem.py.
#include "arguments.h"

namespace densenet_fast {
namespace {

void stem_fwd(const Tensor& x, const Tensor& mean, const Tensor& var, const MaybeTensor& gamma,
              const MaybeTensor& beta, double eps, const Tensor& y, const MaybeTensor& y_mean,
              const MaybeTensor& y_var) {
  Arguments check("stem_fwd");
  cpu::StemFwd op{};
  op.shape = check.shape("x", x);
  op.C = x.size(1);
  op.x = check.image("x", x, op.shape, op.C);
  op.norm = check.norm(mean, var, gamma, beta, eps, op.C);
  const cpu::Shape pooled{op.shape.N, (op.shape.H + 1) / 2, (op.shape.W + 1) / 2};
  op.y = check.written_image("y", y, pooled, op.C);
  check.disjoint("y", op.y, pooled.rows(), op.C, "x", op.x, op.shape.rows(), op.C);
  op.stats = check.written_stats(y_mean, y_var, op.C);

  TensorWorkspace workspace;
  kernels().stem_fwd(op, workspace);
}

std::tuple<Tensor, Tensor> stem_bwd(const Tensor& dy, const Tensor& x, const Tensor& mean, const Tensor& var,
                                    const MaybeTensor& gamma, const MaybeTensor& beta, double eps, bool batch_stats,
                                    const Tensor& dx, const Tensor& a, const Tensor& b) {
  Arguments check("stem_bwd");
  cpu::StemBwd op{};
  op.shape = check.shape("x", x);
  op.C = x.size(1);
  op.x = check.image("x", x, op.shape, op.C);
  op.norm = check.norm(mean, var, gamma, beta, eps, op.C);
  const cpu::Shape pooled{op.shape.N, (op.shape.H + 1) / 2, (op.shape.W + 1) / 2};
  op.dy = check.image("dy", dy, pooled, op.C);
  op.dx = check.written_image("dx", dx, op.shape, op.C);
  op.dnorm = check.norm_gradient(a, b, op.C, batch_stats);
  const int64_t M = op.shape.rows();
  check.disjoint("dx", op.dx, M, op.C, "x", op.x, M, op.C);
  check.disjoint("dx", op.dx, M, op.C, "dy", op.dy, pooled.rows(), op.C);

  const VectorPair dnorm(op.C);
  dnorm.hold(op.dnorm);
  TensorWorkspace workspace;
  kernels().stem_bwd(op, workspace);
  return {dnorm.first, dnorm.second};
}

STABLE_TORCH_LIBRARY_IMPL(densenet_fast, CPU, m) {
  m.impl("stem_fwd.native", TORCH_BOX(&stem_fwd));
  m.impl("stem_bwd.native", TORCH_BOX(&stem_bwd));
}

}  // namespace
}  // namespace densenet_fast
