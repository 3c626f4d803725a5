// Entries of densenet_fast/ops/stem.py.
#include "arguments.h"

namespace densenet_fast {
namespace {

std::tuple<Tensor, Tensor, Tensor> stem_fwd(const Tensor& x, const Tensor& mean, const Tensor& var,
                                            const MaybeTensor& gamma, const MaybeTensor& beta, double eps,
                                            bool stats) {
  Arguments check("stem_fwd");
  cpu::StemFwd op{};
  op.shape = check.shape("x", x);
  op.C = x.size(1);
  op.x = check.image("x", x, op.shape, op.C);
  op.norm = check.norm(mean, var, gamma, beta, eps, op.C);

  const Tensor y = new_image(op.shape.N, op.C, (op.shape.H + 1) / 2, (op.shape.W + 1) / 2);
  const VectorPair y_stats(op.C, stats);
  op.y = {data(y), op.C};
  op.stats = y_stats.stats();
  TensorWorkspace workspace;
  kernels().stem_fwd(op, workspace);
  return {y, y_stats.first, y_stats.second};
}

std::tuple<Tensor, Tensor> stem_bwd(const Tensor& dy, const Tensor& x, const Tensor& mean, const Tensor& var,
                                    const MaybeTensor& gamma, const MaybeTensor& beta, double eps, const Tensor& dx) {
  Arguments check("stem_bwd");
  cpu::StemBwd op{};
  op.shape = check.shape("x", x);
  op.C = x.size(1);
  op.x = check.image("x", x, op.shape, op.C);
  op.norm = check.norm(mean, var, gamma, beta, eps, op.C);
  const cpu::Shape pooled{op.shape.N, (op.shape.H + 1) / 2, (op.shape.W + 1) / 2};
  op.dy = check.image("dy", dy, pooled, op.C);
  op.dx = check.written_image("dx", dx, op.shape, op.C);
  const int64_t M = op.shape.rows();
  check.disjoint("dx", op.dx, M, op.C, "x", op.x, M, op.C);
  check.disjoint("dx", op.dx, M, op.C, "dy", op.dy, pooled.rows(), op.C);

  const VectorPair sums(op.C);
  op.sums = sums.sums();
  TensorWorkspace workspace;
  kernels().stem_bwd(op, workspace);
  return {sums.first, sums.second};
}

STABLE_TORCH_LIBRARY_IMPL(densenet_fast, CPU, m) {
  m.impl("stem_fwd.native", TORCH_BOX(&stem_fwd));
  m.impl("stem_bwd.native", TORCH_BOX(&stem_bwd));
}

}  // namespace
}  // namespace densenet_fast
