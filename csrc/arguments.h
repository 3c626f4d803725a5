// Checks of an operator's arguments. Every entry checks all of them before it allocates or writes anything; a refusal
// is one sentence with what was got and what was expected.
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
#ifdef DENSENET_FAST_CUDA
#include "cuda/kernels.h"
#endif

namespace densenet_fast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;

// A matrix of M rows before its type is known; becomes any device's.
struct Rows {
  void* data;
  int64_t stride;  // elements from one row to the next
  Rows(const void* data, int64_t stride) : data(const_cast<void*>(data)), stride(stride) {}
  template <class Matrix>
  Rows(const Matrix& m) : Rows(m.data, m.stride) {}
  template <class Matrix>
  operator Matrix() const {
    return {static_cast<decltype(Matrix::data)>(data), stride};
  }
};

// Where an entry's arguments lie, and whether its activations may be in half precision.
struct Place {
  bool cuda, half;
};

class Arguments {
 public:
  // The arguments of `operation` lie where x does, which is where the entry's must, and activations and weights have
  // its dtype.
  Arguments(const char* operation, Place place, const Tensor& x);

  // An activation [N, C, H, W] in NHWC memory; -1 stands for any size.
  Rows image(const char* name, const Tensor& t, int64_t N, int64_t C, int64_t H, int64_t W) const;
  Rows image(const char* name, const Tensor& t, const Shape& shape, int64_t C) const {
    return image(name, t, shape.N, C, shape.H, shape.W);
  }
  // The same rows from channel C on.
  Rows columns(const Rows& rows, int64_t C) const {
    return {static_cast<const char*>(rows.data) + C * (dtype_ == ScalarType::Float ? 4 : 2), rows.stride};
  }
  // N, H, W of an activation whose other properties are checked too.
  Shape shape(const char* name, const Tensor& t) const;
  // Refuses a written matrix [M, written_columns] that shares memory with a read one [M, read_columns].
  void disjoint(const char* written, Rows w, int64_t w_rows, int64_t w_columns, const char* read, Rows r,
                int64_t r_rows, int64_t r_columns) const;

  // A vector [size]; one that is strided in memory is copied.
  const float* vector(const char* name, const Tensor& t, int64_t size);
  const float* vector(const char* name, const MaybeTensor& t, int64_t size) {
    return t ? vector(name, *t, size) : nullptr;
  }
  // A vector that is written: contiguous.
  float* written_vector(const char* name, const Tensor& t, int64_t size) const;
  // y's statistics, where they are wanted.
  Stats written_stats(const MaybeTensor& y_mean, const MaybeTensor& y_var, int64_t C) const;
  Correction correction(const char* prefix, const Tensor& mean, const Tensor& a, const Tensor& b, int64_t C);
  // a and b of a norm's own gradient, to be added to.
  NormGradient norm_gradient(const Tensor& a, const Tensor& b, int64_t C, bool batch_stats) const;
  Norm norm(const Tensor& mean, const Tensor& var, const MaybeTensor& gamma, const MaybeTensor& beta, double eps,
            int64_t C, const char* suffix = "");

  // A convolution's weight [outputs, C, kernel, kernel] in any layout; outputs -1 stands for any number.
  void weight(const char* name, const Tensor& t, int64_t outputs, int64_t C, int64_t kernel) const;
  template <class Weight>
  void weight(Weight& to, const char* name, const Tensor& t, int64_t C, int64_t kernel) {
    weight(name, t, -1, C, kernel);
    const bool rows = kernel > 1 || C == 1 || t.stride(1) == 1;  // a 1x1 kernel's, whose inputs lie side by side
    if (!rows) copies_.push_back(torch::stable::contiguous(t));
    const Tensor& w = rows ? t : copies_.back();
    to = {static_cast<decltype(to.data)>(w.const_data_ptr()), {w.stride(0), w.stride(1), w.stride(2), w.stride(3)}};
  }
  // A weight that is written: contiguous, or empty if it is not wanted.
  template <class element_t>
  void written_weight(element_t*& to, const char* name, const Tensor& t, int64_t outputs, int64_t C,
                      int64_t kernel) const {
    to = nullptr;
    if (t.numel() == 0) return;
    weight(name, t, outputs, C, kernel);
    if (!t.is_contiguous()) refuse(std::string("memory of ") + name, "a strided tensor", "a contiguous one");
    to = static_cast<element_t*>(t.mutable_data_ptr());
  }
  Dropout dropout(double drop_rate, const MaybeTensor& seed) const;

  // A matrix [M, C], copied if it is not contiguous.
  Rows matrix(const char* name, const Tensor& t, int64_t M, int64_t C);

  void same_device(const char* name, const Tensor& t) const;
  void dtype_and_device(const char* name, const Tensor& t, ScalarType dtype) const;
  // Throws "densenet_fast::<operation>: wrong <what>: got <got>, expected <expected>".
  [[noreturn]] void refuse(const std::string& what, const std::string& got, const std::string& expected) const;

  // New tensors for results, where the arguments lie.
  Tensor new_vector(int64_t size) const;
  Tensor new_image(int64_t N, int64_t C, int64_t H, int64_t W) const;
  Tensor new_matrix(int64_t M, int64_t C) const;
  Tensor new_weight(const Tensor& like, bool wanted) const;  // like's sizes, contiguous; empty if not wanted

  ScalarType dtype() const { return dtype_; }
  torch::stable::Device device() const { return device_; }

 private:
  void sizes(const char* name, const Tensor& t, std::initializer_list<int64_t> expected) const;
  void not_empty(const char* name, const Tensor& t) const;

  const char* operation_;
  torch::stable::Device device_;
  ScalarType dtype_;
  std::vector<Tensor> copies_;
};

// A pair of vectors [C] for statistics or a norm's own gradient; empty if not wanted.
struct VectorPair {
  Tensor first, second;
  VectorPair(const Arguments& check, int64_t C, bool wanted = true)
      : first(check.new_vector(wanted ? C : 0)), second(check.new_vector(wanted ? C : 0)) {}
  Stats stats() const {
    return first.numel() ? Stats{first.mutable_data_ptr<float>(), second.mutable_data_ptr<float>()} : Stats{};
  }
  void hold(NormGradient& dnorm) const {
    dnorm.dgamma = first.mutable_data_ptr<float>(), dnorm.dbeta = second.mutable_data_ptr<float>();
  }
};

// A new tensor's memory, or null if it was not wanted.
template <class element_t>
void hold(element_t*& to, const Tensor& t, bool wanted = true) {
  to = wanted ? static_cast<element_t*>(t.mutable_data_ptr()) : nullptr;
}

// The devices: their operations, their kernels, and the context of one call.
struct CpuDevice : cpu::Cpu {
  static constexpr Place kPlace{false, false};
  static const Kernels& kernels();  // of the instruction set in use

  // Memory from PyTorch's allocator.
  class Context final : public cpu::Workspace {
   public:
    explicit Context(const Arguments&);
    ~Context();
    float* floats(int64_t count) override;
    Matrix matrix(int64_t M, int64_t C) { return {floats(M * C), C}; }
    void release();  // all memory, when the kernels that used it have run

   private:
    struct Blocks;
    Blocks* blocks_;
  };
};

#ifdef DENSENET_FAST_CUDA
struct CudaDevice : cuda::Cuda {
  static constexpr Place kPlace{true, true};
  static const Kernels& kernels();
  static void update_running_stats(const std::vector<cuda::RunningStats>& norms, const cuda::Launch& launch);

  // The tensors' device made current, PyTorch's stream on it, and memory from its allocator.
  class Context {
   public:
    explicit Context(const Arguments& check);
    ~Context();
    operator const cuda::Launch&() const;
    Matrix matrix(int64_t M, int64_t C);  // rows on 16 bytes
    void release();                       // all memory to the launches that follow

   private:
    struct State;
    State* state_;
  };
};
#endif

using Library = torch::stable::detail::StableLibrary;

// Registers what `template <class Device> void entries(Library&)` names for every device the library has kernels for.
#ifdef DENSENET_FAST_CUDA
#define DENSENET_FAST_REGISTER(entries)                                       \
  STABLE_TORCH_LIBRARY_IMPL(densenet_fast, CPU, m) { entries<CpuDevice>(m); } \
  STABLE_TORCH_LIBRARY_IMPL(densenet_fast, CUDA, m) { entries<CudaDevice>(m); }
#else
#define DENSENET_FAST_REGISTER(entries) \
  STABLE_TORCH_LIBRARY_IMPL(densenet_fast, CPU, m) { entries<CpuDevice>(m); }
#endif

}  // namespace densenet_fast
