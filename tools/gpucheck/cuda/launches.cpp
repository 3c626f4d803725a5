// In the place of the CUDA runtime, linked to what nvcc compiled: a launch becomes a call of a Python function
// (launches.py), with the memory that it may touch (launches.h), and is refused where a driver would (driver.h).
#include "launches.h"

#include <cstdlib>
#include <cstring>
#include <map>
#include <utility>
#include <vector>

#include "driver.h"

namespace {

using driver::Extent;
using gpucheck::Region;
using launch_t = void (*)(const char* kernel, const unsigned* grid, const unsigned* block, int64_t shared, void** args,
                          const Region* regions, int64_t count);
using facts_t = void (*)(const char* kernel, int* static_bytes, int* most_threads);

struct State {
  launch_t launch;
  facts_t facts;
  int device, multiprocessors, most_shared_bytes;  // the present device, and its blocks' limit
  bool idle = false;
  bool refuse = false;  // dynamic shared memory beyond 48 KB
  int last_error = 0;
  std::map<const void*, driver::Kernel> kernels;  // by host function
  std::vector<Region> lent, operands;
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

}  // namespace

namespace gpucheck {

void forget_operands() { machine().operands.clear(); }

void may_touch(const Region& region) {
  if (region.data != nullptr && region.rows > 0 && region.columns > 0) machine().operands.push_back(region);
}

void* lend(int64_t bytes, int content) {
  void* const memory = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  if (!machine().idle) std::memset(memory, content, bytes);
  machine().lent.push_back({memory, 1, bytes, bytes, true});
  return memory;
}

void take_back(void* memory) {
  std::vector<Region>& lent = machine().lent;
  for (size_t i = lent.size(); i-- > 0;)
    if (lent[i].data == memory) lent.erase(lent.begin() + i);
  std::free(memory);
}

int device() { return machine().device; }
bool idle() { return machine().idle; }

}  // namespace gpucheck

#define EXPORTED __attribute__((visibility("default")))

// For Python.
extern "C" {
EXPORTED void set_callbacks(launch_t launch, facts_t facts) { machine().launch = launch, machine().facts = facts; }
EXPORTED void set_device(int multiprocessors, int shared_bytes) {
  machine().device++, machine().multiprocessors = multiprocessors, machine().most_shared_bytes = shared_bytes;
}
EXPORTED void set_idle(bool idle) { machine().idle = idle; }
EXPORTED void refuse_shared_memory(bool refuse) { machine().refuse = refuse, machine().device++; }
}

// What compiled .cu files ask of the CUDA runtime.
extern "C" {

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
  constexpr int kMultiProcessorCount = 16, kMaxSharedMemoryPerBlockOptin = 97;  // of cudaDeviceAttr
  if (attribute != kMultiProcessorCount && attribute != kMaxSharedMemoryPerBlockOptin) return driver::kInvalidValue;
  *value = attribute == kMultiProcessorCount ? machine().multiprocessors : machine().most_shared_bytes;
  return driver::kSuccess;
}
// The first member of cudaFuncAttributes is the static shared memory.
int cudaFuncGetAttributes(size_t* attributes, const void* function) {
  *attributes = kernel_of(function).static_bytes;
  return driver::kSuccess;
}
int cudaFuncSetAttribute(const void* function, int, int value) {
  const int most = machine().refuse ? driver::kUnasked : machine().most_shared_bytes;
  return machine().last_error = kernel_of(function).allow(machine().device, value, most);
}
int __cudaGetKernel(const void** kernel, const void* function) {
  *kernel = function;
  return driver::kSuccess;
}
int __cudaLaunchKernel(const void* kernel, Extent grid, Extent block, void** args, size_t shared, void*) {
  const driver::Kernel& launched = kernel_of(kernel);
  machine().last_error = launched.refuses(machine().device, grid, block, shared);
  if (machine().last_error != driver::kSuccess) return machine().last_error;
  std::vector<Region> regions = machine().operands;
  regions.insert(regions.end(), machine().lent.begin(), machine().lent.end());
  machine().launch(launched.name, &grid.x, &block.x, shared, args, regions.data(),
                   static_cast<int64_t>(regions.size()));
  return driver::kSuccess;
}
int cudaGetLastError() { return std::exchange(machine().last_error, 0); }
const char* cudaGetErrorString(int error) {
  return error == driver::kInvalidValue ? "invalid argument" : "invalid configuration argument";
}
}
