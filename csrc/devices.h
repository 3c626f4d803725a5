// The devices: their operations, their kernels, and the context of one call.
#pragma once

#include "arguments.h"
#include "cpu/kernels.h"
#ifdef DENSENET_FAST_CUDA
#include "cuda/kernels.h"
#endif

namespace densenet_fast {

// Memory from PyTorch's allocator.
class CpuContext final : public cpu::Workspace {
 public:
  explicit CpuContext(const Arguments&);
  ~CpuContext();
  float* floats(int64_t count) override;
  void release();  // all memory, when the kernels that used it have run

 private:
  struct Arena;
  Arena* arena_;
};

// Has the system back memory that is about to be written for the first time with large pages, if it can: what is longer
// than 32 MB comes from it anew at each step, and a fault for every 4 KB took a tenth of the step.
void prefer_large_pages(Tensor fresh);

// The CPU, with activations of this type: float, cpu::bfloat16 or cpu::float16.
template <class element_t>
struct CpuDevice : cpu::Cpu<element_t> {
  static constexpr bool kOnCuda = false;
  using Context = CpuContext;
  static const typename cpu::Cpu<element_t>::Kernels& kernels();  // of the instruction set in use
  static void prefer_large_pages(const Tensor& fresh) { densenet_fast::prefer_large_pages(fresh); }
  static void pack_weights(const std::vector<typename cpu::Cpu<element_t>::Conv3x3Fwd*>&, Context&) {}
};

#ifdef DENSENET_FAST_CUDA
struct CudaDevice : cuda::Cuda {
  static constexpr bool kOnCuda = true;
  static const Kernels& kernels();
  static void update_running_stats(const std::vector<cuda::RunningStats>& norms, const cuda::Launch& launch);
  static void prefer_large_pages(const Tensor&) {}  // PyTorch's allocator keeps a GPU's memory

  // The tensors' device made current, PyTorch's stream on it, and memory from its allocator.
  class Context {
   public:
    explicit Context(const Arguments& check);
    ~Context();
    operator const cuda::Launch&() const;
    void release();  // all memory to the launches that follow

   private:
    struct State;
    State* state_;
  };
  // Before these run, in as few launches as can be; what is packed lives as long as the context.
  static void pack_weights(const std::vector<Conv3x3Fwd*>& convolutions, Context& context);
};
#endif

}  // namespace densenet_fast
