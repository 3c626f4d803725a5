// Entries of a dense block: the kernels of its layers in turn, in one context. A layer's first half is the 1x1
// convolution, its second the 3x3 convolution, which in a layer without bottleneck reads the buffer itself.
#include <algorithm>

#include "entry.h"

namespace densenet_fast {
namespace {

using namespace contract;

// Where a layer lies in the memory of its block.
struct Position {
  bool bottleneck;
  int64_t C, K, G;  // channels that it reads, of its bottleneck (0 without one), that it writes
  int64_t of_z, z;  // column of the statistics and element of z at which its bottleneck begins
};

// A block's memory, which of its layers run, and which halves of them.
struct Memory {
  Shape shape;
  int64_t C_total;
  Rows x;
  Stats stats;
  std::vector<Position> layers;
  int64_t columns, Z;  // of the statistics; elements of z
  int64_t begin, end;
  bool first, second;

  int64_t M() const { return shape.rows(); }
  // The most channels of a bottleneck that runs.
  int64_t widest() const {
    int64_t K = 0;
    for (int64_t i = begin; i < end; i++) K = std::max(K, layers[i].K);
    return K;
  }
};

std::string name_with(const char* prefix, int64_t tensor) {
  return std::string(prefix) + name_of(static_cast<LayerTensor>(tensor));
}

void refuse_given(const Arguments& check, const char* prefix, const MaybeTensor* t, int64_t from, int64_t to) {
  for (int64_t i = from; i < to; i++)
    if (t[i]) check.refuse(name_with(prefix, i), "a tensor", "None");
}

// Positions of all layers, and behind them what is behind their memory.
void find_layers(const Arguments& check, const contract::Block& block, Memory& m) {
  const size_t count = block.numbers.size() / kNumbers;
  if (block.tensors.size() != count * kTensors || block.numbers.size() != count * kNumbers)
    check.refuse("lengths of tensors and numbers",
                 std::to_string(block.tensors.size()) + " and " + std::to_string(block.numbers.size()),
                 std::to_string(kTensors) + " and " + std::to_string(kNumbers) + " for each layer");
  const auto outputs = [&check](const char* name, const Tensor& weight) {
    if (weight.dim() != 4) check.sizes(name, weight, {-1, -1, -1, -1});
    return weight.size(0);
  };
  int64_t C = block.channels;
  m.columns = m.C_total, m.Z = 0;
  for (size_t i = 0; i < count; i++) {
    const MaybeTensor* const t = &block.tensors[i * kTensors];
    const int64_t outputs1 = outputs("weight1", check.given("weight1", t[kWeight1]));
    const bool bottleneck = t[kWeight2].has_value();
    if (!bottleneck) refuse_given(check, "", t, kMean2, kTensors);
    const int64_t K = bottleneck ? outputs1 : 0, G = bottleneck ? outputs("weight2", *t[kWeight2]) : outputs1;
    m.layers.push_back({bottleneck, C, K, G, m.columns, m.Z});
    C += G, m.columns += K, m.Z += (m.M() * K + kAligned - 1) / kAligned * kAligned;
  }
  if (block.channels < 1 || C > m.C_total)
    check.refuse("channels",
                 std::to_string(block.channels) + " and " + std::to_string(C - block.channels) + " of the layers",
                 "at least 1, and with the layers' at most " + std::to_string(m.C_total));
}

template <class Call>
Memory read_memory(const Arguments& check, const Call& a) {
  const Shape shape = check.shape("x", a.x);
  const int64_t C_total = a.x.size(1);
  Memory m{shape, C_total, check.image("x", a.x, shape, C_total)};
  find_layers(check, a.block, m);
  m.stats = check.stats(a.stats, m.columns);
  const auto count = static_cast<int64_t>(m.layers.size());
  m.begin = a.begin, m.end = a.end;
  if (a.begin < 0 || a.end < a.begin || a.end > count)
    check.refuse("begin and end", std::to_string(a.begin) + " and " + std::to_string(a.end),
                 "a range of " + std::to_string(count) + " layers");
  m.first = a.halves & kFirst, m.second = a.halves & kSecond;
  if (a.halves < kFirst || a.halves > kBoth)
    check.refuse("halves", std::to_string(a.halves),
                 std::to_string(kFirst) + ", " + std::to_string(kSecond) + " or " + std::to_string(kBoth));
  if (a.z && m.Z > 0) check.disjoint("z", check.line("z", *a.z, m.Z), 1, m.Z, "x", m.x, m.M(), C_total);
  return m;
}

// Refuses halves that run apart and have nothing between them.
void check_between(const Arguments& check, const Memory& m, const char* name, const MaybeTensor& t) {
  if (!(m.first && m.second) && m.widest() > 0 && !t) check.refuse(name, "None", "a tensor where the halves run apart");
}

// A layer's forward, without the memory of z.
template <class Device>
struct Layer {
  Position position;
  typename Device::Conv1x1Fwd conv1{};
  typename Device::Conv3x3Fwd conv3{};
  bool batch1, batch2;  // whether the norms use the batch's statistics
};

template <class Device>
Layer<Device> read_layer(Arguments& check, const Memory& m, const contract::Block& block, int64_t i, bool tracked,
                         const int64_t* seeds) {
  const Position& p = m.layers[i];
  const MaybeTensor* const t = &block.tensors[i * kTensors];
  const double* const n = &block.numbers[i * kNumbers];
  Layer<Device> layer{p};
  layer.batch1 = !t[kMean1], layer.batch2 = !t[kMean2];
  const densenet_fast::Norm norm1 = check.norm(t[kMean1], t[kVar1], t[kGamma1], t[kBeta1], n[kEps1], p.C, "1", m.stats);
  auto& conv3 = layer.conv3;
  if (p.bottleneck) {
    const Stats of_z{m.stats.mean + p.of_z, m.stats.var + p.of_z};
    auto& conv1 = layer.conv1;
    conv1.M = m.M(), conv1.C = p.C, conv1.K = p.K;
    conv1.x = m.x, conv1.norm = norm1;
    check.weight(conv1.weight, "weight1", *t[kWeight1], p.C, 1);
    if (layer.batch2) conv1.stats = of_z;
    conv3.C = p.K;
    conv3.norm = check.norm(t[kMean2], t[kVar2], t[kGamma2], t[kBeta2], n[kEps2], p.K, "2", of_z);
    check.weight(conv3.weight, "weight2", *t[kWeight2], p.K, 3);
  } else {
    conv3.C = p.C, conv3.x = m.x, conv3.norm = norm1;
    check.weight(conv3.weight, "weight1", *t[kWeight1], p.C, 3);
  }
  conv3.shape = m.shape, conv3.G = p.G;
  conv3.y = check.behind(m.x, p.C);
  conv3.dropout = check.dropout(n[kDropRate], seeds == nullptr ? nullptr : seeds + i);
  if (tracked) conv3.stats = {m.stats.mean + p.C, m.stats.var + p.C};
  return layer;
}

// The layers that run, z among their memory: the one given, or one that they share.
template <class Device, class Call>
std::vector<Layer<Device>> read_layers(Arguments& check, const Memory& m, const Call& a, bool tracked) {
  const int64_t* const seeds = check.seeds(a.block.seeds, static_cast<int64_t>(m.layers.size()));
  std::vector<Layer<Device>> layers;
  for (int64_t i = m.begin; i < m.end; i++) layers.push_back(read_layer<Device>(check, m, a.block, i, tracked, seeds));
  if (m.widest() == 0) return layers;
  const Rows z = a.z ? check.line("z", *a.z, m.Z) : check.new_matrix(m.M(), m.widest());
  for (Layer<Device>& layer : layers) {
    const Position& p = layer.position;
    if (p.bottleneck) layer.conv3.x = layer.conv1.z = Rows(check.behind(z, a.z ? p.z : 0).data, p.K);
  }
  return layers;
}

template <class Device>
void block_fwd(const BlockFwd& a) {
  Arguments check(a.kName, Device::kOnCuda, a.x);
  const Memory m = read_memory(check, a);
  check_between(check, m, "z", a.z);
  auto layers = read_layers<Device>(check, m, a, a.tracked);
  if (a.z && m.begin == 0 && m.first) Device::prefer_large_pages(*a.z);

  typename Device::Context of_block(check), context(check);
  if (m.second) {
    std::vector<typename Device::Conv3x3Fwd*> convolutions;
    for (Layer<Device>& layer : layers) convolutions.push_back(&layer.conv3);
    Device::pack_weights(convolutions, of_block);
  }
  for (const Layer<Device>& layer : layers) {
    if (m.first && layer.position.bottleneck) Device::kernels().bn_relu_conv1x1_fwd(layer.conv1, context);
    context.release();
    if (m.second) Device::kernels().bn_relu_conv3x3_fwd(layer.conv3, context);
    context.release();
  }
}

// Where gradients are written.
class Gradients {
 public:
  Gradients(Arguments& check, const Memory& m, const BlockBwd& a)
      : check_(check), all_(a.gradients), correction_(check.pair("correction", a.correction, m.columns)) {
    if (all_.size() != a.block.tensors.size())
      check.refuse("length of gradients", std::to_string(all_.size()), std::to_string(a.block.tensors.size()));
    for (int64_t i = m.begin; i < m.end; i++) {
      refuse_given(check, "d", of(i), kMean1, kGamma1);
      refuse_given(check, "d", of(i), kMean2, m.layers[i].bottleneck ? kGamma2 : kTensors);
      longest_ = std::max({longest_, m.layers[i].C, m.layers[i].K});
    }
  }

  const MaybeTensor* of(int64_t layer) const { return &all_[layer * kTensors]; }
  // a and b of the channels from `column` on.
  Arguments::Pair correction(int64_t column) const { return {correction_.first + column, correction_.second + column}; }
  // The end of norm1 or norm2, whose channels are those from `column` on.
  densenet_fast::NormGradient norm(int64_t layer, LayerTensor gamma, int64_t column, int64_t C, bool batch) {
    const auto [a, b] = batch ? correction(column) : Arguments::Pair{};
    return {vector(layer, gamma, C), vector(layer, gamma + 1, C), a, b};
  }
  template <class element_t>
  void weight(element_t*& to, int64_t layer, LayerTensor weight, int64_t outputs, int64_t C, int64_t kernel) const {
    check_.written_weight(to, name_with("d", weight).c_str(), of(layer)[weight], outputs, C, kernel);
  }

 private:
  // Kernels write all vectors: those that nobody wants to one place.
  float* vector(int64_t layer, int64_t tensor, int64_t C) {
    if (const MaybeTensor& t = of(layer)[tensor]) return check_.written_vector(name_with("d", tensor).c_str(), *t, C);
    if (nowhere_ == nullptr) nowhere_ = check_.new_vector(longest_);
    return nowhere_;
  }

  Arguments& check_;
  const std::vector<MaybeTensor>& all_;
  Arguments::Pair correction_;
  int64_t longest_ = 0;
  float* nowhere_ = nullptr;
};

template <class Device>
struct Backward {
  typename Device::Conv3x3Bwd conv3{};
  typename Device::Conv1x1Bwd conv1{};
};

// A layer's backward but for u, which a bottleneck has.
template <class Device>
Backward<Device> reversed(const Arguments& check, const Memory& m, const Layer<Device>& forward, int64_t i,
                          const Rows& g, Gradients& gradients) {
  const Position& p = forward.position;
  Backward<Device> layer;
  auto& conv3 = layer.conv3;
  conv3.shape = m.shape, conv3.C = forward.conv3.C, conv3.G = p.G;
  conv3.dy = check.behind(g, p.C), conv3.y = forward.conv3.y;
  const auto [y_a, y_b] = gradients.correction(p.C);
  conv3.correction_y = {m.stats.mean + p.C, y_a, y_b};
  conv3.x = forward.conv3.x, conv3.norm = forward.conv3.norm, conv3.weight = forward.conv3.weight;
  conv3.dropout = forward.conv3.dropout;
  if (!p.bottleneck) {
    conv3.u = g, conv3.accumulate = true;
    conv3.dnorm = gradients.norm(i, kGamma1, 0, p.C, forward.batch1);
    gradients.weight(conv3.dweight, i, kWeight1, p.G, p.C, 3);
    return layer;
  }
  conv3.dnorm = gradients.norm(i, kGamma2, p.of_z, p.K, forward.batch2);
  gradients.weight(conv3.dweight, i, kWeight2, p.G, p.K, 3);

  auto& conv1 = layer.conv1;
  const densenet_fast::Norm& norm2 = conv3.norm;
  conv1.M = m.M(), conv1.C = p.C, conv1.K = p.K;
  conv1.z = forward.conv1.z;
  conv1.norm2 = {norm2.mean, norm2.var, norm2.gamma, nullptr, norm2.eps};
  const auto [z_a, z_b] = gradients.correction(p.of_z);
  conv1.correction2 = {norm2.mean, z_a, z_b};
  conv1.x = m.x, conv1.norm = forward.conv1.norm, conv1.weight = forward.conv1.weight;
  conv1.dx = g;
  conv1.dnorm = gradients.norm(i, kGamma1, 0, p.C, forward.batch1);
  gradients.weight(conv1.dweight, i, kWeight1, p.K, p.C, 1);
  return layer;
}

// Memory for u, which layers share.
Rows read_u(Arguments& check, const Memory& m, const BlockBwd& a, const Rows& g) {
  check_between(check, m, "u", a.u);
  if (!a.u) return check.new_matrix(m.M(), m.widest());
  Rows u(nullptr, 0);
  for (int64_t i = m.begin; i < m.end; i++)
    if (m.layers[i].bottleneck) u = check.image("u", *a.u, m.shape, m.layers[i].K);
  if (u.data == nullptr) return u;
  const int64_t K = m.widest();
  check.disjoint("u", u, m.M(), K, "g", g, m.M(), m.C_total);
  check.disjoint("u", u, m.M(), K, "x", m.x, m.M(), m.C_total);
  if (a.z) check.disjoint("u", u, m.M(), K, "z", check.line("z", *a.z, m.Z), 1, m.Z);
  return u;
}

template <class Device>
void block_bwd(const BlockBwd& a) {
  Arguments check(a.kName, Device::kOnCuda, a.x);
  const Memory m = read_memory(check, a);
  check_between(check, m, "z", a.z);
  if (!(m.first && m.second) && m.end - m.begin > 1)
    check.refuse("begin and end", std::to_string(m.begin) + " and " + std::to_string(m.end),
                 "one layer where the halves run apart");
  const Rows g = check.image("g", a.g, m.shape, m.C_total);
  check.disjoint("g", g, m.M(), m.C_total, "x", m.x, m.M(), m.C_total);
  if (a.z && m.Z > 0) check.disjoint("g", g, m.M(), m.C_total, "z", check.line("z", *a.z, m.Z), 1, m.Z);
  const auto layers = read_layers<Device>(check, m, a, false);
  const Rows u = read_u(check, m, a, g);
  Gradients gradients(check, m, a);
  std::vector<Backward<Device>> backward;
  for (int64_t i = m.begin; i < m.end; i++) {
    backward.push_back(reversed<Device>(check, m, layers[i - m.begin], i, g, gradients));
    const Rows of_layer(u.data, a.u ? u.stride : m.layers[i].K);
    if (m.layers[i].bottleneck) backward.back().conv3.u = backward.back().conv1.u = of_layer;
  }

  typename Device::Context context(check);
  for (size_t i = layers.size(); i-- > 0;) {
    const bool bottleneck = layers[i].position.bottleneck;
    if (bottleneck && !a.z) {
      auto again = layers[i].conv1;
      again.stats = {};
      Device::kernels().bn_relu_conv1x1_fwd(again, context);
      context.release();
    }
    if (m.second) Device::kernels().bn_relu_conv3x3_bwd(backward[i].conv3, context);
    context.release();
    if (m.first && bottleneck) Device::kernels().bn_relu_conv1x1_bwd(backward[i].conv1, context);
    context.release();
  }
}

template <class... Devices>
void entries(Library& m) {
  implement<&block_fwd<Devices>...>(m);
  implement<&block_bwd<Devices>...>(m);
}

DENSENET_FAST_REGISTER(entries)

}  // namespace
}  // namespace densenet_fast
