// A CUDA runtime without a driver, to be preloaded: PyTorch's device guard, streams and allocator and a library's own
// launches run on it as they are. Two devices, whose memory is the host's; copies are made, kernels are not run. It
// refuses what a driver would (driver.h) and streams of another device, and writes down every call (runtime.py).
//
// Not the driver below a real runtime: that one comes up on a stub of libcuda as far as cuInit, the devices, their
// contexts and its private tables of functions, and then demands that the driver prove itself by a keyed digest
// (cudaErrorSoftwareValidityNotEstablished, "integrity checks failed"), which is not ours to forge.
#include <cuda_runtime_api.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "driver.h"

struct CUstream_st {
  int device;
};

namespace {

constexpr int kDevices = 2, kMultiprocessors = 132, kMostSharedBytes = 232448;  // an H200's

// What Python knows of a kernel under test; it leaves those of PyTorch as they are.
using facts_t = void (*)(const char* kernel, int* static_bytes, int* most_threads, int* parameter_bytes);

struct Memory {
  size_t bytes;
  int device;
};

struct Kernel : driver::Kernel {
  int parameter_bytes = 0;
  bool asked = false;
};

struct Launch {
  driver::Extent grid, block;
  size_t shared;
  cudaStream_t stream;
};

struct State {
  std::recursive_mutex mutex;
  std::map<const void*, Kernel> kernels;  // by host function
  std::map<const char*, Memory> memory;   // by its start
  std::vector<std::string> calls;
  facts_t facts = nullptr;
  bool fail_launches = false;
};

// Kernels are registered before this file's own statics are made.
State& state() {
  static State* const made = new State;
  return *made;
}

thread_local int current = 0;
thread_local cudaError_t last_error = cudaSuccess;
thread_local Launch pushed;

void note(std::string call) {
  const std::lock_guard<std::recursive_mutex> lock(state().mutex);
  if (state().facts != nullptr) state().calls.push_back(std::move(call));
}

cudaError_t result(int error) {
  if (error != cudaSuccess) last_error = static_cast<cudaError_t>(error);
  return static_cast<cudaError_t>(error);
}

int device_of(const void* address) {
  const std::lock_guard<std::recursive_mutex> lock(state().mutex);
  auto after = state().memory.upper_bound(static_cast<const char*>(address));
  if (after == state().memory.begin()) return -1;
  const auto& [start, memory] = *--after;
  return static_cast<const char*>(address) < start + memory.bytes ? memory.device : -1;
}

// A kernel's facts are asked for when it is first used.
Kernel& kernel_of(const void* function) {
  const std::lock_guard<std::recursive_mutex> lock(state().mutex);
  Kernel& kernel = state().kernels.at(function);
  if (state().facts != nullptr && !std::exchange(kernel.asked, true))
    state().facts(kernel.name, &kernel.static_bytes, &kernel.most_threads, &kernel.parameter_bytes);
  return kernel;
}

std::string hexadecimal(const unsigned char* bytes, int count) {
  std::string text;
  for (int i = 0; i < count; i++) text += "0123456789abcdef"[bytes[i] / 16], text += "0123456789abcdef"[bytes[i] % 16];
  return text;
}

std::string text_of(const driver::Extent& e) {
  return std::to_string(e.x) + " " + std::to_string(e.y) + " " + std::to_string(e.z) + " ";
}

cudaError_t launch(const void* function, const Launch& how, void** args) {
  const std::lock_guard<std::recursive_mutex> lock(state().mutex);
  const Kernel& kernel = kernel_of(function);
  if (state().fail_launches && kernel.parameter_bytes > 0) return result(cudaErrorLaunchOutOfResources);
  if (how.stream != nullptr && how.stream->device != current) return result(cudaErrorInvalidResourceHandle);
  if (const int error = kernel.refuses(current, how.grid, how.block, how.shared)) return result(error);
  if (kernel.parameter_bytes > 0)
    note("launch " + std::string(kernel.name) + " " + text_of(how.grid) + text_of(how.block) +
         std::to_string(how.shared) + " " + std::to_string(reinterpret_cast<uintptr_t>(how.stream)) + " " +
         std::to_string(current) + " " +
         hexadecimal(static_cast<const unsigned char*>(args[0]), kernel.parameter_bytes));
  return cudaSuccess;
}

}  // namespace

// For Python.
extern "C" {
void stub_begin(facts_t facts) { state().facts = facts; }
int stub_calls() { return static_cast<int>(state().calls.size()); }
const char* stub_call(int i) { return state().calls[i].c_str(); }
void stub_clear() { state().calls.clear(); }
int stub_device_of(const void* address) { return device_of(address); }
void stub_fail_launches(bool fail) { state().fail_launches = fail; }
}

// What compiled .cu files call.
extern "C" {
void** __cudaRegisterFatBinary(void*) {
  static void* handle;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
char __cudaInitModule(void**) { return 0; }
void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
void __cudaRegisterFunction(void**, const char* function, char*, const char* name, int, void*, void*, void*, void*,
                            int*) {
  const std::lock_guard<std::recursive_mutex> lock(state().mutex);
  state().kernels[function] = {{name, 0, 1024, {}}};
}
unsigned __cudaPushCallConfiguration(driver::Extent grid, driver::Extent block, size_t shared, cudaStream_t stream) {
  pushed = {grid, block, shared, stream};
  return 0;
}
cudaError_t __cudaPopCallConfiguration(driver::Extent* grid, driver::Extent* block, size_t* shared, void* stream) {
  *grid = pushed.grid, *block = pushed.block, *shared = pushed.shared;
  *static_cast<cudaStream_t*>(stream) = pushed.stream;
  return cudaSuccess;
}
cudaError_t __cudaGetKernel(const void** kernel, const void* function) {
  *kernel = function;
  return cudaSuccess;
}
cudaError_t __cudaLaunchKernel(const void* kernel, driver::Extent grid, driver::Extent block, void** args,
                               size_t shared, cudaStream_t stream) {
  return launch(kernel, {grid, block, shared, stream}, args);
}
}

extern "C" {
// Devices.
cudaError_t cudaGetDeviceCount(int* count) {
  note("cudaGetDeviceCount");
  *count = kDevices;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = current;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= kDevices) return result(cudaErrorInvalidDevice);
  current = device;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  note("cudaDeviceGetAttribute");
  *value = attribute == cudaDevAttrMultiProcessorCount            ? kMultiprocessors
           : attribute == cudaDevAttrMaxSharedMemoryPerBlockOptin ? kMostSharedBytes
           : attribute == cudaDevAttrComputeCapabilityMajor       ? 9
                                                                  : 0;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  note("cudaGetDeviceProperties");
  *properties = {};
  std::strcpy(properties->name, "stub");
  properties->major = 9, properties->multiProcessorCount = kMultiprocessors, properties->warpSize = 32;
  properties->totalGlobalMem = size_t(1) << 34, properties->maxThreadsPerBlock = 1024;
  properties->maxThreadsPerMultiProcessor = 2048, properties->sharedMemPerBlockOptin = kMostSharedBytes;
  properties->maxGridSize[0] = 0x7FFFFFFF, properties->maxGridSize[1] = properties->maxGridSize[2] = 65535;
  return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() {
  note("cudaDeviceSynchronize");
  return cudaSuccess;
}

// Errors.
cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }
cudaError_t cudaPeekAtLastError() { return last_error; }
const char* cudaGetErrorString(cudaError_t error) { return error == cudaSuccess ? "no error" : "refused by the stub"; }
const char* cudaGetErrorName(cudaError_t) { return "error of the stub"; }

// Kernels.
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* function) {
  note("cudaFuncGetAttributes");
  const Kernel& kernel = kernel_of(function);
  *attributes = {};
  attributes->sharedSizeBytes = kernel.static_bytes, attributes->maxThreadsPerBlock = kernel.most_threads;
  return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute, int value) {
  note("cudaFuncSetAttribute");
  const std::lock_guard<std::recursive_mutex> lock(state().mutex);
  return result(kernel_of(function).allow(current, value, kMostSharedBytes));
}

// Memory.
cudaError_t cudaMalloc(void** memory, size_t bytes) {
  note("cudaMalloc");
  *memory = std::aligned_alloc(512, (bytes + 511) / 512 * 512);
  const std::lock_guard<std::recursive_mutex> lock(state().mutex);
  state().memory[static_cast<char*>(*memory)] = {bytes, current};
  return cudaSuccess;
}
cudaError_t cudaFree(void* memory) {
  note("cudaFree");
  const std::lock_guard<std::recursive_mutex> lock(state().mutex);
  state().memory.erase(static_cast<char*>(memory));
  std::free(memory);
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  *free = *total = size_t(1) << 34;
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t count, cudaMemcpyKind, cudaStream_t) {
  const int target = device_of(to), source = device_of(from);
  note(target < 0 ? "copy to the host" : source < 0 ? "copy from the host" : "copy on the device");
  std::memcpy(to, from, count);
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* to, int value, size_t count, cudaStream_t) {
  note("cudaMemsetAsync");
  std::memset(to, value, count);
  return cudaSuccess;
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer) {
  note("cudaPointerGetAttributes");
  *attributes = {};
  attributes->device = device_of(pointer);
  attributes->type = attributes->device < 0 ? cudaMemoryTypeUnregistered : cudaMemoryTypeDevice;
  return cudaSuccess;
}

// Streams and events.
cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  *least = *greatest = 0;
  return cudaSuccess;
}
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned, int) {
  note("cudaStreamCreateWithPriority");
  *stream = new CUstream_st{current};
  return cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  *status = cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t, cudaStreamCaptureStatus* status, unsigned long long*, cudaGraph_t*,
                                     const cudaGraphNode_t**, const cudaGraphEdgeData**, size_t*) {
  *status = cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode*) { return cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t) {
  note("cudaStreamSynchronize");
  return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  note("cudaEventCreateWithFlags");
  *event = reinterpret_cast<cudaEvent_t>(new char);
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return cudaSuccess; }
cudaError_t cudaEventRecordWithFlags(cudaEvent_t, cudaStream_t, unsigned) { return cudaSuccess; }
cudaError_t cudaEventQuery(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) { return cudaSuccess; }
}

// All that PyTorch asks of the driver itself: whether a device is in use. The library is loaded as libcuda.so.1.
extern "C" int cuDevicePrimaryCtxGetState(int, unsigned* flags, int* active) {
  *flags = 0, *active = 1;
  return 0;
}
