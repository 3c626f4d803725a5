// What a launch needs to know of a device.
#include <mutex>
#include <vector>

#include "common.cuh"

namespace densenet_fast::cuda {

Device device(int index) {
  static std::mutex mutex;
  static std::vector<Device> known;
  const std::lock_guard<std::mutex> lock(mutex);
  if (static_cast<size_t>(index) >= known.size()) known.resize(index + 1);
  Device& d = known[index];
  if (d.multiprocessors == 0) {
    check(cudaDeviceGetAttribute(&d.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, index));
    check(cudaDeviceGetAttribute(&d.multiprocessors, cudaDevAttrMultiProcessorCount, index));
    d.shared_bytes -= kStaticBytes;
  }
  return d;
}

}  // namespace densenet_fast::cuda
