// Whether this process may use AMX, the tiles of Intel's processors.
#pragma once

#include <cstdint>
#include <string>

namespace densenet_fast {

// Whom that is asked; tests have answers of their own.
struct AmxSources {
  struct Registers {
    uint32_t eax, ebx, ecx, edx;
  };
  Registers (*cpuid)(uint32_t leaf, uint32_t subleaf);  // zeros of a leaf that there is not
  uint64_t (*kept_state)();                             // XCR0: what the system keeps when it switches threads
  int (*ask_permission)();                              // of the system for this process; an errno, or 0
  bool (*multiply)();                                   // a trial of the kernels' own products
};

// The processor and Linux.
AmxSources this_machine(bool (*multiply)());

// Why it cannot be used, as a clause; empty if it can. Nothing is asked behind the first refusal.
std::string why_not_amx(const AmxSources& sources);

}  // namespace densenet_fast
