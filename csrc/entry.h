// How an entry, `template <class Device> void block_fwd(const contract::BlockFwd&)` for instance, becomes the operator
// of that name on every device.
#pragma once

#include "contract.h"
#include "devices.h"

namespace densenet_fast {

template <class Call>
Call unboxed(StableIValue* stack, uint64_t values, uint64_t results) {
  STD_TORCH_CHECK(values == Call::kValues && results == 0, "densenet_fast::", Call::kName, ": wrong call: got ", values,
                  " values, expected ", Call::kValues, ", as the compiled library is of another version: rebuild it");
  Values taken(stack);
  return Call{taken};
}

// One entry for every type of the activations, or one for each; that for float refuses all other types.
template <auto... entries>
struct Boxed;

template <class Call, void (*entry)(const Call&)>
struct Boxed<entry> {
  static constexpr const char* kName = Call::kName;
  static void run(StableIValue* stack, uint64_t values, uint64_t results) {
    entry(unboxed<Call>(stack, values, results));
  }
};

template <class Call, void (*of_float)(const Call&), void (*of_bfloat16)(const Call&), void (*of_float16)(const Call&)>
struct Boxed<of_float, of_bfloat16, of_float16> {
  static constexpr const char* kName = Call::kName;
  static void run(StableIValue* stack, uint64_t values, uint64_t results) {
    const Call call = unboxed<Call>(stack, values, results);
    const ScalarType dtype = call.x.defined() ? call.x.scalar_type() : ScalarType::Float;
    (dtype == ScalarType::BFloat16 ? of_bfloat16 : dtype == ScalarType::Half ? of_float16 : of_float)(call);
  }
};

template <auto... entries>
void implement(Library& m) {
  m.impl((std::string(Boxed<entries...>::kName) + ".native").c_str(), Boxed<entries...>::run);
}

// Registers what `template <class... Devices> void entries(Library&)` implements for every device the library has
// kernels for.
#define DENSENET_FAST_REGISTER_ON_CPU(entries)                                       \
  STABLE_TORCH_LIBRARY_IMPL(densenet_fast, CPU, m) {                                 \
    entries<CpuDevice<float>, CpuDevice<cpu::bfloat16>, CpuDevice<cpu::float16>>(m); \
  }
#ifdef DENSENET_FAST_CUDA
#define DENSENET_FAST_REGISTER(entries)  \
  DENSENET_FAST_REGISTER_ON_CPU(entries) \
  STABLE_TORCH_LIBRARY_IMPL(densenet_fast, CUDA, m) { entries<CudaDevice>(m); }
#else
#define DENSENET_FAST_REGISTER(entries) DENSENET_FAST_REGISTER_ON_CPU(entries)
#endif

}  // namespace densenet_fast
