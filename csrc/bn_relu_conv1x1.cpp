// Entries of densenet_fast/ops/bn_relu_conv1x1.py.
#include "arguments.h"

namespace densenet_fast {
namespace {

template <class Device>
std::tuple<Tensor, Tensor, Tensor> bn_relu_conv1x1_fwd(const Tensor& x, const Tensor& mean, const Tensor& var,
                                                       const MaybeTensor& gamma, const MaybeTensor& beta, double eps,
                                                       const Tensor& weight, bool stats) {
  Arguments check("bn_relu_conv1x1_fwd", Device::kPlace, x);
  const Shape shape = check.shape("x", x);
  typename Device::Conv1x1Fwd op{};
  op.M = shape.rows();
  op.C = x.size(1);
  op.x = check.image("x", x, shape, op.C);
  op.norm = check.norm(mean, var, gamma, beta, eps, op.C);
  check.weight(op.weight, "weight", weight, op.C, 1);
  op.K = weight.size(0);

  const Tensor z = check.new_image(shape.N, op.K, shape.H, shape.W);
  const VectorPair z_stats(check, op.K, stats);
  op.z = check.image("z", z, shape, op.K);
  op.stats = z_stats.stats();
  typename Device::Context context(check);
  Device::kernels().bn_relu_conv1x1_fwd(op, context);
  return {z, z_stats.first, z_stats.second};
}

template <class Device>
std::tuple<Tensor, Tensor, Tensor> bn_relu_conv1x1_bwd(const Tensor& u, const Tensor& z, const Tensor& z_mean,
                                                       const Tensor& z_var, const MaybeTensor& z_gamma, double z_eps,
                                                       const Tensor& z_a, const Tensor& z_b, const Tensor& x,
                                                       const Tensor& mean, const Tensor& var, const MaybeTensor& gamma,
                                                       const MaybeTensor& beta, double eps, const Tensor& weight,
                                                       bool batch_stats, const Tensor& dx, const Tensor& a,
                                                       const Tensor& b, bool wgrad) {
  Arguments check("bn_relu_conv1x1_bwd", Device::kPlace, x);
  const Shape shape = check.shape("x", x);
  typename Device::Conv1x1Bwd op{};
  op.M = shape.rows();
  op.C = x.size(1);
  op.x = check.image("x", x, shape, op.C);
  op.norm = check.norm(mean, var, gamma, beta, eps, op.C);
  check.weight(op.weight, "weight", weight, op.C, 1);
  op.K = weight.size(0);
  op.u = check.image("u", u, shape, op.K);
  op.z = check.image("z", z, shape, op.K);
  op.correction2 = check.correction("z_", z_mean, z_a, z_b, op.K);
  op.norm2 = {op.correction2.mean, check.vector("z_var", z_var, op.K), check.vector("z_gamma", z_gamma, op.K), nullptr,
              z_eps};
  op.dx = check.image("dx", dx, shape, op.C);
  op.dnorm = check.norm_gradient(a, b, op.C, batch_stats);
  check.disjoint("dx", op.dx, op.M, op.C, "x", op.x, op.M, op.C);
  check.disjoint("dx", op.dx, op.M, op.C, "u", op.u, op.M, op.K);
  check.disjoint("dx", op.dx, op.M, op.C, "z", op.z, op.M, op.K);

  const VectorPair dnorm(check, op.C);
  const Tensor dweight = check.new_weight(weight, wgrad);
  dnorm.hold(op.dnorm);
  hold(op.dweight, dweight, wgrad);
  typename Device::Context context(check);
  Device::kernels().bn_relu_conv1x1_bwd(op, context);
  return {dnorm.first, dnorm.second, dweight};
}

template <class Device>
void entries(Library& m) {
  m.impl("bn_relu_conv1x1_fwd.native", TORCH_BOX(&bn_relu_conv1x1_fwd<Device>));
  m.impl("bn_relu_conv1x1_bwd.native", TORCH_BOX(&bn_relu_conv1x1_bwd<Device>));
}

DENSENET_FAST_REGISTER(entries)

}  // namespace
}  // namespace densenet_fast
