// Entries of densenet_fast/ops/batch_norm.py. Those that touch only vectors are computed here.
#include "arguments.h"

namespace densenet_fast {
namespace {

using torch::headeronly::ScalarType;

std::tuple<Tensor, Tensor> channel_stats(const Tensor& x) {
  Arguments check("channel_stats");
  const cpu::Shape shape = check.shape("x", x);
  const int64_t C = x.size(1);
  const cpu::ConstMatrix rows = check.image("x", x, shape, C);
  const VectorPair stats(C);
  TensorWorkspace workspace;
  kernels().channel_stats(shape.rows(), C, rows, stats.stats(), workspace);
  return {stats.first, stats.second};
}

Tensor bn_bwd_apply(const Tensor& v, const Tensor& x, const Tensor& mean, const Tensor& a, const Tensor& b) {
  Arguments check("bn_bwd_apply");
  const cpu::Shape shape = check.shape("x", x);
  const int64_t C = x.size(1);
  const cpu::ConstMatrix x_rows = check.image("x", x, shape, C), v_rows = check.image("v", v, shape, C);
  const cpu::Correction correction = check.correction("", mean, a, b, C);
  const Tensor dx = new_image(shape.N, C, shape.H, shape.W);
  kernels().bn_bwd_apply(shape.rows(), C, v_rows, x_rows, correction, {data(dx), C});
  return dx;
}

// running += momentum * (batch - running); running may have another dtype than the batch's statistics.
template <class running_t>
void update(const Tensor& running, const float* batch, double momentum, double correction) {
  running_t* r = running.mutable_data_ptr<running_t>();
  const int64_t C = running.numel();
  for (int64_t c = 0; c < C; c++) {
    const double old = static_cast<double>(r[c]);
    const double updated = old + momentum * (correction * batch[c] - old);
    if constexpr (std::is_same_v<running_t, double>)
      r[c] = updated;
    else
      r[c] = static_cast<running_t>(static_cast<float>(updated));
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

void check_running(const Arguments& check, const char* name, const Tensor& t, int64_t C) {
  const ScalarType dtype = t.scalar_type();
  if (!t.is_cpu()) check.refuse(std::string("device of ") + name, t.is_cuda() ? "cuda" : "another device", "cpu");
  if (dtype != ScalarType::Float && dtype != ScalarType::Double && dtype != ScalarType::Half &&
      dtype != ScalarType::BFloat16)
    check.refuse(std::string("dtype of ") + name, torch::headeronly::toString(dtype), "a floating dtype");
  if (t.numel() != C || !t.is_contiguous())
    check.refuse(std::string("sizes of ") + name, std::to_string(t.numel()) + " values",
                 std::to_string(C) + " contiguous ones");
}

void update_running_stats(std::vector<Tensor> running_mean, std::vector<Tensor> running_var, std::vector<Tensor> mean,
                          std::vector<Tensor> var, std::vector<int64_t> count, std::vector<double> momentum) {
  Arguments check("update_running_stats");
  const size_t norms = running_mean.size();
  for (size_t size : {running_var.size(), mean.size(), var.size(), count.size(), momentum.size()})
    if (size != norms) check.refuse("length of a list", std::to_string(size), std::to_string(norms));
  std::vector<const float*> means(norms), vars(norms);
  for (size_t i = 0; i < norms; i++) {
    const int64_t C = running_mean[i].numel();
    check_running(check, "running_mean", running_mean[i], C);
    check_running(check, "running_var", running_var[i], C);
    means[i] = check.vector("mean", mean[i], C);
    vars[i] = check.vector("var", var[i], C);
    if (count[i] < 2) check.refuse("count", std::to_string(count[i]), "at least 2");
  }
  for (size_t i = 0; i < norms; i++) {
    const double n = static_cast<double>(count[i]);
    update_any(running_mean[i], means[i], momentum[i], 1);
    update_any(running_var[i], vars[i], momentum[i], n / (n - 1));
  }
}

STABLE_TORCH_LIBRARY_IMPL(densenet_fast, CPU, m) {
  m.impl("channel_stats.native", TORCH_BOX(&channel_stats));
  m.impl("bn_bwd_apply.native", TORCH_BOX(&bn_bwd_apply));
  m.impl("update_running_stats.native", TORCH_BOX(&update_running_stats));
}

}  // namespace
}  // namespace densenet_fast
