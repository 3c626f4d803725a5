// What the operator of each operation takes, from densenet_fast/contract, where all of it is explained: written by
// `python -m densenet_fast.contract.cpp`, to be changed there. A structure is made of the values of a call, from which
// its members take theirs in order: `BlockFwd{values}`.
#pragma once

#include "stable.h"

namespace densenet_fast::contract {

enum Half : int64_t {
  kFirst = 1,
  kSecond = 2,
  kBoth = 3,
};

enum LayerTensor : int64_t {
  kMean1,
  kVar1,
  kGamma1,
  kBeta1,
  kWeight1,
  kMean2,
  kVar2,
  kGamma2,
  kBeta2,
  kWeight2,
  kTensors,
};

enum LayerNumber : int64_t {
  kEps1,
  kEps2,
  kDropRate,
  kNumbers,
};

inline const char* name_of(LayerTensor value) {
  switch (value) {
    case kMean1: return "mean1";
    case kVar1: return "var1";
    case kGamma1: return "gamma1";
    case kBeta1: return "beta1";
    case kWeight1: return "weight1";
    case kMean2: return "mean2";
    case kVar2: return "var2";
    case kGamma2: return "gamma2";
    case kBeta2: return "beta2";
    case kWeight2: return "weight2";
    default: return "";
  }
}

constexpr int64_t kAligned = 64;

struct Block {
  Values& values;
  int64_t channels = values.take<int64_t>();
  std::vector<MaybeTensor> tensors = values.take<std::vector<MaybeTensor>>();
  std::vector<double> numbers = values.take<std::vector<double>>();
  MaybeTensor seeds = values.take<MaybeTensor>();
};

struct Norm {
  Values& values;
  Tensor mean = values.take<Tensor>();
  Tensor var = values.take<Tensor>();
  MaybeTensor gamma = values.take<MaybeTensor>();
  MaybeTensor beta = values.take<MaybeTensor>();
  double eps = values.take<double>();
};

struct NormGradient {
  Values& values;
  Tensor dgamma = values.take<Tensor>();
  Tensor dbeta = values.take<Tensor>();
  MaybeTensor correction = values.take<MaybeTensor>();
};

struct ChannelStats {
  static constexpr const char* kName = "channel_stats";
  static constexpr uint64_t kValues = 2;
  Values& values;
  Tensor x = values.take<Tensor>();
  Tensor stats = values.take<Tensor>();
};

struct BnBwdApply {
  static constexpr const char* kName = "bn_bwd_apply";
  static constexpr uint64_t kValues = 5;
  Values& values;
  Tensor v = values.take<Tensor>();
  Tensor x = values.take<Tensor>();
  Tensor mean = values.take<Tensor>();
  Tensor correction = values.take<Tensor>();
  Tensor dx = values.take<Tensor>();
};

struct UpdateRunningStats {
  static constexpr const char* kName = "update_running_stats";
  static constexpr uint64_t kValues = 7;
  Values& values;
  std::vector<Tensor> running_mean = values.take<std::vector<Tensor>>();
  std::vector<Tensor> running_var = values.take<std::vector<Tensor>>();
  std::vector<Tensor> num_batches_tracked = values.take<std::vector<Tensor>>();
  Tensor stats = values.take<Tensor>();
  std::vector<int64_t> begins = values.take<std::vector<int64_t>>();
  int64_t count = values.take<int64_t>();
  std::vector<double> momentum = values.take<std::vector<double>>();
};

struct BlockFwd {
  static constexpr const char* kName = "block_fwd";
  static constexpr uint64_t kValues = 11;
  Values& values;
  Tensor x = values.take<Tensor>();
  Tensor stats = values.take<Tensor>();
  MaybeTensor z = values.take<MaybeTensor>();
  Block block = {values};
  bool tracked = values.take<bool>();
  int64_t begin = values.take<int64_t>();
  int64_t end = values.take<int64_t>();
  int64_t halves = values.take<int64_t>();
};

struct BlockBwd {
  static constexpr const char* kName = "block_bwd";
  static constexpr uint64_t kValues = 14;
  Values& values;
  Tensor g = values.take<Tensor>();
  Tensor correction = values.take<Tensor>();
  Tensor x = values.take<Tensor>();
  Tensor stats = values.take<Tensor>();
  MaybeTensor z = values.take<MaybeTensor>();
  Block block = {values};
  std::vector<MaybeTensor> gradients = values.take<std::vector<MaybeTensor>>();
  MaybeTensor u = values.take<MaybeTensor>();
  int64_t begin = values.take<int64_t>();
  int64_t end = values.take<int64_t>();
  int64_t halves = values.take<int64_t>();
};

struct TransitionFwd {
  static constexpr const char* kName = "transition_fwd";
  static constexpr uint64_t kValues = 9;
  Values& values;
  Tensor x = values.take<Tensor>();
  Norm norm = {values};
  Tensor weight = values.take<Tensor>();
  Tensor y = values.take<Tensor>();
  MaybeTensor stats = values.take<MaybeTensor>();
};

struct TransitionBwd {
  static constexpr const char* kName = "transition_bwd";
  static constexpr uint64_t kValues = 13;
  Values& values;
  Tensor dy = values.take<Tensor>();
  Tensor x = values.take<Tensor>();
  Norm norm = {values};
  Tensor weight = values.take<Tensor>();
  Tensor dx = values.take<Tensor>();
  NormGradient dnorm = {values};
  MaybeTensor dweight = values.take<MaybeTensor>();
};

struct StemFwd {
  static constexpr const char* kName = "stem_fwd";
  static constexpr uint64_t kValues = 8;
  Values& values;
  Tensor x = values.take<Tensor>();
  Norm norm = {values};
  Tensor y = values.take<Tensor>();
  MaybeTensor stats = values.take<MaybeTensor>();
};

struct StemBwd {
  static constexpr const char* kName = "stem_bwd";
  static constexpr uint64_t kValues = 11;
  Values& values;
  Tensor dy = values.take<Tensor>();
  Tensor x = values.take<Tensor>();
  Norm norm = {values};
  Tensor dx = values.take<Tensor>();
  NormGradient dnorm = {values};
};

struct HeadFwd {
  static constexpr const char* kName = "head_fwd";
  static constexpr uint64_t kValues = 7;
  Values& values;
  Tensor x = values.take<Tensor>();
  Norm norm = {values};
  Tensor y = values.take<Tensor>();
};

struct HeadBwd {
  static constexpr const char* kName = "head_bwd";
  static constexpr uint64_t kValues = 11;
  Values& values;
  Tensor dy = values.take<Tensor>();
  Tensor x = values.take<Tensor>();
  Norm norm = {values};
  Tensor dx = values.take<Tensor>();
  NormGradient dnorm = {values};
};
}  // namespace densenet_fast::contract
