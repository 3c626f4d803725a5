// The CPU kernels as the operator entries see them: a table of functions for each instruction set and each type of the
// activations.
#pragma once

#include "../operations.h"

namespace densenet_fast::cpu {

// Uninitialised memory that lives until the operation returns, on 64-byte boundaries. Thread-safe.
class Workspace {
 public:
  virtual float* floats(int64_t count) = 0;
  double* doubles(int64_t count) { return reinterpret_cast<double*>(floats(2 * count)); }

 protected:
  ~Workspace() = default;
};

// Types of activations beside float: their bits.
struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

// element_t: one of the three.
template <class element_t>
using Cpu = Operations<element_t, Workspace>;

// Threads of PyTorch's pool that a parallel region may use.
int64_t thread_count();

// body(worker, context) for every worker in [0, workers), on the threads of PyTorch's pool.
void run_workers(int64_t workers, void (*body)(int64_t worker, void* context), void* context);

}  // namespace densenet_fast::cpu
