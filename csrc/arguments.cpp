#include "arguments.h"

#include <cmath>
#include <stdexcept>

namespace densenet_fast {

namespace {

std::string text(const std::vector<int64_t>& sizes) {
  std::string s = "[";
  for (size_t i = 0; i < sizes.size(); i++) s += (i ? ", " : "") + (sizes[i] < 0 ? "any" : std::to_string(sizes[i]));
  return s + "]";
}

std::vector<int64_t> sizes_of(const Tensor& t) {
  std::vector<int64_t> s(t.dim());
  for (size_t i = 0; i < s.size(); i++) s[i] = t.size(i);
  return s;
}

std::vector<int64_t> strides_of(const Tensor& t) {
  std::vector<int64_t> s(t.dim());
  for (size_t i = 0; i < s.size(); i++) s[i] = t.stride(i);
  return s;
}

// Elements from one pixel of [N, C, H, W] to the next, or -1 if the pixels are no rows of contiguous channels at one
// constant stride.
int64_t row_stride(const Tensor& t) {
  const int64_t n = t.size(0), c = t.size(1), h = t.size(2), w = t.size(3);
  const int64_t row = w > 1 ? t.stride(3) : h > 1 ? t.stride(2) : n > 1 ? t.stride(0) : c;
  const bool ok = (c == 1 || t.stride(1) == 1) && row >= c && (w == 1 || h == 1 || t.stride(2) == w * row) &&
                  (n == 1 || h * w == 1 || t.stride(0) == h * w * row);
  return ok ? row : -1;
}

const char* name_of(bool cuda) { return cuda ? "cuda" : "cpu"; }

std::string name_of(const Tensor& t) {
  if (!t.is_cuda()) return t.is_cpu() ? "cpu" : "another device";
  return "cuda:" + std::to_string(t.get_device_index());
}

bool is_activation(ScalarType dtype) {
  return dtype == ScalarType::Float || dtype == ScalarType::Half || dtype == ScalarType::BFloat16;
}

}  // namespace

Arguments::Arguments(const char* operation, bool on_cuda, const Tensor& x, const char* name)
    : operation_(operation), name_(name), device_(given(name, x).device()), dtype_(x.scalar_type()) {
  if (on_cuda ? !x.is_cuda() : !x.is_cpu()) refuse(std::string("device of ") + name, name_of(x), name_of(on_cuda));
  if (!is_activation(dtype_))
    refuse(std::string("dtype of ") + name, torch::headeronly::toString(dtype_), "Float, Half or BFloat16");
}

void Arguments::refuse(const std::string& what, const std::string& got, const std::string& expected) const {
  throw std::runtime_error(std::string("densenet_fast::") + operation_ + ": wrong " + what + ": got " + got +
                           ", expected " + expected);
}

void Arguments::same_device(const char* name, const Tensor& t) const {
  if (given(name, t).device() == device_) return;
  const bool cuda = device_.is_cuda();
  refuse(std::string("device of ") + name, name_of(t),
         cuda ? "cuda:" + std::to_string(device_.index()) + ", where " + name_ + " is" : name_of(cuda));
}

void Arguments::dtype_and_device(const char* name, const Tensor& t, ScalarType dtype) const {
  same_device(name, t);
  if (t.scalar_type() != dtype)
    refuse(std::string("dtype of ") + name, torch::headeronly::toString(t.scalar_type()),
           torch::headeronly::toString(dtype));
}

void Arguments::sizes(const char* name, const Tensor& t, std::initializer_list<int64_t> expected) const {
  bool ok = t.dim() == static_cast<int64_t>(expected.size());
  int64_t i = 0;
  for (int64_t size : expected) {
    ok = ok && (size < 0 || t.size(i) == size);
    i++;
  }
  if (!ok) refuse(std::string("sizes of ") + name, text(sizes_of(t)), text(expected));
}

void Arguments::not_empty(const char* name, const Tensor& t) const {
  if (t.numel() == 0) refuse(std::string("sizes of ") + name, text(sizes_of(t)), "a tensor that is not empty");
}

Rows Arguments::image(const char* name, const Tensor& t, int64_t N, int64_t C, int64_t H, int64_t W) const {
  dtype_and_device(name, t, dtype_);
  sizes(name, t, {N, C, H, W});
  not_empty(name, t);
  const int64_t stride = row_stride(t);
  if (stride < 0)
    refuse(std::string("strides of ") + name, text(strides_of(t)) + " for " + text(sizes_of(t)),
           "NHWC memory: rows of contiguous channels at one constant stride");
  return {t.const_data_ptr(), stride};
}

Shape Arguments::shape(const char* name, const Tensor& t) const {
  image(name, t, -1, -1, -1, -1);
  return {t.size(0), t.size(2), t.size(3)};
}

Rows Arguments::line(const char* name, const Tensor& t, int64_t size) const {
  dtype_and_device(name, t, dtype_);
  sizes(name, t, {size});
  contiguous(name, t);
  return {t.const_data_ptr(), size};
}

Rows Arguments::matrix(const char* name, const Tensor& t, int64_t M, int64_t C) {
  dtype_and_device(name, t, dtype_);
  sizes(name, t, {M, C});
  if (!t.is_contiguous()) copies_.push_back(torch::stable::contiguous(t));
  return {(t.is_contiguous() ? t : copies_.back()).const_data_ptr(), C};
}

Rows Arguments::written_matrix(const char* name, const Tensor& t, int64_t M, int64_t C) const {
  dtype_and_device(name, t, dtype_);
  sizes(name, t, {M, C});
  contiguous(name, t);
  return {t.mutable_data_ptr(), C};
}

void Arguments::disjoint(const char* written, Rows w, int64_t w_rows, int64_t w_columns, const char* read, Rows r,
                         int64_t r_rows, int64_t r_columns) const {
  const int64_t size = dtype_ == ScalarType::Float ? 4 : 2;
  const int64_t from_w_to_r = (static_cast<const char*>(r.data) - static_cast<const char*>(w.data)) / size;
  if ((w_rows - 1) * w.stride + w_columns <= from_w_to_r || (r_rows - 1) * r.stride + r_columns <= -from_w_to_r) return;
  // Slices of one buffer: the columns of each must lie in the gap between the other's rows.
  const int64_t distance = (from_w_to_r % w.stride + w.stride) % w.stride;
  const bool ok = w.stride == r.stride && distance >= w_columns && distance + r_columns <= w.stride;
  if (!ok)
    refuse(std::string("memory of ") + written, std::string("memory that ") + read + " shares", "memory of its own");
}

const float* Arguments::vector(const char* name, const Tensor& t, int64_t size) {
  dtype_and_device(name, t, ScalarType::Float);
  sizes(name, t, {size});
  if (size == 1 || t.stride(0) == 1) return t.const_data_ptr<float>();
  copies_.push_back(torch::stable::contiguous(t));
  return copies_.back().const_data_ptr<float>();
}

float* Arguments::written_vector(const char* name, const Tensor& t, int64_t size) const {
  dtype_and_device(name, t, ScalarType::Float);
  sizes(name, t, {size});
  if (size > 1 && t.stride(0) != 1) refuse(std::string("strides of ") + name, text(strides_of(t)), "[1]");
  return t.mutable_data_ptr<float>();
}

Arguments::Pair Arguments::pair(const char* name, const Tensor& t, int64_t C) const {
  dtype_and_device(name, t, ScalarType::Float);
  sizes(name, t, {2, C});
  if ((C > 1 && t.stride(1) != 1) || t.stride(0) < C)
    refuse(std::string("strides of ") + name, text(strides_of(t)) + " for " + text(sizes_of(t)),
           "two rows of contiguous elements");
  float* const first = t.mutable_data_ptr<float>();
  return {first, first + t.stride(0)};
}

Stats Arguments::stats(const MaybeTensor& t, int64_t C) const {
  if (!t) return {};
  const auto [mean, var] = pair("stats", *t, C);
  return {mean, var};
}

Correction Arguments::correction(const Tensor& mean, const Tensor& t, int64_t C) {
  const auto [a, b] = pair("correction", t, C);
  return {vector("mean", mean, C), a, b};
}

NormGradient Arguments::norm_gradient(const contract::NormGradient& d, int64_t C) const {
  const auto [a, b] = d.correction ? pair("correction", *d.correction, C) : Pair{};
  return {written_vector("dgamma", d.dgamma, C), written_vector("dbeta", d.dbeta, C), a, b};
}

Norm Arguments::norm(const contract::Norm& n, int64_t C) {
  return {vector("mean", n.mean, C), vector("var", n.var, C), vector("gamma", n.gamma, C), vector("beta", n.beta, C),
          n.eps};
}

Norm Arguments::norm(const MaybeTensor& mean, const MaybeTensor& var, const MaybeTensor& gamma, const MaybeTensor& beta,
                     double eps, int64_t C, const char* number, const Stats& batch) {
  const auto name = [number](const char* of) { return std::string(of) + number; };
  const bool own = mean || var;
  return {own ? vector(name("mean").c_str(), given(name("mean").c_str(), mean), C) : batch.mean,
          own ? vector(name("var").c_str(), given(name("var").c_str(), var), C) : batch.var,
          vector(name("gamma").c_str(), gamma, C), vector(name("beta").c_str(), beta, C), eps};
}

void Arguments::weight(const char* name, const Tensor& t, int64_t outputs, int64_t C, int64_t kernel) const {
  dtype_and_device(name, t, dtype_);
  sizes(name, t, {outputs, C, kernel, kernel});
  not_empty(name, t);
}

const int64_t* Arguments::seeds(const MaybeTensor& t, int64_t count) {
  if (!t) return nullptr;
  dtype_and_device("seeds", *t, ScalarType::Long);
  sizes("seeds", *t, {count});
  if (t->is_contiguous()) return t->const_data_ptr<int64_t>();
  copies_.push_back(torch::stable::contiguous(*t));
  return copies_.back().const_data_ptr<int64_t>();
}

Dropout Arguments::dropout(double drop_rate, const int64_t* seed) const {
  if (seed == nullptr || drop_rate == 0) return {nullptr, 0, 1};
  if (!(drop_rate >= 0 && drop_rate <= 1)) refuse("drop_rate", std::to_string(drop_rate), "a number between 0 and 1");
  const auto threshold = static_cast<uint32_t>(std::nearbyint(drop_rate * (1 << 24)));
  const float kept = 1.f / static_cast<float>(drop_rate < 1 ? 1 - drop_rate : 1);
  return {seed, threshold, kept};
}

const Tensor& Arguments::given(const char* name, const Tensor& t) const {
  if (!t.defined()) refuse(name, "None", "a tensor");
  return t;
}

const Tensor& Arguments::given(const char* name, const MaybeTensor& t) const {
  if (!t) refuse(name, "None", "a tensor");
  return *t;
}

void Arguments::contiguous(const char* name, const Tensor& t) const {
  if (!t.is_contiguous()) refuse(std::string("memory of ") + name, "a strided tensor", "a contiguous one");
}

float* Arguments::new_vector(int64_t size) {
  copies_.push_back(torch::stable::empty({size}, ScalarType::Float, std::nullopt, device_));
  return copies_.back().mutable_data_ptr<float>();
}

Rows Arguments::new_matrix(int64_t M, int64_t C) {
  copies_.push_back(torch::stable::empty({M, C}, dtype_, std::nullopt, device_));
  return {copies_.back().mutable_data_ptr(), C};
}

}  // namespace densenet_fast
