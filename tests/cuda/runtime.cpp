// In the place of cuda_context.cpp and the CUDA runtime: a launch becomes a call of a Python function, with the memory
// that the operation may touch.
#include <cstdlib>
#include <cstring>
#include <map>
#include <stdexcept>

#include "arguments.h"
#include "driver.h"

using namespace densenet_fast;

namespace {

// A matrix in memory; stride and columns in bytes.
struct Region {
  const void* data;
  int64_t rows, columns, stride;
  bool written;
};

using launch_t = void (*)(const char* kernel, const unsigned* grid, int threads, int64_t shared, const void* params,
                          const Region* regions, int64_t count);
using facts_t = void (*)(const char* kernel, int* static_bytes, int* most_threads);
using driver::Extent;

struct State {
  launch_t launch;
  facts_t facts;
  int device, multiprocessors, most_shared_bytes;  // the present device, and its blocks' limit
  bool tf32 = false, idle = false;
  int element_size;
  bool counter_left = false;  // not zero after its operation
  bool refuse = false;        // dynamic shared memory beyond 48 KB
  int last_error = 0;
  std::map<const void*, driver::Kernel> kernels;  // by host function
  std::vector<Region> workspace, operands;
  Extent grid, block;
  size_t shared;
  void* stream;
};

// Kernels are registered before this file's own statics are made.
State& machine() {
  static State state;
  return state;
}

driver::Kernel& kernel_of(const void* function) {
  driver::Kernel& kernel = machine().kernels.at(function);
  if (kernel.most_threads == 0) machine().facts(kernel.name, &kernel.static_bytes, &kernel.most_threads);
  return kernel;
}

void add(const void* data, int64_t rows, int64_t columns, int64_t stride, int64_t size, bool written) {
  if (data != nullptr && rows > 0 && columns > 0)
    machine().operands.push_back({data, rows, columns * size, stride * size, written});
}

// The memory of each kind of operand.
struct Operands {
  explicit Operands(const cuda::Launch& launch) {
    machine().operands.clear();
    machine().element_size = launch.element_size();
  }
  void read(const cuda::ConstMatrix& m, int64_t rows, int64_t columns) {
    add(m.data, rows, columns, m.stride, machine().element_size, false);
  }
  void write(const cuda::Matrix& m, int64_t rows, int64_t columns) {
    add(m.data, rows, columns, m.stride, machine().element_size, true);
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
    add(w.data, 1, last + 1, last + 1, machine().element_size, false);
  }
  void write_dense(void* data, int64_t size) { add(data, 1, size, size, machine().element_size, true); }
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
  o.read(op.x, M, op.C), o.read(op.norm, op.C), o.read(op.weight, op.G, op.C, 3), o.read(op.dropout);
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
    for (const Region& r : machine().workspace)
      for (const unsigned* counters : counters_)
        for (int64_t i = 0; r.data == counters && !machine().idle && i < r.columns / 4; i++)
          machine().counter_left |= counters[i] != 0;
    for (void* p : blocks_) {
      for (size_t i = machine().workspace.size(); i-- > 0;)
        if (machine().workspace[i].data == p) machine().workspace.erase(machine().workspace.begin() + i);
      std::free(p);
    }
    blocks_.clear(), counters_.clear();
  }
  void* bytes(int64_t count) override { return allocate(count, 0xFF); }
  unsigned* counters(int64_t count) override {
    counters_.push_back(static_cast<unsigned*>(allocate(count * 4, 0)));
    return counters_.back();
  }

 private:
  void* allocate(int64_t count, int content) {
    void* const p = std::aligned_alloc(256, (count + 255) / 256 * 256);
    if (!machine().idle) std::memset(p, content, count);
    blocks_.push_back(p);
    machine().workspace.push_back({p, 1, count, count, true});
    return p;
  }
  std::vector<void*> blocks_;
  std::vector<unsigned*> counters_;
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
                          : machine().tf32                      ? cuda::Math::kTf32
                                                                : cuda::Math::kTf32x3;
  state_->launch = {math, cuda::device(machine().device), nullptr, &state_->workspace};
}
CudaDevice::Context::~Context() { delete state_; }
CudaDevice::Context::operator const cuda::Launch&() const { return state_->launch; }
CudaDevice::Matrix CudaDevice::Context::matrix(int64_t M, int64_t C) {
  const int64_t stride = (C + 7) / 8 * 8;
  return {state_->workspace.bytes(M * stride * state_->launch.element_size()), stride};
}

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

void CudaDevice::update_running_stats(const std::vector<cuda::RunningStats>& norms, const cuda::Launch& launch) {
  Operands o(launch);
  const int sizes[] = {4, 8, 2, 2};  // of cuda::RunningType
  for (const cuda::RunningStats& n : norms) {
    o.read(n.mean, n.C), o.read(n.var, n.C);
    add(n.running_mean, 1, n.C, n.C, sizes[static_cast<int>(n.type_mean)], true);
    add(n.running_var, 1, n.C, n.C, sizes[static_cast<int>(n.type_var)], true);
  }
  cuda::update_running_stats(norms.data(), static_cast<int64_t>(norms.size()), launch);
}

}  // namespace densenet_fast

// What compiled .cu files ask of the CUDA runtime.
extern "C" {

__attribute__((visibility("default"))) void set_callbacks(launch_t launch, facts_t facts) {
  machine().launch = launch, machine().facts = facts;
}
// Another device each time: what was allowed on the last one is not on this.
__attribute__((visibility("default"))) void set_machine(int multiprocessors, int shared_bytes, bool tf32) {
  machine().device++, machine().multiprocessors = multiprocessors, machine().most_shared_bytes = shared_bytes;
  machine().tf32 = tf32;
}

// Memory and counters are left as they are, for launches that nobody runs.
__attribute__((visibility("default"))) void set_idle(bool idle) { machine().idle = idle; }

__attribute__((visibility("default"))) void refuse_shared_memory(bool refuse) {
  machine().refuse = refuse, machine().device++;
}

__attribute__((visibility("default"))) bool counter_left() { return std::exchange(machine().counter_left, false); }

void** __cudaRegisterFatBinary(void*) {
  static void* handle;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
char __cudaInitModule(void**) { return 0; }
void __cudaRegisterFunction(void**, const char* function, char*, const char* name, int, void*, void*, void*, void*,
                            int*) {
  machine().kernels[function] = {name, 0, 0, {}};
}
unsigned __cudaPushCallConfiguration(Extent grid, Extent block, size_t shared, void* stream) {
  machine().grid = grid, machine().block = block, machine().shared = shared, machine().stream = stream;
  return 0;
}
int __cudaPopCallConfiguration(Extent* grid, Extent* block, size_t* shared, void** stream) {
  *grid = machine().grid, *block = machine().block, *shared = machine().shared, *stream = machine().stream;
  return 0;
}
int cudaDeviceGetAttribute(int* value, int attribute, int) {
  *value = attribute == 16 ? machine().multiprocessors : machine().most_shared_bytes;
  return 0;
}
// The first member of cudaFuncAttributes is the static shared memory.
int cudaFuncGetAttributes(size_t* attributes, const void* function) {
  *attributes = kernel_of(function).static_bytes;
  return 0;
}
int cudaFuncSetAttribute(const void* function, int, int value) {
  const int most = machine().refuse ? driver::kUnasked : machine().most_shared_bytes;
  return machine().last_error = kernel_of(function).allow(machine().device, value, most);
}
int __cudaGetKernel(const void** kernel, const void* function) {
  *kernel = function;
  return 0;
}
int __cudaLaunchKernel(const void* kernel, Extent grid, Extent block, void** args, size_t shared, void*) {
  const driver::Kernel& launched = kernel_of(kernel);
  machine().last_error = launched.refuses(machine().device, grid, block, shared);
  if (machine().last_error != driver::kSuccess) return machine().last_error;
  std::vector<Region> regions = machine().operands;
  regions.insert(regions.end(), machine().workspace.begin(), machine().workspace.end());
  machine().launch(launched.name, &grid.x, block.x, shared, args[0], regions.data(),
                   static_cast<int64_t>(regions.size()));
  return 0;
}
int cudaGetLastError() { return std::exchange(machine().last_error, 0); }
const char* cudaGetErrorString(int error) {
  return error == driver::kInvalidValue ? "invalid argument" : "invalid configuration argument";
}
}
