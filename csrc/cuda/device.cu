// The properties of a device that launches depend on, and the attribute that large shared memory needs.
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include "common.cuh"

namespace densenet_fast::cuda {

DeviceProperties device(int index) {
  static std::mutex mutex;
  static std::vector<DeviceProperties> known;
  const std::lock_guard<std::mutex> lock(mutex);
  if (static_cast<size_t>(index) >= known.size()) known.resize(index + 1);
  DeviceProperties& d = known[index];
  if (d.multiprocessors == 0) {
    check(cudaDeviceGetAttribute(&d.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, index));
    check(cudaDeviceGetAttribute(&d.multiprocessors, cudaDevAttrMultiProcessorCount, index));
    d.shared_bytes -= kStaticBytes;
    d.index = index;
  }
  return d;
}

void allow_shared_bytes(const void* kernel, int dynamic_bytes, const DeviceProperties& device) {
  static std::mutex mutex;
  static std::map<std::pair<const void*, int>, int> allowed;  // dynamic bytes, by kernel and device
  const std::lock_guard<std::mutex> lock(mutex);
  const auto at = std::make_pair(kernel, device.index);
  if (allowed.find(at) == allowed.end()) {
    cudaFuncAttributes attributes;
    check(cudaFuncGetAttributes(&attributes, kernel));
    allowed[at] = 48 * 1024 - static_cast<int>(attributes.sharedSizeBytes);
  }
  if (dynamic_bytes <= allowed[at]) return;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, dynamic_bytes));
  allowed[at] = dynamic_bytes;
}

}  // namespace densenet_fast::cuda
