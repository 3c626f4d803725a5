// Entries of densenet_fast/ops/head.py.
#include "arguments.h"

namespace densenet_fast {
namespace {

Tensor head_fwd(const Tensor& x, const Tensor& mean, const Tensor& var, const MaybeTensor& gamma,
                const MaybeTensor& beta, double eps) {
  Arguments check("head_fwd");
  cpu::HeadFwd op{};
  op.shape = check.shape("x", x);
  op.C = x.size(1);
  op.x = check.image("x", x, op.shape, op.C);
  op.norm = check.norm(mean, var, gamma, beta, eps, op.C);

  const Tensor y = torch::stable::empty({op.shape.N, op.C}, torch::headeronly::ScalarType::Float);
  op.y = data(y);
  TensorWorkspace workspace;
  kernels().head_fwd(op, workspace);
  return y;
}

std::tuple<Tensor, Tensor> head_bwd(const Tensor& dy, const Tensor& x, const Tensor& mean, const Tensor& var,
                                    const MaybeTensor& gamma, const MaybeTensor& beta, double eps, bool batch_stats,
                                    const Tensor& dx, const Tensor& a, const Tensor& b) {
  Arguments check("head_bwd");
  cpu::HeadBwd op{};
  op.shape = check.shape("x", x);
  op.C = x.size(1);
  op.x = check.image("x", x, op.shape, op.C);
  op.norm = check.norm(mean, var, gamma, beta, eps, op.C);
  op.dy = {check.matrix("dy", dy, op.shape.N, op.C), op.C};
  op.dx = check.written_image("dx", dx, op.shape, op.C);
  op.dnorm = check.norm_gradient(a, b, op.C, batch_stats);
  check.disjoint("dx", op.dx, op.shape.rows(), op.C, "x", op.x, op.shape.rows(), op.C);

  const VectorPair dnorm(op.C);
  dnorm.hold(op.dnorm);
  TensorWorkspace workspace;
  kernels().head_bwd(op, workspace);
  return {dnorm.first, dnorm.second};
}

STABLE_TORCH_LIBRARY_IMPL(densenet_fast, CPU, m) {
  m.impl("head_fwd.native", TORCH_BOX(&head_fwd));
  m.impl("head_bwd.native", TORCH_BOX(&head_bwd));
}

}  // namespace
}  // namespace densenet_fast
