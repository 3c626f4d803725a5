#include "amx.h"

#if defined(__linux__) && defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <cerrno>
#include <cstring>

namespace densenet_fast {
namespace {

constexpr bool bit(uint64_t word, int number) { return word >> number & 1; }

// Sizes that csrc/cpu/tiles.h takes for granted: of palette 1 eight tiles of 16 rows of 64 bytes.
bool has_tiles_of_our_size(const AmxSources& sources) {
  const auto palette = sources.cpuid(0x1d, 1), product = sources.cpuid(0x1e, 0);
  const uint32_t row = palette.ebx & 0xffff, tiles = palette.ebx >> 16, rows = palette.ecx & 0xffff;
  const uint32_t most_rows = product.ebx & 0xff, most_columns = product.ebx >> 8 & 0xffff;
  return row == 64 && tiles == 8 && rows == 16 && most_rows == 16 && most_columns == 64;
}

}  // namespace

std::string why_not_amx(const AmxSources& sources) {
  const uint32_t features = sources.cpuid(7, 0).edx;
  if (!bit(features, 22) || !bit(features, 24)) return "the processor, or its hypervisor, does not offer it";
  if (!has_tiles_of_our_size(sources)) return "its tiles are not of 16 rows of 64 bytes";
  const uint64_t kept = sources.kept_state();
  if (!bit(kept, 17) || !bit(kept, 18)) return "the system does not keep its tiles (Linux does since 5.16)";
  if (const int error = sources.ask_permission())
    return std::string("the system does not permit it (arch_prctl: ") + std::strerror(error) + ")";
  if (!sources.multiply()) return "a trial product came out wrong, which is worth a report";
  return "";
}

#if defined(__linux__) && defined(__x86_64__)
AmxSources this_machine(bool (*multiply)()) {
  return {
      [](uint32_t leaf, uint32_t subleaf) {
        AmxSources::Registers r{};
        if (!__get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx)) return AmxSources::Registers{};
        return r;
      },
      [] {
        unsigned eax, ebx, ecx, edx;
        if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !(ecx & bit_OSXSAVE)) return uint64_t{0};
        asm volatile("xgetbv" : "=a"(eax), "=d"(edx) : "c"(0));
        return static_cast<uint64_t>(edx) << 32 | eax;
      },
      [] {
        constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
        return syscall(SYS_arch_prctl, kRequest, kTileData) == 0 ? 0 : errno;
      },
      multiply,
  };
}
#endif

}  // namespace densenet_fast
