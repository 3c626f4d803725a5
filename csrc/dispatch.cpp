// Which instruction set the CPU kernels use, and PyTorch's threads and memory for them.
#include <mutex>
#include <stdexcept>

#include "arguments.h"

namespace densenet_fast {

namespace cpu {
namespace portable {
extern const Kernels kernels;
}
#if defined(__x86_64__)
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}
#endif

int64_t thread_count() { return torch::stable::get_num_threads(); }

void run_workers(int64_t workers, void (*body)(int64_t worker, void* context), void* context) {
  torch::stable::parallel_for(0, workers, 1, [&](int64_t first, int64_t last) {
    for (int64_t worker = first; worker < last; worker++) body(worker, context);
  });
}

}  // namespace cpu

namespace {

struct Candidate {
  const cpu::Kernels* kernels;
  bool runs;
};

// Best first.
const std::vector<Candidate>& candidates() {
  static const std::vector<Candidate> all = {
#if defined(__x86_64__)
      {&cpu::avx512::kernels, __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                                  __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw")},
      {&cpu::avx2::kernels, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")},
#endif
      {&cpu::portable::kernels, true},
  };
  return all;
}

const cpu::Kernels*& chosen() {
  static const cpu::Kernels* best = nullptr;
  if (!best)
    for (const Candidate& c : candidates())
      if (c.runs) {
        best = c.kernels;
        break;
      }
  return best;
}

}  // namespace

const cpu::Kernels& CpuDevice::kernels() { return *chosen(); }

struct CpuDevice::Context::Blocks {
  std::vector<Tensor> tensors;
  std::mutex mutex;
};

CpuDevice::Context::Context(const Arguments&) : blocks_(new Blocks) {}
CpuDevice::Context::~Context() { delete blocks_; }

void CpuDevice::Context::release() { blocks_->tensors.clear(); }

float* CpuDevice::Context::floats(int64_t count) {
  Tensor t = torch::stable::empty({count}, ScalarType::Float);
  const std::lock_guard<std::mutex> lock(blocks_->mutex);
  blocks_->tensors.push_back(t);
  return t.mutable_data_ptr<float>();
}

std::string instruction_set_in_use() { return CpuDevice::kernels().name; }

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const Candidate& c : candidates())
    if (c.runs) names.emplace_back(c.kernels->name);
  return names;
}

std::vector<std::string> compiled_instruction_sets() {
  std::vector<std::string> names;
  for (const Candidate& c : candidates()) names.emplace_back(c.kernels->name);
  return names;
}

void use_instruction_set(const std::string& name) {
  std::string available;
  for (const Candidate& c : candidates()) {
    if (!c.runs) continue;
    if (name == c.kernels->name) {
      chosen() = c.kernels;
      return;
    }
    available += (available.empty() ? "" : ", ") + std::string(c.kernels->name);
  }
  throw std::runtime_error("wrong instruction set: got " + name + ", expected one of " + available);
}

}  // namespace densenet_fast
