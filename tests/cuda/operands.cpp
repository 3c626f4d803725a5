// In the place of cuda_context.cpp: the memory that each operation's launches may touch, for the PTX machine
// (tools/gpucheck/cuda/launches.cpp), and scratch memory of exactly the size asked for.
#include <utility>
#include <vector>

#include "devices.h"
#include "launches.h"

using namespace densenet_fast;

namespace {

// Facts of the machine that are this library's own.
bool tf32 = false;
bool counter_is_left = false;  // not zero after its operation
int element_size;

void add(const void* data, int64_t rows, int64_t columns, int64_t stride, int64_t size, bool written) {
  gpucheck::may_touch({data, rows, columns * size, stride * size, written});
}

// The memory of each kind of operand.
struct Operands {
  explicit Operands(const cuda::Launch& launch) {
    gpucheck::forget_operands();
    element_size = launch.element_size();
  }
  void read(const cuda::ConstMatrix& m, int64_t rows, int64_t columns) {
    add(m.data, rows, columns, m.stride, element_size, false);
  }
  void write(const cuda::Matrix& m, int64_t rows, int64_t columns) {
    add(m.data, rows, columns, m.stride, element_size, true);
  }
  void read(const float* v, int64_t size) { add(v, 1, size, size, 4, false); }
  void write(float* v, int64_t size) { add(v, 1, size, size, 4, true); }
  void read(const Norm& n, int64_t C) {
    for (const float* v : {n.mean, n.var, n.gamma, n.beta}) read(v, C);
  }
  void read(const Correction& n, int64_t C) {
    for (const float* v : {n.mean, n.a, n.b}) read(v, C);
  }
  void read(const Dropout& d) { add(d.seed, 1, 1, 1, 8, false); }
  void write(const Stats& s, int64_t C) { write(s.mean, C), write(s.var, C); }
  void write(const NormGradient& g, int64_t C) {
    for (float* v : {g.dgamma, g.dbeta, g.a, g.b}) write(v, C);
  }
  // Any layout: the bytes from the first element to the last.
  void read(const cuda::Weight& w, int64_t outputs, int64_t C, int64_t kernel) {
    const int64_t sizes[] = {outputs, C, kernel, kernel};
    int64_t last = 0;
    for (int i = 0; i < 4; i++) last += (sizes[i] - 1) * w.stride[i];
    add(w.data, 1, last + 1, last + 1, element_size, false);
  }
  void write_dense(void* data, int64_t size) { add(data, 1, size, size, element_size, true); }
};

void channel_stats(const cuda::ChannelStats& op, const cuda::Launch& launch) {
  Operands o(launch);
  o.read(op.x, op.M, op.C), o.write(op.stats, op.C);
  cuda::channel_stats(op, launch);
}

void bn_bwd_apply(const cuda::BnBwdApply& op, const cuda::Launch& launch) {
  Operands o(launch);
  o.read(op.v, op.M, op.C), o.read(op.x, op.M, op.C), o.read(op.correction, op.C), o.write(op.dx, op.M, op.C);
  cuda::bn_bwd_apply(op, launch);
}

void bn_relu_conv1x1_fwd(const cuda::Conv1x1Fwd& op, const cuda::Launch& launch) {
  Operands o(launch);
  o.read(op.x, op.M, op.C), o.read(op.norm, op.C), o.read(op.weight, op.K, op.C, 1);
  o.write(op.z, op.M, op.K), o.write(op.stats, op.K);
  cuda::bn_relu_conv1x1_fwd(op, launch);
}

void bn_relu_conv1x1_bwd(const cuda::Conv1x1Bwd& op, const cuda::Launch& launch) {
  Operands o(launch);
  o.write(op.u, op.M, op.K), o.read(op.z, op.M, op.K), o.read(op.norm2, op.K), o.read(op.correction2, op.K);
  o.read(op.x, op.M, op.C), o.read(op.norm, op.C), o.read(op.weight, op.K, op.C, 1);
  o.write(op.dx, op.M, op.C), o.write(op.dnorm, op.C), o.write_dense(op.dweight, op.K * op.C);
  cuda::bn_relu_conv1x1_bwd(op, launch);
}

void bn_relu_conv3x3_fwd(const cuda::Conv3x3Fwd& op, const cuda::Launch& launch) {
  Operands o(launch);
  const int64_t M = op.shape.rows();
  o.read(op.x, M, op.C), o.read(op.norm, op.C), o.read(op.dropout);
  o.write(op.y, M, op.G), o.write(op.stats, op.G);
  cuda::bn_relu_conv3x3_fwd(op, launch);
}

void bn_relu_conv3x3_bwd(const cuda::Conv3x3Bwd& op, const cuda::Launch& launch) {
  Operands o(launch);
  const int64_t M = op.shape.rows();
  o.read(op.dy, M, op.G), o.read(op.y, M, op.G), o.read(op.correction_y, op.G), o.read(op.dropout);
  o.read(op.x, M, op.C), o.read(op.norm, op.C), o.read(op.weight, op.G, op.C, 3);
  o.write(op.u, M, op.C), o.write(op.dnorm, op.C), o.write_dense(op.dweight, op.G * op.C * 9);
  cuda::bn_relu_conv3x3_bwd(op, launch);
}

void transition_fwd(const cuda::TransitionFwd& op, const cuda::Launch& launch) {
  Operands o(launch);
  o.read(op.x, op.shape.rows(), op.C), o.read(op.norm, op.C), o.read(op.weight, op.K, op.C, 1);
  o.write(op.y, op.shape.N * (op.shape.H / 2) * (op.shape.W / 2), op.K), o.write(op.stats, op.K);
  cuda::transition_fwd(op, launch);
}

void transition_bwd(const cuda::TransitionBwd& op, const cuda::Launch& launch) {
  Operands o(launch);
  o.read(op.dy, op.shape.N * (op.shape.H / 2) * (op.shape.W / 2), op.K), o.read(op.x, op.shape.rows(), op.C);
  o.read(op.norm, op.C), o.read(op.weight, op.K, op.C, 1), o.write(op.dx, op.shape.rows(), op.C);
  o.write(op.dnorm, op.C), o.write_dense(op.dweight, op.K * op.C);
  cuda::transition_bwd(op, launch);
}

void stem_fwd(const cuda::StemFwd& op, const cuda::Launch& launch) {
  Operands o(launch);
  o.read(op.x, op.shape.rows(), op.C), o.read(op.norm, op.C), o.write(op.stats, op.C);
  o.write(op.y, op.shape.N * ((op.shape.H + 1) / 2) * ((op.shape.W + 1) / 2), op.C);
  cuda::stem_fwd(op, launch);
}

void stem_bwd(const cuda::StemBwd& op, const cuda::Launch& launch) {
  Operands o(launch);
  o.read(op.dy, op.shape.N * ((op.shape.H + 1) / 2) * ((op.shape.W + 1) / 2), op.C);
  o.read(op.x, op.shape.rows(), op.C), o.read(op.norm, op.C), o.write(op.dx, op.shape.rows(), op.C);
  o.write(op.dnorm, op.C);
  cuda::stem_bwd(op, launch);
}

void head_fwd(const cuda::HeadFwd& op, const cuda::Launch& launch) {
  Operands o(launch);
  o.read(op.x, op.shape.rows(), op.C), o.read(op.norm, op.C), o.write_dense(op.y, op.shape.N * op.C);
  cuda::head_fwd(op, launch);
}

void head_bwd(const cuda::HeadBwd& op, const cuda::Launch& launch) {
  Operands o(launch);
  o.read(op.dy, op.shape.N, op.C), o.read(op.x, op.shape.rows(), op.C), o.read(op.norm, op.C);
  o.write(op.dx, op.shape.rows(), op.C), o.write(op.dnorm, op.C);
  cuda::head_bwd(op, launch);
}

class ExactWorkspace final : public cuda::Workspace {
 public:
  ~ExactWorkspace() { release(); }
  void release() {
    for (const auto& [counters, count] : counters_)
      for (int64_t i = 0; !gpucheck::idle() && i < count; i++) counter_is_left |= counters[i] != 0;
    for (void* block : blocks_) gpucheck::take_back(block);
    blocks_.clear(), counters_.clear();
  }
  void* bytes(int64_t count) override {
    blocks_.push_back(gpucheck::lend(count, 0xFF));
    return blocks_.back();
  }
  unsigned* counters(int64_t count) override {
    blocks_.push_back(gpucheck::lend(count * 4, 0));
    counters_.emplace_back(static_cast<unsigned*>(blocks_.back()), count);
    return counters_.back().first;
  }

 private:
  std::vector<void*> blocks_;
  std::vector<std::pair<unsigned*, int64_t>> counters_;
};

}  // namespace

namespace densenet_fast {

struct CudaDevice::Context::State {
  ExactWorkspace workspace;
  cuda::Launch launch;
};

CudaDevice::Context::Context(const Arguments& check) : state_(new State) {
  const cuda::Math math = check.dtype() == ScalarType::BFloat16 ? cuda::Math::kBFloat16
                          : check.dtype() == ScalarType::Half   ? cuda::Math::kHalf
                          : tf32                                ? cuda::Math::kTf32
                                                                : cuda::Math::kTf32x3;
  state_->launch = {math, cuda::device(gpucheck::device()), nullptr, &state_->workspace};
}
CudaDevice::Context::~Context() { delete state_; }
CudaDevice::Context::operator const cuda::Launch&() const { return state_->launch; }
void CudaDevice::Context::release() { state_->workspace.release(); }

const CudaDevice::Kernels& CudaDevice::kernels() {
  static const Kernels table = {
      "ptx",
      channel_stats,
      bn_bwd_apply,
      bn_relu_conv1x1_fwd,
      bn_relu_conv1x1_bwd,
      bn_relu_conv3x3_fwd,
      bn_relu_conv3x3_bwd,
      transition_fwd,
      transition_bwd,
      stem_fwd,
      stem_bwd,
      head_fwd,
      head_bwd,
  };
  return table;
}

void CudaDevice::pack_weights(const std::vector<Conv3x3Fwd*>& convolutions, Context& context) {
  const cuda::Launch& launch = context;
  Operands o(launch);
  for (const Conv3x3Fwd* op : convolutions) o.read(op->weight, op->G, op->C, 3);
  cuda::pack_weights(convolutions.data(), static_cast<int64_t>(convolutions.size()), launch);
}

void CudaDevice::update_running_stats(const std::vector<cuda::RunningStats>& norms, const cuda::Launch& launch) {
  Operands o(launch);
  const int sizes[] = {4, 8, 2, 2};  // of cuda::RunningType
  for (const cuda::RunningStats& n : norms) {
    o.read(n.mean, n.C), o.read(n.var, n.C);
    add(n.running_mean, 1, n.C, n.C, sizes[static_cast<int>(n.type_mean)], true);
    add(n.running_var, 1, n.C, n.C, sizes[static_cast<int>(n.type_var)], true);
    if (n.num_batches_tracked != nullptr) add(n.num_batches_tracked, 1, 1, 1, 8, true);
  }
  cuda::update_running_stats(norms.data(), static_cast<int64_t>(norms.size()), launch);
}

}  // namespace densenet_fast

// For Python.
extern "C" {
__attribute__((visibility("default"))) void set_tf32(bool allowed) { tf32 = allowed; }
__attribute__((visibility("default"))) bool counter_left() { return std::exchange(counter_is_left, false); }
}
