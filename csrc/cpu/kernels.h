// The CPU kernels as the operator entries see them: fp32, one table of functions per instruction set.
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

using Cpu = Operations<float, Workspace>;
using ConstMatrix = Cpu::ConstMatrix;
using Matrix = Cpu::Matrix;
using Weight = Cpu::Weight;
using ChannelStats = Cpu::ChannelStats;
using BnBwdApply = Cpu::BnBwdApply;
using Conv1x1Fwd = Cpu::Conv1x1Fwd;
using Conv1x1Bwd = Cpu::Conv1x1Bwd;
using Conv3x3Fwd = Cpu::Conv3x3Fwd;
using Conv3x3Bwd = Cpu::Conv3x3Bwd;
using TransitionFwd = Cpu::TransitionFwd;
using TransitionBwd = Cpu::TransitionBwd;
using StemFwd = Cpu::StemFwd;
using StemBwd = Cpu::StemBwd;
using HeadFwd = Cpu::HeadFwd;
using HeadBwd = Cpu::HeadBwd;
using Kernels = Cpu::Kernels;

// Threads of PyTorch's pool that a parallel region may use.
int64_t thread_count();

// body(worker, context) for every worker in [0, workers), on the threads of PyTorch's pool.
void run_workers(int64_t workers, void (*body)(int64_t worker, void* context), void* context);

}  // namespace densenet_fast::cpu
