// How an entry, `template <class Device> void block_fwd(const contract::BlockFwd&)` for instance, becomes the operator
// of that name on every device.
#pragma once

#include "contract.h"
#include "devices.h"

namespace densenet_fast {

template <auto entry>
struct Boxed;

template <class Call, void (*entry)(const Call&)>
struct Boxed<entry> {
  static constexpr const char* kName = Call::kName;
  static void run(StableIValue* stack, uint64_t values, uint64_t results) {
    STD_TORCH_CHECK(values == Call::kValues && results == 0, "densenet_fast::", kName, ": wrong call: got ", values,
                    " values, expected ", Call::kValues, ", as the compiled library is of another version: rebuild it");
    Values taken(stack);
    entry(Call{taken});
  }
};

template <auto entry>
void implement(Library& m) {
  m.impl((std::string(Boxed<entry>::kName) + ".native").c_str(), Boxed<entry>::run);
}

// Registers what `template <class Device> void entries(Library&)` implements for every device the library has kernels
// for.
#ifdef DENSENET_FAST_CUDA
#define DENSENET_FAST_REGISTER(entries)                                       \
  STABLE_TORCH_LIBRARY_IMPL(densenet_fast, CPU, m) { entries<CpuDevice>(m); } \
  STABLE_TORCH_LIBRARY_IMPL(densenet_fast, CUDA, m) { entries<CudaDevice>(m); }
#else
#define DENSENET_FAST_REGISTER(entries) \
  STABLE_TORCH_LIBRARY_IMPL(densenet_fast, CPU, m) { entries<CpuDevice>(m); }
#endif

}  // namespace densenet_fast
