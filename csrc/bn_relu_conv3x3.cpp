// Entries of densenet_fast/ops/bn_relu_conv3x3.py.
#include "arguments.h"

namespace densenet_fast {
namespace {

template <class Device>
void bn_relu_conv3x3_fwd(const Tensor& x, const Tensor& mean, const Tensor& var, const MaybeTensor& gamma,
                         const MaybeTensor& beta, double eps, const Tensor& weight, double drop_rate,
                         const MaybeTensor& seed, const Tensor& y, const MaybeTensor& y_mean,
                         const MaybeTensor& y_var) {
  Arguments check("bn_relu_conv3x3_fwd", Device::kPlace, x);
  typename Device::Conv3x3Fwd op{};
  op.shape = check.shape("x", x);
  op.C = x.size(1);
  op.x = check.image("x", x, op.shape, op.C);
  op.norm = check.norm(mean, var, gamma, beta, eps, op.C);
  check.weight(op.weight, "weight", weight, op.C, 3);
  op.G = weight.size(0);
  op.dropout = check.dropout(drop_rate, seed);
  op.y = check.image("y", y, op.shape, op.G);
  check.disjoint("y", op.y, op.shape.rows(), op.G, "x", op.x, op.shape.rows(), op.C);
  op.stats = check.written_stats(y_mean, y_var, op.G);

  typename Device::Context context(check);
  Device::kernels().bn_relu_conv3x3_fwd(op, context);
}

template <class Device>
std::tuple<Tensor, Tensor, Tensor, Tensor> bn_relu_conv3x3_bwd(
    const Tensor& dy, const Tensor& y, const Tensor& y_mean, const Tensor& y_a, const Tensor& y_b, const Tensor& x,
    const Tensor& mean, const Tensor& var, const MaybeTensor& gamma, const MaybeTensor& beta, double eps,
    const Tensor& weight, double drop_rate, const MaybeTensor& seed, bool batch_stats, const MaybeTensor& dx,
    const Tensor& a, const Tensor& b, bool wgrad) {
  Arguments check("bn_relu_conv3x3_bwd", Device::kPlace, x);
  typename Device::Conv3x3Bwd op{};
  op.shape = check.shape("x", x);
  op.C = x.size(1);
  op.x = check.image("x", x, op.shape, op.C);
  op.norm = check.norm(mean, var, gamma, beta, eps, op.C);
  check.weight(op.weight, "weight", weight, op.C, 3);
  op.G = weight.size(0);
  op.dropout = check.dropout(drop_rate, seed);
  op.dy = check.image("dy", dy, op.shape, op.G);
  op.y = check.image("y", y, op.shape, op.G);
  op.correction_y = check.correction("y_", y_mean, y_a, y_b, op.G);
  op.dnorm = check.norm_gradient(a, b, op.C, batch_stats);
  op.accumulate = dx.has_value();
  if (dx) {
    const int64_t M = op.shape.rows();
    op.u = check.image("dx", *dx, op.shape, op.C);
    check.disjoint("dx", op.u, M, op.C, "x", op.x, M, op.C);
    check.disjoint("dx", op.u, M, op.C, "dy", op.dy, M, op.G);
  }

  const Tensor u = dx ? check.new_weight(weight, false) : check.new_image(op.shape.N, op.C, op.shape.H, op.shape.W);
  if (!dx) op.u = check.image("u", u, op.shape, op.C);
  const VectorPair dnorm(check, op.C);
  const Tensor dweight = check.new_weight(weight, wgrad);
  dnorm.hold(op.dnorm);
  hold(op.dweight, dweight, wgrad);
  typename Device::Context context(check);
  Device::kernels().bn_relu_conv3x3_bwd(op, context);
  return {u, dnorm.first, dnorm.second, dweight};
}

template <class Device>
void entries(Library& m) {
  m.impl("bn_relu_conv3x3_fwd.native", TORCH_BOX(&bn_relu_conv3x3_fwd<Device>));
  m.impl("bn_relu_conv3x3_bwd.native", TORCH_BOX(&bn_relu_conv3x3_bwd<Device>));
}

DENSENET_FAST_REGISTER(entries)

}  // namespace
}  // namespace densenet_fast
