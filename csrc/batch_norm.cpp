// Entries of densenet_fast/ops/batch_norm.py. Those that touch only vectors are computed here.
#include "arguments.h"

namespace densenet_fast {
namespace {

template <class Device>
std::tuple<Tensor, Tensor> channel_stats(const Tensor& x) {
  Arguments check("channel_stats", Device::kPlace, x);
  const Shape shape = check.shape("x", x);
  typename Device::ChannelStats op{};
  op.M = shape.rows();
  op.C = x.size(1);
  op.x = check.image("x", x, shape, op.C);

  const VectorPair stats(check, op.C);
  op.stats = stats.stats();
  typename Device::Context context(check);
  Device::kernels().channel_stats(op, context);
  return {stats.first, stats.second};
}

template <class Device>
Tensor bn_bwd_apply(const Tensor& v, const Tensor& x, const Tensor& mean, const Tensor& a, const Tensor& b) {
  Arguments check("bn_bwd_apply", Device::kPlace, x);
  const Shape shape = check.shape("x", x);
  typename Device::BnBwdApply op{};
  op.M = shape.rows();
  op.C = x.size(1);
  op.x = check.image("x", x, shape, op.C);
  op.v = check.image("v", v, shape, op.C);
  op.correction = check.correction("", mean, a, b, op.C);

  const Tensor dx = check.new_image(shape.N, op.C, shape.H, shape.W);
  op.dx = check.image("dx", dx, shape, op.C);
  typename Device::Context context(check);
  Device::kernels().bn_bwd_apply(op, context);
  return dx;
}

// running += momentum * (batch - running) for one norm; running may have another dtype than the batch's statistics.
template <class running_t>
void update(const Tensor& running, const float* batch, double momentum, double correction) {
  running_t* r = running.mutable_data_ptr<running_t>();
  const int64_t C = running.numel();
  for (int64_t c = 0; c < C; c++) {
    const double old = static_cast<double>(r[c]);
    const double updated = old + momentum * (correction * batch[c] - old);
    if constexpr (std::is_same_v<running_t, double>) r[c] = updated;
    else r[c] = static_cast<running_t>(static_cast<float>(updated));
  }
}

void update_any(const Tensor& running, const float* batch, double momentum, double correction) {
  switch (running.scalar_type()) {
    case ScalarType::Double: return update<double>(running, batch, momentum, correction);
    case ScalarType::Half: return update<torch::headeronly::Half>(running, batch, momentum, correction);
    case ScalarType::BFloat16: return update<torch::headeronly::BFloat16>(running, batch, momentum, correction);
    default: return update<float>(running, batch, momentum, correction);
  }
}

struct NormUpdate {
  Tensor running_mean, running_var;
  const float *mean, *var;  // [C]
  double momentum, unbias;  // unbias = count / (count - 1)
};

void update_running_stats_on(const CpuDevice&, const Arguments&, const std::vector<NormUpdate>& norms) {
  for (const NormUpdate& n : norms) {
    update_any(n.running_mean, n.mean, n.momentum, 1);
    update_any(n.running_var, n.var, n.momentum, n.unbias);
  }
}

#ifdef DENSENET_FAST_CUDA
cuda::RunningType running_type(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Double: return cuda::RunningType::kDouble;
    case ScalarType::Half: return cuda::RunningType::kHalf;
    case ScalarType::BFloat16: return cuda::RunningType::kBFloat16;
    default: return cuda::RunningType::kFloat;
  }
}

void update_running_stats_on(const CudaDevice&, const Arguments& check, const std::vector<NormUpdate>& norms) {
  std::vector<cuda::RunningStats> table;
  for (const NormUpdate& n : norms)
    table.push_back({n.running_mean.mutable_data_ptr(), n.running_var.mutable_data_ptr(), n.mean, n.var,
                     static_cast<int32_t>(n.running_mean.numel()), running_type(n.running_mean),
                     running_type(n.running_var), n.momentum, n.unbias});
  CudaDevice::update_running_stats(table, CudaDevice::Context(check));
}
#endif

void check_running(const Arguments& check, const char* name, const Tensor& t, int64_t C) {
  const ScalarType dtype = t.scalar_type();
  check.same_device(name, t);
  if (dtype != ScalarType::Float && dtype != ScalarType::Double && dtype != ScalarType::Half &&
      dtype != ScalarType::BFloat16)
    check.refuse(std::string("dtype of ") + name, torch::headeronly::toString(dtype), "a floating dtype");
  if (t.numel() != C || !t.is_contiguous())
    check.refuse(std::string("sizes of ") + name, std::to_string(t.numel()) + " values",
                 std::to_string(C) + " contiguous ones");
}

template <class Device>
void update_running_stats(std::vector<Tensor> running_mean, std::vector<Tensor> running_var, std::vector<Tensor> mean,
                          std::vector<Tensor> var, std::vector<int64_t> count, std::vector<double> momentum) {
  if (mean.empty()) return;
  Arguments check("update_running_stats", Device::kPlace, mean[0]);
  const size_t norms = running_mean.size();
  for (size_t size : {running_var.size(), mean.size(), var.size(), count.size(), momentum.size()})
    if (size != norms) check.refuse("length of a list", std::to_string(size), std::to_string(norms));
  std::vector<NormUpdate> updates;
  for (size_t i = 0; i < norms; i++) {
    const int64_t C = running_mean[i].numel();
    check_running(check, "running_mean", running_mean[i], C);
    check_running(check, "running_var", running_var[i], C);
    if (count[i] < 2) check.refuse("count", std::to_string(count[i]), "at least 2");
    const double n = static_cast<double>(count[i]);
    updates.push_back({running_mean[i], running_var[i], check.vector("mean", mean[i], C),
                       check.vector("var", var[i], C), momentum[i], n / (n - 1)});
  }
  update_running_stats_on(Device(), check, updates);
}

template <class Device>
void entries(Library& m) {
  m.impl("channel_stats.native", TORCH_BOX(&channel_stats<Device>));
  m.impl("bn_bwd_apply.native", TORCH_BOX(&bn_bwd_apply<Device>));
  m.impl("update_running_stats.native", TORCH_BOX(&update_running_stats<Device>));
}

DENSENET_FAST_REGISTER(entries)

}  // namespace
}  // namespace densenet_fast
