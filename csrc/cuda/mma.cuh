// All inline PTX: cp.async, ldmatrix, mma.sync and packed conversions, for sm_80 and later. A product is described by a
// math type: input_t in memory, what a fragment holds, how it is multiplied. A k step is 32 bytes of a row: 16 elements
// of a 16-bit type, 8 of fp32.
#pragma once

#include <cuda_runtime.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>

namespace densenet_fast::cuda {

using bf16 = c10::BFloat16;
using f16 = c10::Half;
using acc_t = float;

struct BFloat16Math {
  using input_t = bf16;
};
struct HalfMath {
  using input_t = f16;
};
struct Tf32Math {
  using input_t = float;
};
// x = high + low in TF32: 22 bits of each factor; Inf becomes NaN.
struct Tf32x3Math {
  using input_t = float;
};

template <class input_t>
constexpr int kKStep = 32 / sizeof(input_t);
template <class input_t>
constexpr int kVector = 16 / sizeof(input_t);  // elements of a 16-byte piece

// The numbers of the thread and of the block, read anew: what follows from them is found again instead of kept in
// registers that the products need.
__device__ __forceinline__ int thread_again() {
  int x;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(x));
  return x;
}
__device__ __forceinline__ int block_again() {
  int x;
  asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(x));
  return x;
}

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// Copies `bytes` (0..16) and zero-fills the rest of 16; both addresses on 16-byte boundaries.
__device__ __forceinline__ void cp_async_16(void* to, const void* from, int bytes) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes)
               : "memory");
}
// Copies `bytes` (0..4) and zero-fills the rest of 4.
__device__ __forceinline__ void cp_async_4(void* to, const void* from, int bytes) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kPending>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Lanes 8i..8i+7 give the row addresses of 8x8 matrix i of 16-bit elements (8x4 of 32-bit ones); register i gets it.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
__device__ __forceinline__ void ldmatrix_x2(uint32_t (&r)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(row))
               : "memory");
}
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// max(x, 0) that keeps NaN, as PyTorch's ReLU does.
__device__ __forceinline__ float relu(float x) {
  float r;
  asm("max.NaN.f32 %0, %1, 0f00000000;" : "=f"(r) : "f"(x));
  return r;
}

// Two neighbouring elements of a row, and the same in fp32.
template <class input_t>
struct Pair;

template <>
struct Pair<bf16> {
  uint32_t bits;
  __device__ __forceinline__ float2 unpack() const {
    return make_float2(__uint_as_float(bits << 16), __uint_as_float(bits & 0xffff0000u));
  }
  __device__ __forceinline__ static Pair pack(float low, float high) {
    Pair p;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(p.bits) : "f"(high), "f"(low));
    return p;
  }
  __device__ __forceinline__ static Pair pack_relu(float low, float high) {
    Pair p;
    asm("cvt.rn.relu.bf16x2.f32 %0, %1, %2;" : "=r"(p.bits) : "f"(high), "f"(low));
    return p;
  }
};

template <>
struct Pair<f16> {
  uint32_t bits;
  __device__ __forceinline__ float2 unpack() const {
    float2 r;
    asm("{.reg .f16 l,h; mov.b32 {l,h}, %2; cvt.f32.f16 %0, l; cvt.f32.f16 %1, h;}" : "=f"(r.x), "=f"(r.y) : "r"(bits));
    return r;
  }
  __device__ __forceinline__ static Pair pack(float low, float high) {
    Pair p;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(p.bits) : "f"(high), "f"(low));
    return p;
  }
  __device__ __forceinline__ static Pair pack_relu(float low, float high) {
    Pair p;
    asm("cvt.rn.relu.f16x2.f32 %0, %1, %2;" : "=r"(p.bits) : "f"(high), "f"(low));
    return p;
  }
};

template <>
struct alignas(8) Pair<float> {
  float2 value;
  __device__ __forceinline__ float2 unpack() const { return value; }
  __device__ __forceinline__ static Pair pack(float low, float high) { return {make_float2(low, high)}; }
  __device__ __forceinline__ static Pair pack_relu(float low, float high) {
    return {make_float2(relu(low), relu(high))};
  }
};

__device__ __forceinline__ uint32_t to_tf32(float x) {
  uint32_t r;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(r) : "f"(x));
  return r;
}

// N registers of an operand, ready to multiply.
template <class math_t, int N>
struct Fragment {
  uint32_t r[N];
  Fragment() = default;
  __device__ __forceinline__ explicit Fragment(const uint32_t (&raw)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) r[i] = raw[i];
  }
};

template <int N>
struct Fragment<Tf32Math, N> {
  uint32_t r[N];
  Fragment() = default;
  __device__ __forceinline__ explicit Fragment(const uint32_t (&raw)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) r[i] = to_tf32(__uint_as_float(raw[i]));
  }
};

template <int N>
struct Fragment<Tf32x3Math, N> {
  uint32_t r[N], low[N];
  Fragment() = default;
  __device__ __forceinline__ explicit Fragment(const uint32_t (&raw)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) {
      const float x = __uint_as_float(raw[i]);
      r[i] = to_tf32(x);
      low[i] = to_tf32(x - __uint_as_float(r[i]));
    }
  }
};

__device__ __forceinline__ void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// d[16, 8] += a[16, k step] * b[k step, 8]. Lane 4g + t holds d at rows g (d[0], d[1]) and g + 8, columns 2t, 2t + 1;
// a: {rows 0-7, rows 8-15} of the first half step, then of the second; b: {first half step, second}.
__device__ __forceinline__ void mma(float (&d)[4], const Fragment<BFloat16Math, 4>& a,
                                    const Fragment<BFloat16Math, 2>& b) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "r"(b.r[0]), "r"(b.r[1]));
}
__device__ __forceinline__ void mma(float (&d)[4], const Fragment<HalfMath, 4>& a, const Fragment<HalfMath, 2>& b) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "r"(b.r[0]), "r"(b.r[1]));
}
__device__ __forceinline__ void mma(float (&d)[4], const Fragment<Tf32Math, 4>& a, const Fragment<Tf32Math, 2>& b) {
  mma_tf32(d, a.r, b.r);
}
__device__ __forceinline__ void mma(float (&d)[4], const Fragment<Tf32x3Math, 4>& a, const Fragment<Tf32x3Math, 2>& b) {
  // The tensor core truncates what it adds to, which over a long sum costs digits: only short ones are left to it.
  float sum[4] = {};
  mma_tf32(sum, a.low, b.r);
  mma_tf32(sum, a.r, b.low);
  mma_tf32(sum, a.r, b.r);
#pragma unroll
  for (int i = 0; i < 4; i++) d[i] += sum[i];
}

// Raw registers of A [16, k step] from shared memory with rows of kPitch bytes; `tile` is its first element.
template <int kPitch>
__device__ __forceinline__ void load_a(uint32_t (&raw)[4], const unsigned char* tile, int lane) {
  ldmatrix_x4(raw, tile + (lane & 15) * kPitch + (lane >> 4) * 16);
}
// The same of A stored transposed, [k step, 16].
template <class input_t, int kPitch>
__device__ __forceinline__ void load_a_transposed(uint32_t (&raw)[4], const unsigned char* tile, int lane) {
  if constexpr (sizeof(input_t) == 2) {
    ldmatrix_x4_trans(raw, tile + ((lane & 7) + (lane >> 4) * 8) * kPitch + ((lane >> 3) & 1) * 16);
  } else {
    const unsigned char* at = tile + (lane & 3) * kPitch + (lane >> 2) * 4;
#pragma unroll
    for (int i = 0; i < 4; i++) raw[i] = *reinterpret_cast<const uint32_t*>(at + (i >> 1) * 4 * kPitch + (i & 1) * 32);
  }
}
// Raw registers of two neighbouring B [k step, 8], stored as rows of n: [16, k step].
template <int kPitch>
__device__ __forceinline__ void load_b(uint32_t (&first)[2], uint32_t (&second)[2], const unsigned char* tile,
                                       int lane) {
  uint32_t r[4];
  ldmatrix_x4(r, tile + ((lane & 7) + (lane >> 4) * 8) * kPitch + ((lane >> 3) & 1) * 16);
  first[0] = r[0], first[1] = r[1], second[0] = r[2], second[1] = r[3];
}
// The same of B stored as rows of k: [k step, 16].
template <class input_t, int kPitch>
__device__ __forceinline__ void load_b_transposed(uint32_t (&first)[2], uint32_t (&second)[2],
                                                  const unsigned char* tile, int lane) {
  if constexpr (sizeof(input_t) == 2) {
    uint32_t r[4];
    ldmatrix_x4_trans(r, tile + (lane & 15) * kPitch + (lane >> 4) * 16);
    first[0] = r[0], first[1] = r[1], second[0] = r[2], second[1] = r[3];
  } else {
    const unsigned char* at = tile + (lane & 3) * kPitch + (lane >> 2) * 4;
#pragma unroll
    for (int h = 0; h < 2; h++) {
      first[h] = *reinterpret_cast<const uint32_t*>(at + h * 4 * kPitch);
      second[h] = *reinterpret_cast<const uint32_t*>(at + h * 4 * kPitch + 32);
    }
  }
}

}  // namespace densenet_fast::cuda
