// The CUDA kernels as the operator entries see them: functions that issue an operation's launches on a stream.
#pragma once

#include "../operations.h"

struct CUstream_st;  // a cudaStream_t points to one; operator entries need no CUDA header

namespace densenet_fast::cuda {

// Device memory that lives until the operation's launches have run, on 256-byte boundaries.
class Workspace {
 public:
  virtual void* bytes(int64_t count) = 0;
  // Zeros; a kernel that counts with them leaves them at zero for the next launch.
  virtual unsigned* counters(int64_t count) = 0;
  float* floats(int64_t count) { return static_cast<float*>(bytes(count * static_cast<int64_t>(sizeof(float)))); }

 protected:
  ~Workspace() = default;
};

// The activations' type and how products are made; fp32: one TF32 product, or three for nearly fp32's precision.
enum class Math { kBFloat16, kHalf, kTf32, kTf32x3 };

struct DeviceProperties {
  int index;
  int multiprocessors;
  int shared_bytes;  // dynamic shared memory that a block may have beside kStaticBytes
};
// What is kept free for static shared memory: one flag (last_to_arrive), padded to the dynamic part's alignment.
constexpr int kStaticBytes = 128;

DeviceProperties device(int index);

// Where and how an operation runs.
struct Launch {
  Math math;
  DeviceProperties device;
  CUstream_st* stream;
  Workspace* workspace;

  int element_size() const { return math == Math::kBFloat16 || math == Math::kHalf ? 2 : 4; }
};

using Cuda = Operations<void, const Launch>;
using ConstMatrix = Cuda::ConstMatrix;
using Matrix = Cuda::Matrix;
using Weight = Cuda::Weight;
using ChannelStats = Cuda::ChannelStats;
using BnBwdApply = Cuda::BnBwdApply;
using Conv1x1Fwd = Cuda::Conv1x1Fwd;
using Conv1x1Bwd = Cuda::Conv1x1Bwd;
using Conv3x3Fwd = Cuda::Conv3x3Fwd;
using Conv3x3Bwd = Cuda::Conv3x3Bwd;
using TransitionFwd = Cuda::TransitionFwd;
using TransitionBwd = Cuda::TransitionBwd;
using StemFwd = Cuda::StemFwd;
using StemBwd = Cuda::StemBwd;
using HeadFwd = Cuda::HeadFwd;
using HeadBwd = Cuda::HeadBwd;
using Kernels = Cuda::Kernels;

// Each throws std::runtime_error if a launch fails.
void channel_stats(const ChannelStats& op, const Launch& launch);
void bn_bwd_apply(const BnBwdApply& op, const Launch& launch);
void bn_relu_conv1x1_fwd(const Conv1x1Fwd& op, const Launch& launch);
void bn_relu_conv1x1_bwd(const Conv1x1Bwd& op, const Launch& launch);
void bn_relu_conv3x3_fwd(const Conv3x3Fwd& op, const Launch& launch);  // whose weight is packed
void bn_relu_conv3x3_bwd(const Conv3x3Bwd& op, const Launch& launch);
void transition_fwd(const TransitionFwd& op, const Launch& launch);
void transition_bwd(const TransitionBwd& op, const Launch& launch);
void stem_fwd(const StemFwd& op, const Launch& launch);
void stem_bwd(const StemBwd& op, const Launch& launch);
void head_fwd(const HeadFwd& op, const Launch& launch);
void head_bwd(const HeadBwd& op, const Launch& launch);

// Packs the weights of convolutions, and tells these where, in the launch's workspace.
void pack_weights(Conv3x3Fwd* const* ops, int64_t count, const Launch& launch);

// bn_relu_conv1x1_bwd with parts left out: dx is written unless `accumulate`; op.z null: dz = u; op.norm.mean null: x
// is already the output of a ReLU, and v is masked where x is 0; op.dnorm.dgamma null: no sums for a norm.
void conv1x1_bwd(const Conv1x1Bwd& op, bool accumulate, const Launch& launch);

enum class RunningType : int16_t { kFloat, kDouble, kHalf, kBFloat16 };

// running += momentum * (batch - running) for one norm, and one batch more counted. No padding: a launch passes the
// same bytes each time.
struct RunningStats {
  void *running_mean, *running_var;  // [C]
  const float *mean, *var;           // [C]
  int32_t C;
  RunningType type_mean, type_var;
  double momentum, unbias;       // unbias = count / (count - 1)
  int64_t* num_batches_tracked;  // or null
};

void update_running_stats(const RunningStats* norms, int64_t count, const Launch& launch);

}  // namespace densenet_fast::cuda
