// Entries of what norms need beside their convolutions. Those that touch only vectors are computed here.
#include "entry.h"

namespace densenet_fast {
namespace {

template <class Device>
void channel_stats(const contract::ChannelStats& a) {
  Arguments check(a.kName, Device::kOnCuda, a.x);
  const Shape shape = check.shape("x", a.x);
  typename Device::ChannelStats op{};
  op.M = shape.rows();
  op.C = a.x.size(1);
  op.x = check.image("x", a.x, shape, op.C);
  op.stats = check.stats(a.stats, op.C);

  typename Device::Context context(check);
  Device::kernels().channel_stats(op, context);
}

template <class Device>
void bn_bwd_apply(const contract::BnBwdApply& a) {
  Arguments check(a.kName, Device::kOnCuda, a.x);
  const Shape shape = check.shape("x", a.x);
  typename Device::BnBwdApply op{};
  op.M = shape.rows();
  op.C = a.x.size(1);
  op.x = check.image("x", a.x, shape, op.C);
  op.v = check.image("v", a.v, shape, op.C);
  op.correction = check.correction(a.mean, a.correction, op.C);
  op.dx = check.image("dx", a.dx, shape, op.C);
  check.disjoint("dx", op.dx, op.M, op.C, "x", op.x, op.M, op.C);
  const bool in_place = op.dx.data == op.v.data && op.dx.stride == op.v.stride;
  if (!in_place) check.disjoint("dx", op.dx, op.M, op.C, "v", op.v, op.M, op.C);

  typename Device::Context context(check);
  Device::kernels().bn_bwd_apply(op, context);
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
  const Tensor &running_mean, &running_var;
  const float *mean, *var;       // [C]
  double momentum, unbias;       // unbias = count / (count - 1)
  int64_t* num_batches_tracked;  // or null
};

void update_running_stats_on(const CpuDevice<float>&, const Arguments&, const std::vector<NormUpdate>& norms) {
  for (const NormUpdate& n : norms) {
    update_any(n.running_mean, n.mean, n.momentum, 1);
    update_any(n.running_var, n.var, n.momentum, n.unbias);
    if (n.num_batches_tracked != nullptr) ++*n.num_batches_tracked;
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
                     running_type(n.running_var), n.momentum, n.unbias, n.num_batches_tracked});
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

int64_t* counter(const Arguments& check, const Tensor& t) {
  check.same_device("num_batches_tracked", t);
  if (t.scalar_type() != ScalarType::Long)
    check.refuse("dtype of num_batches_tracked", torch::headeronly::toString(t.scalar_type()), "Long");
  if (t.numel() != 1) check.refuse("sizes of num_batches_tracked", std::to_string(t.numel()) + " values", "one");
  return t.mutable_data_ptr<int64_t>();
}

template <class Device>
void update_running_stats(const contract::UpdateRunningStats& a) {
  Arguments check(a.kName, Device::kOnCuda, a.stats, "stats");
  const size_t norms = a.running_mean.size();
  for (size_t size : {a.running_var.size(), a.begins.size(), a.momentum.size()})
    if (size != norms) check.refuse("length of a list", std::to_string(size), std::to_string(norms));
  const size_t counters = a.num_batches_tracked.size();
  if (counters != 0 && counters != norms)
    check.refuse("length of num_batches_tracked", std::to_string(counters), std::to_string(norms) + " or 0");
  check.sizes("stats", a.stats, {2, -1});
  const int64_t S = a.stats.size(1);
  const Stats stats = check.stats(a.stats, S);
  if (a.count < 2) check.refuse("count", std::to_string(a.count), "at least 2");
  const double unbias = static_cast<double>(a.count) / static_cast<double>(a.count - 1);
  std::vector<NormUpdate> updates;
  for (size_t i = 0; i < norms; i++) {
    const int64_t C = a.running_mean[i].numel(), begin = a.begins[i];
    check_running(check, "running_mean", a.running_mean[i], C);
    check_running(check, "running_var", a.running_var[i], C);
    if (begin < 0 || begin > S - C)
      check.refuse("begins", std::to_string(begin) + " for " + std::to_string(C) + " channels",
                   "columns of stats, which has " + std::to_string(S));
    updates.push_back({a.running_mean[i], a.running_var[i], stats.mean + begin, stats.var + begin, a.momentum[i],
                       unbias, counters == 0 ? nullptr : counter(check, a.num_batches_tracked[i])});
  }
  if (!updates.empty()) update_running_stats_on(Device(), check, updates);
}

template <class Device, class... Others>
void entries(Library& m) {
  implement<&channel_stats<Device>, &channel_stats<Others>...>(m);
  implement<&bn_bwd_apply<Device>, &bn_bwd_apply<Others>...>(m);
  implement<&update_running_stats<Device>>(m);  // whose numbers are no activations
}

DENSENET_FAST_REGISTER(entries)

}  // namespace
}  // namespace densenet_fast
