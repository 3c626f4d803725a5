// One call on a CUDA device: the device made current, PyTorch's current stream, and memory from PyTorch's allocator,
// which may be used again as soon as the launches that use it are on the stream.
#include <torch/csrc/stable/accelerator.h>

#include <algorithm>
#include <stdexcept>
#include <string>

#include "devices.h"

// Of libtorch_cuda, by way of libtorch: the library loads, and its CPU kernels run, where PyTorch comes without it.
#pragma weak aoti_torch_get_current_cuda_stream

namespace densenet_fast {

bool tf32_allowed();  // of module.cpp

std::string why_no_stream() {
  if (aoti_torch_get_current_cuda_stream != nullptr) return "";
  return "the PyTorch that is loaded lacks aoti_torch_get_current_cuda_stream, which tells the stream to launch on; "
         "install a PyTorch with CUDA";
}

namespace {

class TensorWorkspace final : public cuda::Workspace {
 public:
  explicit TensorWorkspace(torch::stable::Device device) : device_(device) {}

  void* bytes(int64_t count) override { return take(bytes_, count, ScalarType::Byte, 1 << 22); }
  unsigned* counters(int64_t count) override {
    return static_cast<unsigned*>(take(counters_, count, ScalarType::Int, 1 << 12));
  }
  // The largest chunk, which is the last, serves what follows.
  void release() {
    for (std::vector<Chunk>* chunks : {&bytes_, &counters_})
      if (!chunks->empty()) {
        chunks->erase(chunks->begin(), chunks->end() - 1);
        chunks->back().used = 0;
      }
  }

 private:
  struct Chunk {
    Tensor tensor;
    int64_t used;
  };

  // `count` elements, rounded up to 256, of the last chunk; of a new one where they do not fit.
  void* take(std::vector<Chunk>& chunks, int64_t count, ScalarType dtype, int64_t least) {
    const int64_t rounded = (count + 255) / 256 * 256;
    const int64_t size = chunks.empty() ? 0 : chunks.back().tensor.numel();
    if (chunks.empty() || chunks.back().used + rounded > size) {
      Tensor chunk = torch::stable::empty({std::max({rounded, least, size})}, dtype, std::nullopt, device_);
      if (dtype == ScalarType::Int) torch::stable::zero_(chunk);
      chunks.push_back({chunk, 0});
    }
    Chunk& last = chunks.back();
    char* const data = static_cast<char*>(last.tensor.mutable_data_ptr());
    last.used += rounded;
    return data + (last.used - rounded) * (dtype == ScalarType::Int ? 4 : 1);
  }

  torch::stable::Device device_;
  std::vector<Chunk> bytes_, counters_;
};

cuda::Math math(ScalarType dtype) {
  if (dtype == ScalarType::BFloat16) return cuda::Math::kBFloat16;
  if (dtype == ScalarType::Half) return cuda::Math::kHalf;
  return tf32_allowed() ? cuda::Math::kTf32 : cuda::Math::kTf32x3;
}

}  // namespace

struct CudaDevice::Context::State {
  torch::stable::accelerator::DeviceGuard guard;
  TensorWorkspace workspace;
  cuda::Launch launch;

  explicit State(const Arguments& check) : guard(check.device().index()), workspace(check.device()) {
    if (const std::string why = why_no_stream(); !why.empty()) throw std::runtime_error("densenet_fast: CUDA: " + why);
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(check.device().index(), &stream));
    launch = {math(check.dtype()), cuda::device(check.device().index()), static_cast<CUstream_st*>(stream), &workspace};
  }
};

CudaDevice::Context::Context(const Arguments& check) : state_(new State(check)) {}
CudaDevice::Context::~Context() { delete state_; }

CudaDevice::Context::operator const cuda::Launch&() const { return state_->launch; }

void CudaDevice::Context::release() { state_->workspace.release(); }

const CudaDevice::Kernels& CudaDevice::kernels() {
  static const Kernels table = {
      "cuda",
      cuda::channel_stats,
      cuda::bn_bwd_apply,
      cuda::bn_relu_conv1x1_fwd,
      cuda::bn_relu_conv1x1_bwd,
      cuda::bn_relu_conv3x3_fwd,
      cuda::bn_relu_conv3x3_bwd,
      cuda::transition_fwd,
      cuda::transition_bwd,
      cuda::stem_fwd,
      cuda::stem_bwd,
      cuda::head_fwd,
      cuda::head_bwd,
  };
  return table;
}

void CudaDevice::pack_weights(const std::vector<Conv3x3Fwd*>& convolutions, Context& context) {
  cuda::pack_weights(convolutions.data(), static_cast<int64_t>(convolutions.size()), context);
}

void CudaDevice::update_running_stats(const std::vector<cuda::RunningStats>& norms, const cuda::Launch& launch) {
  cuda::update_running_stats(norms.data(), static_cast<int64_t>(norms.size()), launch);
}

}  // namespace densenet_fast
