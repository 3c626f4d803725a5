// The CUDA kernels as the operator entries see them: plain structures of pointers and sizes, and one function per
// operation that issues its launches on a stream. Activations are NHWC: [N, C, H, W] is a matrix of M = N*H*W rows of C
// channels. Structures and fields are named as in cpu/kernels.h, so that one entry serves both devices.
#pragma once

#include <cstdint>

struct CUstream_st;  // a cudaStream_t points to one; operator entries need no CUDA header

namespace densenet_fast::cuda {

struct Shape {
  int64_t N, H, W;
  int64_t rows() const { return N * H * W; }
};

struct ConstMatrix {
  const void* data;  // [M, C] input_t
  int64_t stride;    // elements from one row to the next
};

struct Matrix {
  void* data;  // [M, C] input_t
  int64_t stride;
  operator ConstMatrix() const { return {data, stride}; }
};

// A convolution's weight [out, in, height, width], in any memory layout.
struct Weight {
  const void* data;  // input_t
  int64_t stride[4];
};

struct Norm {
  const float *mean, *var;    // [C]
  const float *gamma, *beta;  // [C] or null
  float eps;
};

// dx = v - a - b * (x - mean), of the channels a layer wrote.
struct Correction {
  const float *mean, *a, *b;  // [C]
};

// Mean and biased variance of a result's channels, null where they are not wanted.
struct Stats {
  float *mean, *var;  // [C]
};

// What the backward of a norm leaves: dgamma, dbeta, and its share of the deferred correction.
struct NormGradient {
  float *dgamma, *dbeta;  // [C]
  float *a, *b;           // [C], added to if batch_stats
  bool batch_stats;
};

// Dropout of row-major elements [M, G] by ops/bn_relu_conv3x3.py; seed null stands for none.
struct Dropout {
  const int64_t* seed;  // on the device
  uint32_t threshold;   // an element is kept if 24 random bits are at least this
  float multiplier;     // of a kept element
};

struct ChannelStats {
  int64_t M, C;
  ConstMatrix x;  // [M, C]
  Stats stats;
};

struct BnBwdApply {
  int64_t M, C;
  ConstMatrix v, x;  // [M, C]
  Correction norm;
  Matrix dx;  // [M, C]
};

enum class RunningType : int32_t { kFloat, kDouble, kHalf, kBFloat16 };

// running += momentum * (batch - running) for one norm.
struct RunningStats {
  void *running_mean, *running_var;  // [C]
  const float *mean, *var;           // [C]
  int32_t C;
  RunningType type_mean, type_var;
  double momentum, unbias;  // unbias = count / (count - 1)
};

struct Conv1x1Fwd {
  int64_t M, C, K;
  ConstMatrix x;  // [M, C]
  Norm norm;      // all null: x is what a ReLU gave
  Weight weight;  // [K, C]
  Matrix z;       // [M, K]
  Stats stats;    // of z
};

struct Conv1x1Bwd {
  int64_t M, C, K;
  ConstMatrix u;           // [M, K]
  ConstMatrix z;           // [M, K]; null: dz = u
  Norm z_norm;             // [K]; beta is not used
  const float *z_a, *z_b;  // [K]
  ConstMatrix x;           // [M, C]
  Norm norm;               // all null: x is what a ReLU gave
  Weight weight;           // [K, C]
  Matrix dx;               // [M, C]: added to, or without `accumulate` written
  bool accumulate;
  NormGradient dnorm;  // all null if there is no norm
  void* dweight;       // [K, C] dense input_t, or null
};

struct Conv3x3Fwd {
  Shape shape;
  int64_t C, G;
  ConstMatrix x;  // [M, C]
  Norm norm;
  Weight weight;  // [G, C, 3, 3]
  Dropout dropout;
  Matrix y;     // [M, G]
  Stats stats;  // of y
};

struct Conv3x3Bwd {
  Shape shape;
  int64_t C, G;
  ConstMatrix dy, y;  // [M, G]
  Correction norm_y;
  ConstMatrix x;  // [M, C]
  Norm norm;
  Weight weight;  // [G, C, 3, 3]
  Dropout dropout;
  Matrix u;         // [M, C]: written, or with `accumulate` added gamma * rstd * u
  bool accumulate;
  NormGradient dnorm;
  void* dweight;  // [G, C, 3, 3] dense input_t, or null
};

struct TransitionFwd {
  Shape shape;  // of x
  int64_t C, K;
  ConstMatrix x;  // [N*H*W, C]
  Norm norm;
  Weight weight;  // [K, C]
  Matrix y;       // [N*(H/2)*(W/2), K]
  Stats stats;    // of y
};

struct TransitionBwd {
  Shape shape;  // of x
  int64_t C, K;
  ConstMatrix dy;  // [N*(H/2)*(W/2), K]
  ConstMatrix x;   // [N*H*W, C]
  Norm norm;
  Weight weight;  // [K, C]
  Matrix dx;      // [N*H*W, C]
  NormGradient dnorm;
  void* dweight;  // [K, C] dense input_t, or null
};

struct StemFwd {
  Shape shape;  // of x
  int64_t C;
  ConstMatrix x;  // [N*H*W, C]
  Norm norm;
  Matrix y;     // [N*ceil(H/2)*ceil(W/2), C]
  Stats stats;  // of y
};

struct StemBwd {
  Shape shape;  // of x
  int64_t C;
  ConstMatrix dy, x;
  Norm norm;
  Matrix dx;  // [N*H*W, C]
  NormGradient dnorm;
};

struct HeadFwd {
  Shape shape;
  int64_t C;
  ConstMatrix x;  // [N*H*W, C]
  Norm norm;
  void* y;  // [N, C] dense
};

struct HeadBwd {
  Shape shape;
  int64_t C;
  ConstMatrix dy, x;  // dy [N, C]
  Norm norm;
  Matrix dx;  // [N*H*W, C]
  NormGradient dnorm;
};

// Device memory that lives until the operation's launches have run, on 256-byte boundaries.
class Workspace {
 public:
  virtual void* bytes(int64_t count) = 0;
  // Zeros; whoever counts up leaves them zero for the next launch.
  virtual unsigned* counters(int64_t count) = 0;
  float* floats(int64_t count) { return static_cast<float*>(bytes(count * static_cast<int64_t>(sizeof(float)))); }

 protected:
  ~Workspace() = default;
};

// input_t and how its products are made: fp32 rounded to TF32, or in three TF32 products.
enum class Math { kBFloat16, kHalf, kTf32, kTf32x3 };

// Where and how an operation runs.
struct Launch {
  Math math;
  CUstream_st* stream;
  int capability;       // 80, 90, ...
  int multiprocessors;
  int shared_bytes;     // dynamic shared memory a block may ask for
  Workspace* workspace;

  int element_size() const { return math == Math::kBFloat16 || math == Math::kHalf ? 2 : 4; }
};

// Each throws std::runtime_error if a launch fails.
void channel_stats(const ChannelStats& op, const Launch& launch);
void bn_bwd_apply(const BnBwdApply& op, const Launch& launch);
void update_running_stats(const RunningStats* norms, int64_t count, const Launch& launch);
void bn_relu_conv1x1_fwd(const Conv1x1Fwd& op, const Launch& launch);
void bn_relu_conv1x1_bwd(const Conv1x1Bwd& op, const Launch& launch);
void bn_relu_conv3x3_fwd(const Conv3x3Fwd& op, const Launch& launch);
void bn_relu_conv3x3_bwd(const Conv3x3Bwd& op, const Launch& launch);
void transition_fwd(const TransitionFwd& op, const Launch& launch);
void transition_bwd(const TransitionBwd& op, const Launch& launch);
void stem_fwd(const StemFwd& op, const Launch& launch);
void stem_bwd(const StemBwd& op, const Launch& launch);
void head_fwd(const HeadFwd& op, const Launch& launch);
void head_bwd(const HeadBwd& op, const Launch& launch);

}  // namespace densenet_fast::cuda
