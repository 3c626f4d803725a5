// A device for the entries of csrc: CPU tensors of every dtype, the CUDA kernels' own launches, and PTX for machine
// code. Included before each entry's file, it registers the entries as operators of `densenet_fast_ptx`; those of the
// CUDA device beside it, for a library with cuda_context.cpp (on_stub.py).
#pragma once

#include "entry.h"

namespace densenet_fast {

struct PtxDevice : CudaDevice {
  static constexpr bool kOnCuda = false;
};

}  // namespace densenet_fast

#undef DENSENET_FAST_REGISTER
#define DENSENET_FAST_REGISTER(entries)                                           \
  STABLE_TORCH_LIBRARY_IMPL(densenet_fast_ptx, CPU, m) { entries<PtxDevice>(m); } \
  STABLE_TORCH_LIBRARY_IMPL(densenet_fast_ptx, CUDA, m) { entries<CudaDevice>(m); }
