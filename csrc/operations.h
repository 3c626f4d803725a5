// What the kernels of every device compute: one structure of pointers and sizes for each operation of
// densenet_fast/contract, and a table of functions. NHWC: an activation [N, C, H, W] is a matrix of M = N*H*W rows of C
// channels.
#pragma once

#include <cstdint>

namespace densenet_fast {

struct Shape {
  int64_t N, H, W;
  int64_t rows() const { return N * H * W; }
};

struct Norm {
  const float *mean, *var;    // [C]
  const float *gamma, *beta;  // [C] or null
  double eps;
};

// dx = v - a - b * (x - mean).
struct Correction {
  const float *mean, *a, *b;  // [C]
};

// Mean and biased variance of a result's channels, null where they are not wanted.
struct Stats {
  float *mean, *var;  // [C]
};

// Where a backward ends: the norm's own gradient, and the correction of its channels, added to, or null if the norm did
// not use batch statistics.
struct NormGradient {
  float *dgamma, *dbeta;  // [C]
  float *a, *b;           // [C]
};

// Dropout of row-major elements [M, G] by densenet_fast/contract/operations.py; threshold 0 stands for none. No
// padding: a launch passes the same bytes each time.
struct Dropout {
  const int64_t* seed;  // in the device's memory
  uint32_t threshold;   // an element is kept if 24 random bits are at least this
  float multiplier;     // of a kept element
};

// element_t: the activations' type, or void if the kernels choose it. context_t: what the kernels need beside the
// operation, memory for instance.
template <class element_t, class context_t>
struct Operations {
  struct ConstMatrix {
    const element_t* data;  // [M, C]
    int64_t stride;         // elements from one row to the next
  };

  struct Matrix {
    element_t* data;  // [M, C]
    int64_t stride;
    operator ConstMatrix() const { return {data, stride}; }
  };

  // A convolution's weight [out, in, height, width], in any memory layout.
  struct Weight {
    const element_t* data;
    int64_t stride[4];
  };

  struct ChannelStats {
    int64_t M, C;
    ConstMatrix x;  // [M, C]
    Stats stats;
  };

  struct BnBwdApply {
    int64_t M, C;
    ConstMatrix v, x;  // [M, C]
    Correction correction;
    Matrix dx;  // [M, C]
  };

  struct Conv1x1Fwd {
    int64_t M, C, K;
    ConstMatrix x;  // [M, C]
    Norm norm;
    Weight weight;  // [K, C]
    Matrix z;       // [M, K]
    Stats stats;    // of z
  };

  struct Conv1x1Bwd {
    int64_t M, C, K;
    Matrix u;       // [M, K], becomes scratch
    ConstMatrix z;  // [M, K]
    Norm norm2;     // without beta
    Correction correction2;
    ConstMatrix x;  // [M, C]
    Norm norm;
    Weight weight;  // [K, C]
    Matrix dx;      // [M, C], added to
    NormGradient dnorm;
    element_t* dweight;  // [K, C] dense, or null
  };

  struct Conv3x3Fwd {
    Shape shape;
    int64_t C, G;
    ConstMatrix x;  // [M, C]
    Norm norm;
    Weight weight;  // [G, C, 3, 3]
    void* packed;   // the weight as the device's pack_weights left it, where kernels need that
    Dropout dropout;
    Matrix y;     // [M, G]
    Stats stats;  // of y
  };

  struct Conv3x3Bwd {
    Shape shape;
    int64_t C, G;
    ConstMatrix dy, y;  // [M, G]
    Correction correction_y;
    ConstMatrix x;  // [M, C]
    Norm norm;
    Weight weight;  // [G, C, 3, 3]
    Dropout dropout;
    Matrix u;  // [M, C]: written, or with `accumulate` added gamma * rstd * u
    bool accumulate;
    NormGradient dnorm;
    element_t* dweight;  // [G, C, 3, 3] dense, or null
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
    element_t* dweight;  // [K, C] dense, or null
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
    element_t* y;  // [N, C] dense
  };

  struct HeadBwd {
    Shape shape;
    int64_t C;
    ConstMatrix dy, x;  // dy [N, C]
    Norm norm;
    Matrix dx;  // [N*H*W, C]
    NormGradient dnorm;
  };

  struct Kernels {
    const char* name;  // of the instruction set, or the device
    void (*channel_stats)(const ChannelStats& op, context_t& context);
    void (*bn_bwd_apply)(const BnBwdApply& op, context_t& context);
    void (*bn_relu_conv1x1_fwd)(const Conv1x1Fwd& op, context_t& context);
    void (*bn_relu_conv1x1_bwd)(const Conv1x1Bwd& op, context_t& context);
    void (*bn_relu_conv3x3_fwd)(const Conv3x3Fwd& op, context_t& context);
    void (*bn_relu_conv3x3_bwd)(const Conv3x3Bwd& op, context_t& context);
    void (*transition_fwd)(const TransitionFwd& op, context_t& context);
    void (*transition_bwd)(const TransitionBwd& op, context_t& context);
    void (*stem_fwd)(const StemFwd& op, context_t& context);
    void (*stem_bwd)(const StemBwd& op, context_t& context);
    void (*head_fwd)(const HeadFwd& op, context_t& context);
    void (*head_bwd)(const HeadBwd& op, context_t& context);
  };
};

}  // namespace densenet_fast
