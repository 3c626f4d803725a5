// Entry of densenet_fast/ops/bottleneck.py: the two kernels of a layer with z in scratch.
#include "arguments.h"

namespace densenet_fast {
namespace {

template <class Device>
void bottleneck_infer(const Tensor& x, const Tensor& mean, const Tensor& var, const MaybeTensor& gamma,
                      const MaybeTensor& beta, double eps, const Tensor& weight1, const Tensor& mean2,
                      const Tensor& var2, const MaybeTensor& gamma2, const MaybeTensor& beta2, double eps2,
                      const Tensor& weight2, const Tensor& y) {
  Arguments check("bottleneck_infer", Device::kPlace, x);
  const Shape shape = check.shape("x", x);
  typename Device::Conv1x1Fwd op1{};
  op1.M = shape.rows();
  op1.C = x.size(1);
  op1.x = check.image("x", x, shape, op1.C);
  op1.norm = check.norm(mean, var, gamma, beta, eps, op1.C);
  check.weight(op1.weight, "weight1", weight1, op1.C, 1);
  op1.K = weight1.size(0);
  typename Device::Conv3x3Fwd op2{};
  op2.shape = shape;
  op2.C = op1.K;
  op2.norm = check.norm(mean2, var2, gamma2, beta2, eps2, op2.C, "2");
  check.weight(op2.weight, "weight2", weight2, op2.C, 3);
  op2.G = weight2.size(0);
  op2.y = check.image("y", y, shape, op2.G);
  check.disjoint("y", op2.y, op1.M, op2.G, "x", op1.x, op1.M, op1.C);

  typename Device::Context context(check);
  op1.z = context.matrix(op1.M, op1.K);
  op2.x = op1.z;
  {
    typename Device::Context of_op1(check);
    Device::kernels().bn_relu_conv1x1_fwd(op1, of_op1);
  }
  Device::kernels().bn_relu_conv3x3_fwd(op2, context);
}

template <class Device>
void entries(Library& m) {
  m.impl("bottleneck_infer.native", TORCH_BOX(&bottleneck_infer<Device>));
}

DENSENET_FAST_REGISTER(entries)

}  // namespace
}  // namespace densenet_fast
