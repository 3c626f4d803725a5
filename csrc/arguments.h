// Checks of an operator's arguments. Every entry checks all of them before it allocates or writes anything; a refusal
// is one sentence with what was got and what was expected.
#pragma once

#include <initializer_list>
#include <string>

#include "contract.h"
#include "operations.h"

namespace densenet_fast {

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

class Arguments {
 public:
  // The arguments of `operation` lie where x does, which is where the entry's must, and activations and weights have
  // its dtype.
  Arguments(const char* operation, bool on_cuda, const Tensor& x, const char* name = "x");

  // An activation [N, C, H, W] in NHWC memory; -1 stands for any size.
  Rows image(const char* name, const Tensor& t, int64_t N, int64_t C, int64_t H, int64_t W) const;
  Rows image(const char* name, const Tensor& t, const Shape& shape, int64_t C) const {
    return image(name, t, shape.N, C, shape.H, shape.W);
  }
  // N, H, W of an activation whose other properties are checked too.
  Shape shape(const char* name, const Tensor& t) const;
  // Activations in one line [size].
  Rows line(const char* name, const Tensor& t, int64_t size) const;
  // The same memory from that many elements on.
  Rows behind(const Rows& rows, int64_t elements) const {
    return {static_cast<const char*>(rows.data) + elements * (dtype_ == ScalarType::Float ? 4 : 2), rows.stride};
  }
  // A matrix [M, C], copied if it is not contiguous; one that is written must be.
  Rows matrix(const char* name, const Tensor& t, int64_t M, int64_t C);
  Rows written_matrix(const char* name, const Tensor& t, int64_t M, int64_t C) const;
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
  // A pair [2, C] in rows of contiguous elements.
  struct Pair {
    float *first, *second;
  };
  Pair pair(const char* name, const Tensor& t, int64_t C) const;
  // Mean and variance; none if they are not wanted.
  Stats stats(const MaybeTensor& t, int64_t C) const;
  Correction correction(const Tensor& mean, const Tensor& t, int64_t C);
  NormGradient norm_gradient(const contract::NormGradient& d, int64_t C) const;
  Norm norm(const contract::Norm& n, int64_t C);
  // That of a layer, whose tensors have names that end in `number`; without mean and var it takes those of the batch.
  Norm norm(const MaybeTensor& mean, const MaybeTensor& var, const MaybeTensor& gamma, const MaybeTensor& beta,
            double eps, int64_t C, const char* number, const Stats& batch);

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
  // A weight that is written: contiguous.
  template <class element_t>
  void written_weight(element_t*& to, const char* name, const MaybeTensor& t, int64_t outputs, int64_t C,
                      int64_t kernel) const {
    to = nullptr;
    if (!t) return;
    weight(name, *t, outputs, C, kernel);
    contiguous(name, *t);
    to = static_cast<element_t*>(t->mutable_data_ptr());
  }
  // int64 [count], copied if it is strided.
  const int64_t* seeds(const MaybeTensor& t, int64_t count);
  Dropout dropout(double drop_rate, const int64_t* seed) const;

  // PyTorch passes None for a tensor that may not be None.
  const Tensor& given(const char* name, const Tensor& t) const;
  const Tensor& given(const char* name, const MaybeTensor& t) const;
  void contiguous(const char* name, const Tensor& t) const;
  void same_device(const char* name, const Tensor& t) const;
  void dtype_and_device(const char* name, const Tensor& t, ScalarType dtype) const;
  // -1 stands for any size.
  void sizes(const char* name, const Tensor& t, std::initializer_list<int64_t> expected) const;
  // Throws "densenet_fast::<operation>: wrong <what>: got <got>, expected <expected>".
  [[noreturn]] void refuse(const std::string& what, const std::string& got, const std::string& expected) const;

  // New memory where the arguments lie, which lives as long as this.
  float* new_vector(int64_t size);
  Rows new_matrix(int64_t M, int64_t C);

  ScalarType dtype() const { return dtype_; }
  torch::stable::Device device() const { return device_; }

 private:
  void not_empty(const char* name, const Tensor& t) const;

  const char *operation_, *name_;  // name_: of x
  torch::stable::Device device_;
  ScalarType dtype_;
  std::vector<Tensor> copies_;
};

}  // namespace densenet_fast
