// A stand-in for NVIDIA's driver, libcuda.so.1, on machines without one. It loads no code and runs none: it reads from
// a kernel's machine code what a launch must give it, notes every call and every launch, and refuses what a driver
// would refuse. Two devices, with compute capability 9.0 and an H200's limits; a device's primary context is its number
// + 1.
//
// Tests ask for what happened by the functions stub_*. It has what Triton's driver module and launchers call.
#include <elf.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cuda.h"

enum { kMaxParameters = 1024, kMaxBytes = 4096, kMaxNoted = 1 << 16, kDevices = 2 };
enum { kSharedDefault = 48 << 10, kSharedOptIn = 227 << 10, kSharedPerMultiprocessor = 228 << 10 };

// A kernel as its machine code describes it, in the context it was loaded in.
struct Function {
  char name[256];
  int context;
  int parameters;
  int offset[kMaxParameters], size[kMaxParameters];  // bytes, of each parameter
  int registers, static_shared, max_threads;
  int max_dynamic_shared;  // what it was allowed beyond kSharedDefault, or 0
};

struct Module {
  const unsigned char* image;
  int context;
};

struct Launch {
  const struct Function* function;
  unsigned grid[3], block[3], dynamic_shared, attributes;
  uint64_t stream, thread;
  int context;  // that was current
  CUresult result;
  unsigned char bytes[kMaxBytes];  // the parameters, at their offsets
};

static struct Launch* launches[kMaxNoted];
static const char* calls[kMaxNoted];
static int num_launches, num_calls;
static char failing_call[64];  // the call that fails next, and how
static CUresult failure;
static __thread int current_context;  // 0: none yet

const struct Launch* stub_launch(int i) { return launches[i]; }
int stub_num_launches(void) { return num_launches; }
const char* stub_call(int i) { return calls[i]; }
int stub_num_calls(void) { return num_calls; }
void stub_forget(void) { num_launches = num_calls = 0; }
int stub_current_context(void) { return current_context; }
void stub_set_current_context(int context) { current_context = context; }
void stub_fail(const char* call, int result) {
  snprintf(failing_call, sizeof failing_call, "%s", call);
  failure = (CUresult)result;
}

static CUresult noted(const char* call) {
  int i = __atomic_fetch_add(&num_calls, 1, __ATOMIC_RELAXED);
  if (i >= kMaxNoted) abort();
  calls[i] = call;
  if (strcmp(call, failing_call)) return CUDA_SUCCESS;
  failing_call[0] = 0;
  return failure;
}
#define NOTE()                         \
  do {                                 \
    CUresult result = noted(__func__); \
    if (result) return result;         \
  } while (0)

CUresult cuGetErrorString(CUresult error, const char** text) {
  static __thread char buffer[32];
  snprintf(buffer, sizeof buffer, "driver error %d", (int)error);
  *text = buffer;
  return CUDA_SUCCESS;
}

CUresult cuDeviceGet(CUdevice* device, int ordinal) {
  NOTE();
  if (ordinal < 0 || ordinal >= kDevices) return CUDA_ERROR_INVALID_DEVICE;
  *device = ordinal;
  return CUDA_SUCCESS;
}

CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice device) {
  NOTE();
  switch (attribute) {
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: *value = kSharedOptIn; break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR: *value = kSharedPerMultiprocessor; break;
    case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK: *value = 1 << 16; break;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: *value = 132; break;
    case CU_DEVICE_ATTRIBUTE_WARP_SIZE: *value = 32; break;
    case CU_DEVICE_ATTRIBUTE_CLOCK_RATE:
    case CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE:
    case CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH: *value = 1; break;
    default: return CUDA_ERROR_NOT_SUPPORTED;
  }
  return CUDA_SUCCESS;
}

CUresult cuCtxGetCurrent(CUcontext* context) {
  NOTE();
  *context = (CUcontext)(uintptr_t)current_context;
  return CUDA_SUCCESS;
}

CUresult cuCtxSetCurrent(CUcontext context) {
  NOTE();
  current_context = (int)(uintptr_t)context;
  return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) {
  NOTE();
  *context = (CUcontext)(uintptr_t)(device + 1);
  return CUDA_SUCCESS;
}

CUresult cuModuleLoadData(CUmodule* module, const void* image) {
  NOTE();
  if (!current_context) return CUDA_ERROR_INVALID_CONTEXT;
  struct Module* loaded = malloc(sizeof *loaded);
  *loaded = (struct Module){image, current_context};
  *module = (CUmodule)loaded;
  return CUDA_SUCCESS;
}

// The attributes of section .nv.info.<kernel>: a format, a code, and, in the format of a sized value, its size and it.
static void read_attributes(struct Function* function, const unsigned char* at, const unsigned char* end) {
  enum { kSizedValue = 4, kMaxThreads = 0x05, kParameter = 0x17 };
  while (at < end) {
    if (at[0] != kSizedValue) {
      at += 4;
      continue;
    }
    int size = at[2] | at[3] << 8;
    const unsigned char* value = at + 4;
    if (at[1] == kParameter) {  // index of its constant bank, its place among the parameters, offset, packed size
      uint16_t place, offset;
      uint32_t packed;
      memcpy(&place, value + 4, sizeof place);
      memcpy(&offset, value + 6, sizeof offset);
      memcpy(&packed, value + 8, sizeof packed);
      if (place >= kMaxParameters) abort();
      function->offset[place] = offset;
      function->size[place] = (int)(packed >> 18);
      if (place >= function->parameters) function->parameters = place + 1;
    } else if (at[1] == kMaxThreads) {
      memcpy(&function->max_threads, value, sizeof function->max_threads);
    }
    at = value + size;
  }
}

CUresult cuModuleGetFunction(CUfunction* found, CUmodule module, const char* name) {
  NOTE();
  const struct Module* loaded = (const struct Module*)module;
  const Elf64_Ehdr* header = (const Elf64_Ehdr*)loaded->image;
  const Elf64_Shdr* sections = (const Elf64_Shdr*)(loaded->image + header->e_shoff);
  const char* names = (const char*)(loaded->image + sections[header->e_shstrndx].sh_offset);
  char info[300], text[300], shared[300];
  snprintf(info, sizeof info, ".nv.info.%s", name);
  snprintf(text, sizeof text, ".text.%s", name);
  snprintf(shared, sizeof shared, ".nv.shared.%s", name);

  struct Function* function = calloc(1, sizeof *function);
  snprintf(function->name, sizeof function->name, "%s", name);
  function->context = loaded->context;
  function->max_threads = 1024;
  int has_info = 0;
  for (int i = 0; i < header->e_shnum; ++i) {
    const Elf64_Shdr* section = &sections[i];
    const char* section_name = names + section->sh_name;
    if (!strcmp(section_name, text)) function->registers = (int)(section->sh_info >> 24);
    if (!strcmp(section_name, shared)) function->static_shared = (int)section->sh_size;
    if (!strcmp(section_name, info)) {
      const unsigned char* begin = loaded->image + section->sh_offset;
      read_attributes(function, begin, begin + section->sh_size);
      has_info = 1;
    }
  }
  if (!has_info) return CUDA_ERROR_NOT_FOUND;
  *found = (CUfunction)function;
  return CUDA_SUCCESS;
}

CUresult cuFuncGetAttribute(int* value, CUfunction_attribute attribute, CUfunction function) {
  NOTE();
  const struct Function* of = (const struct Function*)function;
  switch (attribute) {
    case CU_FUNC_ATTRIBUTE_NUM_REGS: *value = of->registers; break;
    case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK: *value = of->max_threads; break;
    case CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES: *value = of->static_shared; break;
    case CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES: *value = 0; break;
    default: return CUDA_ERROR_NOT_SUPPORTED;
  }
  return CUDA_SUCCESS;
}

CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value) {
  NOTE();
  struct Function* of = (struct Function*)function;
  if (attribute != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) return CUDA_ERROR_NOT_SUPPORTED;
  if (value + of->static_shared > kSharedOptIn) return CUDA_ERROR_INVALID_VALUE;
  of->max_dynamic_shared = value;
  return CUDA_SUCCESS;
}

CUresult cuFuncSetCacheConfig(CUfunction function, CUfunc_cache config) {
  NOTE();
  return CUDA_SUCCESS;
}

CUresult cuPointerGetAttribute(void* value, CUpointer_attribute attribute, CUdeviceptr pointer) {
  NOTE();
  memcpy(value, &pointer, sizeof pointer);
  return CUDA_SUCCESS;
}

CUresult cuCtxGetLimit(size_t* value, CUlimit limit) {
  NOTE();
  return CUDA_ERROR_NOT_SUPPORTED;
}

CUresult cuCtxSetLimit(CUlimit limit, size_t value) {
  NOTE();
  return CUDA_ERROR_NOT_SUPPORTED;
}

static CUresult check(const struct Function* function, const CUlaunchConfig* config) {
  unsigned threads = config->blockDimX * config->blockDimY * config->blockDimZ;
  unsigned shared = config->sharedMemBytes;
  int limit = function->max_dynamic_shared ? function->max_dynamic_shared : kSharedDefault - function->static_shared;
  if (function->context != current_context) return CUDA_ERROR_INVALID_HANDLE;
  if (!threads || threads > (unsigned)function->max_threads) return CUDA_ERROR_INVALID_VALUE;
  if (!config->gridDimX || config->gridDimX > INT32_MAX) return CUDA_ERROR_INVALID_VALUE;
  if (!config->gridDimY || config->gridDimY > 65535) return CUDA_ERROR_INVALID_VALUE;
  if (!config->gridDimZ || config->gridDimZ > 65535) return CUDA_ERROR_INVALID_VALUE;
  return (int)shared > limit ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

CUresult cuLaunchKernelEx(const CUlaunchConfig* config, CUfunction function, void** parameters, void** extra) {
  NOTE();
  const struct Function* of = (const struct Function*)function;
  struct Launch* launch = calloc(1, sizeof *launch);
  *launch = (struct Launch){
      .function = of,
      .grid = {config->gridDimX, config->gridDimY, config->gridDimZ},
      .block = {config->blockDimX, config->blockDimY, config->blockDimZ},
      .dynamic_shared = config->sharedMemBytes,
      .attributes = config->numAttrs,
      .stream = (uint64_t)config->hStream,
      .thread = (uint64_t)pthread_self(),
      .context = current_context,
      .result = check(of, config),
  };
  for (int i = 0; i < of->parameters; ++i) memcpy(launch->bytes + of->offset[i], parameters[i], of->size[i]);
  int i = __atomic_fetch_add(&num_launches, 1, __ATOMIC_RELAXED);
  if (i >= kMaxNoted) abort();
  launches[i] = launch;
  return launch->result;
}
