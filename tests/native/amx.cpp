// csrc/amx.h on a machine that answers as it is told: `amx <CPUID 7 edx> <CPUID 1d ebx> <XCR0> <errno> <product>` says
// whom it asked, and why AMX is not used.
#include "../../csrc/amx.h"

#include <cstdio>
#include <cstdlib>

using namespace densenet_fast;

namespace {

unsigned long features, palette, kept, error, product;

}  // namespace

int main(int, char** arguments) {
  for (unsigned long* answer : {&features, &palette, &kept, &error, &product})
    *answer = std::strtoul(*++arguments, nullptr, 0);
  const std::string why = why_not_amx({
      [](uint32_t leaf, uint32_t subleaf) -> AmxSources::Registers {
        if (leaf == 7 && subleaf == 0) return {0, 0, 0, static_cast<uint32_t>(features)};
        if (leaf == 0x1d && subleaf == 1) return {0x04002000, static_cast<uint32_t>(palette), 16, 0};
        if (leaf == 0x1e && subleaf == 0) return {0, 0x4010, 0, 0};
        return {};
      },
      [] { return std::printf("state "), uint64_t{kept}; },
      [] { return std::printf("permission "), static_cast<int>(error); },
      [] { return std::printf("product "), product != 0; },
  });
  std::printf("%s\n", why.c_str());
}
