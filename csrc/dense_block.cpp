// Entries of densenet_fast/ops/dense_block.py: the layers' kernels in turn, in one context.
#include <algorithm>

#include "arguments.h"

namespace densenet_fast {
namespace {

constexpr int64_t kTensors = 11, kNumbers = 3;  // of a layer

// The forward of a layer as far as the arguments tell it: without z, its statistics, and where z stands for x in conv3.
template <class Device>
struct Layer {
  typename Device::Conv1x1Fwd conv1{};
  typename Device::Conv3x3Fwd conv3{};
  bool batch1 = false, batch2 = false;  // whether the norms use the batch's statistics
};

int64_t widest(const std::vector<MaybeTensor>& tensors) {
  int64_t K = 0;
  for (size_t i = 4; i < tensors.size(); i += kTensors)
    if (tensors[i]) K = std::max(K, tensors[i]->size(0));
  return K;
}

template <class Device>
std::vector<Layer<Device>> read_layers(Arguments& check, const Tensor& x, const Tensor& mean, const Tensor& var,
                                       bool tracked, int64_t channels, const std::vector<MaybeTensor>& tensors,
                                       const std::vector<double>& numbers) {
  const Shape shape = check.shape("x", x);
  const int64_t C_total = x.size(1), count = static_cast<int64_t>(tensors.size()) / kTensors;
  const Rows rows = check.image("x", x, shape, C_total);
  const Stats stats{check.written_vector("mean", mean, C_total), check.written_vector("var", var, C_total)};
  const int64_t lengths[] = {static_cast<int64_t>(tensors.size()), static_cast<int64_t>(numbers.size())};
  if (lengths[0] != count * kTensors || lengths[1] != count * kNumbers)
    check.refuse("lengths of tensors and numbers", std::to_string(lengths[0]) + " and " + std::to_string(lengths[1]),
                 "11 and 3 for each layer");

  std::vector<Layer<Device>> layers(count);
  int64_t C = channels;
  for (int64_t i = 0; i < count; i++) {
    const MaybeTensor* const t = tensors.data() + i * kTensors;
    const double* const n = numbers.data() + i * kNumbers;
    if (!t[4] || !t[9]) check.refuse("weights", "None", "a tensor");
    Layer<Device>& layer = layers[i];
    layer.batch1 = !t[0] || !t[1], layer.batch2 = !t[5] || !t[6];
    auto& conv1 = layer.conv1;
    conv1.M = shape.rows();
    conv1.C = C;
    conv1.x = rows;
    conv1.norm = layer.batch1 ? Norm{stats.mean, stats.var, check.vector("gamma1", t[2], C),
                                     check.vector("beta1", t[3], C), n[0]}
                              : check.norm(*t[0], *t[1], t[2], t[3], n[0], C, "1");
    check.weight(conv1.weight, "weight1", *t[4], C, 1);
    conv1.K = t[4]->size(0);
    auto& conv3 = layer.conv3;
    conv3.shape = shape;
    conv3.C = conv1.K;
    conv3.norm = layer.batch2 ? Norm{nullptr, nullptr, check.vector("gamma2", t[7], conv3.C),
                                     check.vector("beta2", t[8], conv3.C), n[1]}
                              : check.norm(*t[5], *t[6], t[7], t[8], n[1], conv3.C, "2");
    check.weight(conv3.weight, "weight2", *t[9], conv3.C, 3);
    conv3.G = t[9]->size(0);
    conv3.dropout = check.dropout(n[2], t[10]);
    conv3.y = check.columns(rows, C);
    if (tracked) conv3.stats = {stats.mean + C, stats.var + C};
    C += conv3.G;
  }
  if (channels < 1 || C > C_total)
    check.refuse("channels", std::to_string(channels) + " and " + std::to_string(C - channels) + " of the layers",
                 "at least 1, and with the layers' at most " + std::to_string(C_total));
  return layers;
}

// Refuses lists that do not have one element for each layer; z may be empty.
void check_lengths(const Arguments& check, size_t count, const std::vector<Tensor>& z,
                   const std::vector<Tensor>& z_mean, const std::vector<Tensor>& z_var) {
  if ((z.empty() || z.size() == count) && z_mean.size() == count && z_var.size() == count) return;
  check.refuse("lengths of z, z_mean and z_var",
               std::to_string(z.size()) + ", " + std::to_string(z_mean.size()) + " and " + std::to_string(z_var.size()),
               std::to_string(count) + " or for z none");
}

template <class Device>
void dense_block_fwd(const Tensor& x, const Tensor& mean, const Tensor& var, bool tracked, int64_t channels,
                     std::vector<MaybeTensor> tensors, std::vector<double> numbers, std::vector<Tensor> z,
                     std::vector<Tensor> z_mean, std::vector<Tensor> z_var) {
  Arguments check("dense_block_fwd", Device::kPlace, x);
  auto layers = read_layers<Device>(check, x, mean, var, tracked, channels, tensors, numbers);
  check_lengths(check, layers.size(), z, z_mean, z_var);
  const Shape shape = check.shape("x", x);
  const Tensor scratch = check.new_matrix(z.empty() ? shape.rows() : 0, widest(tensors));
  for (size_t i = 0; i < layers.size(); i++) {
    auto& [conv1, conv3, batch1, batch2] = layers[i];
    conv1.z = z.empty() ? Rows(scratch.const_data_ptr(), conv1.K) : check.image("z", z[i], shape, conv1.K);
    conv3.x = conv1.z;
    const int64_t taken = batch2 ? conv1.K : 0;
    conv1.stats = {check.written_vector("z_mean", z_mean[i], taken), check.written_vector("z_var", z_var[i], taken)};
    if (batch2) conv3.norm.mean = conv1.stats.mean, conv3.norm.var = conv1.stats.var;
    else conv1.stats = {};
  }

  typename Device::Context context(check);
  for (const auto& layer : layers) {
    Device::kernels().bn_relu_conv1x1_fwd(layer.conv1, context);
    Device::kernels().bn_relu_conv3x3_fwd(layer.conv3, context);
    context.release();
  }
}

template <class Device>
void dense_block_bwd(const Tensor& g, const Tensor& a, const Tensor& b, const Tensor& x, const Tensor& mean,
                     const Tensor& var, int64_t channels, std::vector<MaybeTensor> tensors, std::vector<double> numbers,
                     std::vector<Tensor> z, std::vector<Tensor> z_mean, std::vector<Tensor> z_var,
                     std::vector<Tensor> gradients) {
  Arguments check("dense_block_bwd", Device::kPlace, x);
  auto layers = read_layers<Device>(check, x, mean, var, false, channels, tensors, numbers);
  const size_t count = layers.size();
  check_lengths(check, count, z, z_mean, z_var);
  if (gradients.size() != 6 * count)
    check.refuse("length of gradients", std::to_string(gradients.size()), std::to_string(6 * count));
  const Shape shape = check.shape("x", x);
  const int64_t C_total = x.size(1), M = shape.rows(), K = widest(tensors);
  const Rows g_rows = check.image("g", g, shape, C_total), x_rows = check.image("x", x, shape, C_total);
  check.disjoint("g", g_rows, M, C_total, "x", x_rows, M, C_total);
  const NormGradient correction = check.norm_gradient(a, b, C_total, true);
  const float* const x_mean = check.vector("mean", mean, C_total);

  const Tensor u = check.new_matrix(M, K), scratch = check.new_matrix(z.empty() ? M : 0, K);
  Tensor corrections = check.new_vector(2 * K * static_cast<int64_t>(count));  // a and b of every z
  std::vector<typename Device::Conv3x3Bwd> conv3(count);
  std::vector<typename Device::Conv1x1Bwd> conv1(count);
  for (size_t i = 0; i < count; i++) {
    auto& [fwd1, fwd3, batch1, batch2] = layers[i];
    const Tensor* const d = gradients.data() + 6 * i;
    float *const z_a = corrections.mutable_data_ptr<float>() + 2 * K * i, *const z_b = z_a + K;
    fwd1.z = z.empty() ? Rows(scratch.const_data_ptr(), fwd1.K) : check.image("z", z[i], shape, fwd1.K);
    if (batch2) {
      fwd3.norm.mean = check.vector("z_mean", z_mean[i], fwd1.K);
      fwd3.norm.var = check.vector("z_var", z_var[i], fwd1.K);
    }
    auto& back3 = conv3[i];
    back3.shape = shape, back3.C = fwd3.C, back3.G = fwd3.G;
    back3.dy = check.columns(g_rows, fwd1.C);
    back3.y = fwd3.y;
    back3.correction_y = {x_mean + fwd1.C, correction.a + fwd1.C, correction.b + fwd1.C};
    back3.x = fwd1.z, back3.norm = fwd3.norm, back3.weight = fwd3.weight, back3.dropout = fwd3.dropout;
    back3.u = Rows(u.const_data_ptr(), fwd3.C);
    back3.dnorm = {check.written_vector("dgamma2", d[3], fwd3.C), check.written_vector("dbeta2", d[4], fwd3.C),
                   batch2 ? z_a : nullptr, batch2 ? z_b : nullptr};
    check.written_weight(back3.dweight, "dweight2", d[5], fwd3.G, fwd3.C, 3);

    auto& back1 = conv1[i];
    back1.M = M, back1.C = fwd1.C, back1.K = fwd1.K;
    back1.u = back3.u, back1.z = fwd1.z;
    back1.norm2 = {fwd3.norm.mean, fwd3.norm.var, fwd3.norm.gamma, nullptr, fwd3.norm.eps};
    back1.correction2 = {fwd3.norm.mean, z_a, z_b};
    back1.x = fwd1.x, back1.norm = fwd1.norm, back1.weight = fwd1.weight;
    back1.dx = g_rows;
    back1.dnorm = {check.written_vector("dgamma1", d[0], fwd1.C), check.written_vector("dbeta1", d[1], fwd1.C),
                   batch1 ? correction.a : nullptr, batch1 ? correction.b : nullptr};
    check.written_weight(back1.dweight, "dweight1", d[2], fwd1.K, fwd1.C, 1);
  }

  torch::stable::zero_(corrections);
  typename Device::Context context(check);
  for (size_t i = count; i-- > 0;) {
    if (z.empty()) Device::kernels().bn_relu_conv1x1_fwd(layers[i].conv1, context);
    Device::kernels().bn_relu_conv3x3_bwd(conv3[i], context);
    Device::kernels().bn_relu_conv1x1_bwd(conv1[i], context);
    context.release();
  }
}

template <class Device>
void entries(Library& m) {
  m.impl("dense_block_fwd.native", TORCH_BOX(&dense_block_fwd<Device>));
  m.impl("dense_block_bwd.native", TORCH_BOX(&dense_block_bwd<Device>));
}

DENSENET_FAST_REGISTER(entries)

}  // namespace
}  // namespace densenet_fast
