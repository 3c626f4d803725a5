// Which instruction set the CPU kernels use, and PyTorch's memory for them.
#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <stdexcept>
#include <thread>
#include <utility>

#include "amx.h"
#include "devices.h"

namespace densenet_fast {

namespace cpu {

// Of one instruction set.
struct Tables {
  const char* name;
  const Cpu<float>::Kernels* of_float;
  const Cpu<bfloat16>::Kernels* of_bfloat16;
  const Cpu<float16>::Kernels* of_float16;
};

#define DENSENET_FAST_TABLE(isa, element)       \
  namespace isa##_##element {                   \
    extern const Cpu<element>::Kernels kernels; \
  }
#define DENSENET_FAST_TABLES(isa)    \
  DENSENET_FAST_TABLE(isa, float)    \
  DENSENET_FAST_TABLE(isa, bfloat16) \
  DENSENET_FAST_TABLE(isa, float16)  \
  constexpr Tables isa{#isa, &isa##_float::kernels, &isa##_bfloat16::kernels, &isa##_float16::kernels};

DENSENET_FAST_TABLES(portable)
DENSENET_FAST_TABLE(portable_bf16, bfloat16)
constexpr Tables portable_bf16{"portable_bf16", portable.of_float, &portable_bf16_bfloat16::kernels,
                               portable.of_float16};
DENSENET_FAST_TABLE(portable_amx_bf16, float)
DENSENET_FAST_TABLE(portable_amx_bf16, bfloat16)
namespace portable_amx_bf16_bfloat16 {
bool tiles_multiply();
}
constexpr Tables portable_amx_bf16{"portable_amx_bf16", &portable_amx_bf16_float::kernels,
                                   &portable_amx_bf16_bfloat16::kernels, portable.of_float16};
#if defined(__x86_64__)
DENSENET_FAST_TABLES(avx2)
DENSENET_FAST_TABLES(avx512)
#if defined(DENSENET_FAST_AVX512_BF16)  // the compiler knows it
DENSENET_FAST_TABLE(avx512_bf16, bfloat16)
constexpr Tables avx512_bf16{"avx512_bf16", avx512.of_float, &avx512_bf16_bfloat16::kernels, avx512.of_float16};
#endif
#if defined(DENSENET_FAST_AMX_BF16)
DENSENET_FAST_TABLE(amx_bf16, float)
DENSENET_FAST_TABLE(amx_bf16, bfloat16)
constexpr Tables amx_bf16{"amx_bf16", &amx_bf16_float::kernels, &amx_bf16_bfloat16::kernels, avx512.of_float16};
namespace amx_bf16_bfloat16 {
bool tiles_multiply();
}
#endif
#endif

}  // namespace cpu

std::string why_not_amx();

namespace {

struct Candidate {
  cpu::Tables tables;
  bool runs, pays;
  const char* name() const { return tables.name; }
};

#if defined(__x86_64__)
// F16C, of which __builtin_cpu_supports tells nothing with clang 14.
bool converts_float16() {
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}

bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
}

#if defined(DENSENET_FAST_AVX512_BF16) || defined(DENSENET_FAST_AMX_BF16)
bool multiplies_bfloat16() {
  unsigned a, b, c, d;
  return has_avx512() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & 1 << 5);  // AVX512_BF16
}
#endif
#endif

// Best first, of those that pay.
const std::vector<Candidate>& candidates() {
  static const std::vector<Candidate> all = {
#if defined(__x86_64__)
#if defined(DENSENET_FAST_AMX_BF16)
      {cpu::amx_bf16, why_not_amx().empty(), true},
#endif
#if defined(DENSENET_FAST_AVX512_BF16)
      // AMD's processors multiply pairs at the rate of FMA, Intel's at half of it at best.
      {cpu::avx512_bf16, multiplies_bfloat16(), __builtin_cpu_is("amd") != 0},
#endif
      {cpu::avx512, has_avx512(), true},
      {cpu::avx2, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && converts_float16(), true},
#endif
      {cpu::portable, true, true},
      {cpu::portable_bf16, true, false},  // computes as avx512_bf16 does, for tests
      {cpu::portable_amx_bf16, cpu::portable_amx_bf16_bfloat16::tiles_multiply(), false},  // and as amx_bf16 does
  };
  return all;
}

const Candidate*& chosen() {
  static const Candidate* best = nullptr;
  if (!best)
    for (const Candidate& c : candidates())
      if (c.runs && c.pays) {
        best = &c;
        break;
      }
  return best;
}

}  // namespace

template <>
const cpu::Cpu<float>::Kernels& CpuDevice<float>::kernels() {
  return *chosen()->tables.of_float;
}
template <>
const cpu::Cpu<cpu::bfloat16>::Kernels& CpuDevice<cpu::bfloat16>::kernels() {
  return *chosen()->tables.of_bfloat16;
}
template <>
const cpu::Cpu<cpu::float16>::Kernels& CpuDevice<cpu::float16>::kernels() {
  return *chosen()->tables.of_float16;
}

void prefer_large_pages([[maybe_unused]] Tensor fresh) {
#ifdef MADV_HUGEPAGE
  static const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto begin = reinterpret_cast<uintptr_t>(fresh.mutable_data_ptr());
  const uintptr_t from = (begin + page - 1) / page * page;
  const uintptr_t to = (begin + fresh.numel() * fresh.element_size()) / page * page;
  if (to > from) madvise(reinterpret_cast<void*>(from), to - from, MADV_HUGEPAGE);  // a hint: refused, nothing is lost
#endif
}

namespace {

// A lock for some nanoseconds: a mutex would put the threads that wait for it to sleep.
class SpinLock {
 public:
  explicit SpinLock(std::atomic_flag& flag) : flag_(flag) {
    while (flag_.test_and_set(std::memory_order_acquire)) std::this_thread::yield();
  }
  ~SpinLock() { flag_.clear(std::memory_order_release); }

 private:
  std::atomic_flag& flag_;
};

}  // namespace

// A tensor costs about a microsecond to allocate, so small requests share one, and what a kernel took is one for the
// next.
struct CpuContext::Arena {
  std::atomic_flag taken = ATOMIC_FLAG_INIT;
  std::vector<Tensor> tensors;
  int64_t used = 0;                       // floats handed out since the last release
  int64_t expected = 0;                   // floats of the next tensor, if that is more than kLeast
  float *free = nullptr, *end = nullptr;  // what is left of the last one

  static constexpr int64_t kLeast = 1 << 14;
};

CpuContext::CpuContext(const Arguments&) : arena_(new Arena) {}
CpuContext::~CpuContext() { delete arena_; }

void CpuContext::release() {
  Arena& arena = *arena_;
  if (arena.tensors.size() == 1) {
    arena.free = arena.tensors[0].mutable_data_ptr<float>();
  } else {
    arena.tensors.clear();
    arena.free = arena.end = nullptr;
    arena.expected = arena.used;
  }
  arena.used = 0;
}

float* CpuContext::floats(int64_t count) {
  count = (count + 15) / 16 * 16;  // 64 bytes, as the allocator aligns
  Arena& arena = *arena_;
  const SpinLock lock(arena.taken);
  if (count > arena.end - arena.free) {
    const int64_t size = std::max({count, std::exchange(arena.expected, 0), Arena::kLeast});
    arena.tensors.push_back(torch::stable::empty({size}, ScalarType::Float));
    arena.free = arena.tensors.back().mutable_data_ptr<float>();
    arena.end = arena.free + size;
  }
  arena.used += count;
  arena.free += count;
  return arena.free - count;
}

std::string why_not_amx() {
#if defined(DENSENET_FAST_AMX_BF16)
  static const std::string reason = multiplies_bfloat16()
                                        ? why_not_amx(this_machine(cpu::amx_bf16_bfloat16::tiles_multiply))
                                        : "the processor, or its hypervisor, does not offer AVX512-BF16";
  return reason;
#else
  return "it is not compiled in";
#endif
}

std::string instruction_set_in_use() { return chosen()->name(); }

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const Candidate& c : candidates())
    if (c.runs) names.emplace_back(c.name());
  return names;
}

std::vector<std::string> compiled_instruction_sets() {
  std::vector<std::string> names;
  for (const Candidate& c : candidates()) names.emplace_back(c.name());
  return names;
}

void use_instruction_set(const std::string& name) {
  std::string available;
  for (const Candidate& c : candidates()) {
    if (!c.runs) continue;
    if (name == c.name()) {
      chosen() = &c;
      return;
    }
    available += (available.empty() ? "" : ", ") + std::string(c.name());
  }
  throw std::runtime_error("wrong instruction set: got " + name + ", expected one of " + available);
}

}  // namespace densenet_fast
