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
  Tensor weight1, weight2;
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
  const Stats stats = check.written_stats(mean, var, C_total);
  if (static_cast<int64_t>(tensors.size()) != count * kTensors || static_cast<int64_t>(numbers.size()) != count * kNumbers)
    check.refuse("lengths of tensors and numbers", std::to_string(tensors.size()) + " and " + std::to_string(numbers.size()),
                 "11 and 3 for each layer");

  std::vector<Layer<Device>> layers(count);
  int64_t C = channels;
  for (int64_t i = 0; i < count; i++) {
    const MaybeTensor* const t = tensors.data() + i * kTensors;
    const double* const n = numbers.data() + i * kNumbers;
    if (!t[4] || !t[9]) check.refuse("weights", "None", "a tensor");
    Layer<Device>& layer = layers[i];
    layer.weight1 = *t[4], layer.weight2 = *t[9];
    layer.batch1 = !t[0] || !t[1], layer.batch2 = !t[5] || !t[6];
    auto& conv1 = layer.conv1;
    conv1.M = shape.rows();
    conv1.C = C;
    conv1.x = rows;
    conv1.norm = layer.batch1 ? Norm{stats.mean, stats.var, check.vector("gamma1", t[2], C), check.vector("beta1", t[3], C), n[0]}
                              : check.norm(*t[0], *t[1], t[2], t[3], n[0], C, "1");
    check.weight(conv1.weight, "weight1", layer.weight1, C, 1);
    conv1.K = layer.weight1.size(0);
    auto& conv3 = layer.conv3;
    conv3.shape = shape;
    conv3.C = conv1.K;
    conv3.norm = layer.batch2 ? Norm{nullptr, nullptr, check.vector("gamma2", t[7], conv3.C),
                                     check.vector("beta2", t[8], conv3.C), n[1]}
                              : check.norm(*t[5], *t[6], t[7], t[8], n[1], conv3.C, "2");
    check.weight(conv3.weight, "weight2", layer.weight2, conv3.C, 3);
    conv3.G = layer.weight2.size(0);
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

template <class Device>
std::tuple<std::vector<Tensor>, std::vector<Tensor>, std::vector<Tensor>> dense_block_fwd(
    const Tensor& x, const Tensor& mean, const Tensor& var, bool tracked, int64_t channels,
    std::vector<MaybeTensor> tensors, std::vector<double> numbers, bool keep_z) {
  Arguments check("dense_block_fwd", Device::kPlace, x);
  auto layers = read_layers<Device>(check, x, mean, var, tracked, channels, tensors, numbers);

  std::vector<Tensor> z, z_mean, z_var;
  const Shape shape = check.shape("x", x);
  const Tensor scratch = check.new_matrix(keep_z ? 0 : shape.rows(), widest(tensors));
  typename Device::Context context(check);
  for (auto& [conv1, conv3, weight1, weight2, batch1, batch2] : layers) {
    if (keep_z) z.push_back(check.new_image(shape.N, conv1.K, shape.H, shape.W));
    conv1.z = Rows((keep_z ? z.back() : scratch).const_data_ptr(), conv1.K);
    const VectorPair z_stats(check, conv1.K, batch2);
    z_mean.push_back(z_stats.first), z_var.push_back(z_stats.second);
    conv1.stats = z_stats.stats();
    if (batch2) conv3.norm.mean = conv1.stats.mean, conv3.norm.var = conv1.stats.var;
    conv3.x = conv1.z;
    Device::kernels().bn_relu_conv1x1_fwd(conv1, context);
    Device::kernels().bn_relu_conv3x3_fwd(conv3, context);
    context.release();
  }
  return {z, z_mean, z_var};
}

template <class Device>
std::vector<Tensor> dense_block_bwd(const Tensor& g, const Tensor& a, const Tensor& b, const Tensor& x,
                                    const Tensor& mean, const Tensor& var, int64_t channels,
                                    std::vector<MaybeTensor> tensors, std::vector<double> numbers,
                                    std::vector<Tensor> z, std::vector<Tensor> z_mean, std::vector<Tensor> z_var,
                                    std::vector<bool> wgrad) {
  Arguments check("dense_block_bwd", Device::kPlace, x);
  auto layers = read_layers<Device>(check, x, mean, var, false, channels, tensors, numbers);
  const size_t count = layers.size();
  const Shape shape = check.shape("x", x);
  const int64_t C_total = x.size(1), M = shape.rows(), K = widest(tensors);
  const Rows g_rows = check.image("g", g, shape, C_total), x_rows = check.image("x", x, shape, C_total);
  check.disjoint("g", g_rows, M, C_total, "x", x_rows, M, C_total);
  const NormGradient correction = check.norm_gradient(a, b, C_total, true);
  const float* const x_mean = check.vector("mean", mean, C_total);
  if ((!z.empty() && z.size() != count) || z_mean.size() != count || z_var.size() != count || wgrad.size() != 2 * count)
    check.refuse("lengths of z, z_mean, z_var and wgrad",
                 std::to_string(z.size()) + ", " + std::to_string(z_mean.size()) + ", " + std::to_string(z_var.size()) +
                     " and " + std::to_string(wgrad.size()),
                 std::to_string(count) + " or none, and for each layer one, one and two");
  for (size_t i = 0; i < count; i++) {
    auto& [conv1, conv3, weight1, weight2, batch1, batch2] = layers[i];
    if (!z.empty()) conv1.z = check.image("z", z[i], shape, conv1.K);
    if (!batch2) continue;
    conv3.norm.mean = check.vector("z_mean", z_mean[i], conv1.K);
    conv3.norm.var = check.vector("z_var", z_var[i], conv1.K);
  }

  const Tensor u = check.new_matrix(M, K), scratch = check.new_matrix(z.empty() ? M : 0, K);
  Tensor corrections = check.new_vector(2 * K * static_cast<int64_t>(count));  // a and b of every z
  torch::stable::zero_(corrections);
  float* z_a = corrections.mutable_data_ptr<float>();
  std::vector<Tensor> gradients(6 * count);
  typename Device::Context context(check);
  for (size_t i = count; i-- > 0; z_a += 2 * K) {
    auto& [conv1, conv3, weight1, weight2, batch1, batch2] = layers[i];
    const int64_t C = conv1.C;
    const VectorPair dnorm1(check, C), dnorm2(check, conv1.K);
    const Tensor dweight1 = check.new_weight(weight1, wgrad[2 * i]), dweight2 = check.new_weight(weight2, wgrad[2 * i + 1]);
    const Tensor of_layer[] = {dnorm1.first, dnorm1.second, dweight1, dnorm2.first, dnorm2.second, dweight2};
    std::copy(std::begin(of_layer), std::end(of_layer), gradients.begin() + 6 * i);
    if (z.empty()) {
      conv1.z = Rows(scratch.const_data_ptr(), conv1.K);
      Device::kernels().bn_relu_conv1x1_fwd(conv1, context);
    }

    typename Device::Conv3x3Bwd back3{};
    back3.shape = shape, back3.C = conv3.C, back3.G = conv3.G;
    back3.dy = check.columns(g_rows, C);
    back3.y = conv3.y;
    back3.correction_y = {x_mean + C, correction.a + C, correction.b + C};
    back3.x = conv1.z;
    back3.norm = conv3.norm, back3.weight = conv3.weight, back3.dropout = conv3.dropout;
    back3.u = Rows(u.const_data_ptr(), conv3.C);
    if (batch2) back3.dnorm.a = z_a, back3.dnorm.b = z_a + K;
    dnorm2.hold(back3.dnorm);
    hold(back3.dweight, dweight2, wgrad[2 * i + 1]);
    Device::kernels().bn_relu_conv3x3_bwd(back3, context);

    typename Device::Conv1x1Bwd back1{};
    back1.M = M, back1.C = C, back1.K = conv1.K;
    back1.u = back3.u;
    back1.z = conv1.z;
    back1.norm2 = {conv3.norm.mean, conv3.norm.var, conv3.norm.gamma, nullptr, conv3.norm.eps};
    back1.correction2 = {conv3.norm.mean, z_a, z_a + K};
    back1.x = conv1.x, back1.norm = conv1.norm, back1.weight = conv1.weight;
    back1.dx = g_rows;
    if (batch1) back1.dnorm.a = correction.a, back1.dnorm.b = correction.b;
    dnorm1.hold(back1.dnorm);
    hold(back1.dweight, dweight1, wgrad[2 * i]);
    Device::kernels().bn_relu_conv1x1_bwd(back1, context);
    context.release();
  }
  return gradients;
}

template <class Device>
void entries(Library& m) {
  m.impl("dense_block_fwd.native", TORCH_BOX(&dense_block_fwd<Device>));
  m.impl("dense_block_bwd.native", TORCH_BOX(&dense_block_bwd<Device>));
}

DENSENET_FAST_REGISTER(entries)

}  // namespace
}  // namespace densenet_fast
