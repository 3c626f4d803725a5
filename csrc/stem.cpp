// Entries of the stem: BN-ReLU and maximum pooling.
#include "entry.h"

namespace densenet_fast {
namespace {

Shape pooled(const Shape& shape) { return {shape.N, (shape.H + 1) / 2, (shape.W + 1) / 2}; }

template <class Device>
void stem_fwd(const contract::StemFwd& a) {
  Arguments check(a.kName, Device::kOnCuda, a.x);
  typename Device::StemFwd op{};
  op.shape = check.shape("x", a.x);
  op.C = a.x.size(1);
  op.x = check.image("x", a.x, op.shape, op.C);
  op.norm = check.norm(a.norm, op.C);
  op.y = check.image("y", a.y, pooled(op.shape), op.C);
  check.disjoint("y", op.y, pooled(op.shape).rows(), op.C, "x", op.x, op.shape.rows(), op.C);
  op.stats = check.stats(a.stats, op.C);

  typename Device::Context context(check);
  Device::kernels().stem_fwd(op, context);
}

template <class Device>
void stem_bwd(const contract::StemBwd& a) {
  Arguments check(a.kName, Device::kOnCuda, a.x);
  typename Device::StemBwd op{};
  op.shape = check.shape("x", a.x);
  op.C = a.x.size(1);
  op.x = check.image("x", a.x, op.shape, op.C);
  op.norm = check.norm(a.norm, op.C);
  op.dy = check.image("dy", a.dy, pooled(op.shape), op.C);
  op.dx = check.image("dx", a.dx, op.shape, op.C);
  const int64_t M = op.shape.rows();
  check.disjoint("dx", op.dx, M, op.C, "x", op.x, M, op.C);
  check.disjoint("dx", op.dx, M, op.C, "dy", op.dy, pooled(op.shape).rows(), op.C);
  op.dnorm = check.norm_gradient(a.dnorm, op.C);

  typename Device::Context context(check);
  Device::kernels().stem_bwd(op, context);
}

template <class... Devices>
void entries(Library& m) {
  implement<&stem_fwd<Devices>...>(m);
  implement<&stem_bwd<Devices>...>(m);
}

DENSENET_FAST_REGISTER(entries)

}  // namespace
}  // namespace densenet_fast
