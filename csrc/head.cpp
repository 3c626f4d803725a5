// Entries of the head: BN-ReLU and global average pooling.
#include "entry.h"

namespace densenet_fast {
namespace {

template <class Device>
void head_fwd(const contract::HeadFwd& a) {
  Arguments check(a.kName, Device::kOnCuda, a.x);
  typename Device::HeadFwd op{};
  op.shape = check.shape("x", a.x);
  op.C = a.x.size(1);
  op.x = check.image("x", a.x, op.shape, op.C);
  op.norm = check.norm(a.norm, op.C);
  op.y = typename Device::Matrix(check.written_matrix("y", a.y, op.shape.N, op.C)).data;

  typename Device::Context context(check);
  Device::kernels().head_fwd(op, context);
}

template <class Device>
void head_bwd(const contract::HeadBwd& a) {
  Arguments check(a.kName, Device::kOnCuda, a.x);
  typename Device::HeadBwd op{};
  op.shape = check.shape("x", a.x);
  op.C = a.x.size(1);
  op.x = check.image("x", a.x, op.shape, op.C);
  op.norm = check.norm(a.norm, op.C);
  op.dy = check.matrix("dy", a.dy, op.shape.N, op.C);
  op.dx = check.image("dx", a.dx, op.shape, op.C);
  check.disjoint("dx", op.dx, op.shape.rows(), op.C, "x", op.x, op.shape.rows(), op.C);
  op.dnorm = check.norm_gradient(a.dnorm, op.C);

  typename Device::Context context(check);
  Device::kernels().head_bwd(op, context);
}

template <class... Devices>
void entries(Library& m) {
  implement<&head_fwd<Devices>...>(m);
  implement<&head_bwd<Devices>...>(m);
}

DENSENET_FAST_REGISTER(entries)

}  // namespace
}  // namespace densenet_fast
