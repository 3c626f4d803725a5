// What a driver knows of a kernel, and which launches it refuses: the rules of the CUDA C++ programming guide, "Compute
// Capabilities", alike from 8.0 on. For what stands in the place of the CUDA runtime.
#pragma once

#include <cstddef>
#include <map>

namespace driver {

struct Extent {
  unsigned x, y, z;
};

constexpr int kSuccess = 0, kInvalidValue = 1, kInvalidConfiguration = 9, kOutOfResources = 701;
constexpr int kUnasked = 48 * 1024;  // of shared memory, static and dynamic, that a block gets without being asked for

struct Kernel {
  const char* name;
  int static_bytes, most_threads;    // of the compiled kernel
  std::map<int, int> dynamic_bytes;  // of shared memory that were allowed, by device

  // cudaFuncSetAttribute of the dynamic shared memory on a device whose blocks may have `most`.
  int allow(int device, int bytes, int most) {
    if (bytes < 0 || bytes + static_bytes > most) return kInvalidValue;
    dynamic_bytes[device] = bytes;
    return kSuccess;
  }

  int refuses(int device, const Extent& grid, const Extent& block, size_t shared) const {
    if (grid.x < 1 || grid.y < 1 || grid.z < 1 || grid.x > 0x7FFFFFFF || grid.y > 65535 || grid.z > 65535)
      return kInvalidConfiguration;
    const size_t threads = static_cast<size_t>(block.x) * block.y * block.z;
    if (threads < 1 || threads > 1024 || block.z > 64) return kInvalidConfiguration;
    if (threads > static_cast<size_t>(most_threads)) return kOutOfResources;
    const auto allowed = dynamic_bytes.find(device);
    const int most = allowed != dynamic_bytes.end() ? allowed->second : 0;
    return shared + static_bytes <= kUnasked || shared <= static_cast<size_t>(most) ? kSuccess : kInvalidValue;
  }
};

}  // namespace driver
