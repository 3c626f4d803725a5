// Checks of an operator's arguments. Every entry checks all of them before it allocates or writes anything; a refusal is
// one sentence with what was got and what was expected.
#pragma once

// PyTorch's stable ABI as of 2.10, the oldest version in which the library loads.
#define TORCH_TARGET_VERSION (((0ULL + 2) << 56) | ((0ULL + 10) << 48))

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "cpu/kernels.h"

namespace densenet_fast {

using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;

class Arguments {
 public:
  explicit Arguments(const char* operation) : operation_(operation) {}

  // An activation [N, C, H, W] in NHWC memory; -1 stands for any size.
  cpu::ConstMatrix image(const char* name, const Tensor& t, int64_t N, int64_t C, int64_t H, int64_t W) const;
  cpu::ConstMatrix image(const char* name, const Tensor& t, const cpu::Shape& shape, int64_t C) const {
    return image(name, t, shape.N, C, shape.H, shape.W);
  }
  cpu::Matrix written_image(const char* name, const Tensor& t, const cpu::Shape& shape, int64_t C) const {
    const cpu::ConstMatrix m = image(name, t, shape, C);
    return {const_cast<float*>(m.data), m.stride};
  }
  // N, H, W of an activation whose other properties are checked too.
  cpu::Shape shape(const char* name, const Tensor& t) const;
  // Refuses a written matrix [M, written_columns] that shares memory with a read one [M, read_columns].
  void disjoint(const char* written, cpu::Matrix w, int64_t w_rows, int64_t w_columns, const char* read,
                cpu::ConstMatrix r, int64_t r_rows, int64_t r_columns) const;

  // A vector [size]; one that is strided in memory is copied.
  const float* vector(const char* name, const Tensor& t, int64_t size);
  const float* vector(const char* name, const MaybeTensor& t, int64_t size) {
    return t ? vector(name, *t, size) : nullptr;
  }
  // A vector that is written: contiguous.
  float* written_vector(const char* name, const Tensor& t, int64_t size) const;
  // y's statistics, where they are wanted.
  cpu::Stats written_stats(const MaybeTensor& y_mean, const MaybeTensor& y_var, int64_t C) const;
  cpu::Correction correction(const char* prefix, const Tensor& mean, const Tensor& a, const Tensor& b, int64_t C);
  // a and b of a norm's own gradient, to be added to.
  cpu::NormGradient norm_gradient(const Tensor& a, const Tensor& b, int64_t C, bool batch_stats) const;
  cpu::Norm norm(const Tensor& mean, const Tensor& var, const MaybeTensor& gamma, const MaybeTensor& beta, double eps,
                 int64_t C, const char* suffix = "");

  // A convolution's weight [outputs, C, kernel, kernel] in any layout; outputs -1 stands for any number.
  cpu::Weight weight(const char* name, const Tensor& t, int64_t outputs, int64_t C, int64_t kernel) const;
  cpu::Dropout dropout(double drop_rate, const MaybeTensor& seed) const;

  // A matrix [M, C], copied if it is not contiguous.
  const float* matrix(const char* name, const Tensor& t, int64_t M, int64_t C);

  void dtype_and_device(const char* name, const Tensor& t, torch::headeronly::ScalarType dtype) const;
  // Throws "densenet_fast::<operation>: wrong <what>: got <got>, expected <expected>".
  [[noreturn]] void refuse(const std::string& what, const std::string& got, const std::string& expected) const;

 private:
  void sizes(const char* name, const Tensor& t, std::initializer_list<int64_t> expected) const;
  void not_empty(const char* name, const Tensor& t) const;

  const char* operation_;
  std::vector<Tensor> copies_;
};

// New tensors for results: fp32 on the CPU.
Tensor new_vector(int64_t size);
Tensor new_image(int64_t N, int64_t C, int64_t H, int64_t W);
Tensor new_weight(const Tensor& like, bool wanted);  // like's sizes, contiguous; empty if not wanted
float* data(const Tensor& t);

// A pair of vectors [C] for statistics or a norm's own gradient; empty if not wanted.
struct VectorPair {
  Tensor first, second;
  VectorPair(int64_t C, bool wanted = true) : first(new_vector(wanted ? C : 0)), second(new_vector(wanted ? C : 0)) {}
  cpu::Stats stats() const { return first.numel() ? cpu::Stats{data(first), data(second)} : cpu::Stats{}; }
  void hold(cpu::NormGradient& dnorm) const { dnorm.dgamma = data(first), dnorm.dbeta = data(second); }
};

// Memory for one call, from PyTorch's allocator.
class TensorWorkspace final : public cpu::Workspace {
 public:
  TensorWorkspace();
  ~TensorWorkspace();
  float* floats(int64_t count) override;

 private:
  struct Blocks;
  Blocks* blocks_;
};

// The kernels of the instruction set in use.
const cpu::Kernels& kernels();

}  // namespace densenet_fast
