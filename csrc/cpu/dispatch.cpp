#include "cpu/dispatch.h"

#include <algorithm>
#include <cstdlib>
#include <string_view>

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace spanbert_fast {
namespace {

constexpr const char* kNames[] = {"baseline", "avx2", "avx512", "avx512_bf16", "amx"};

// A matrix unit for bfloat16, and leave of the system to use it: its state is large, and each
// process has to ask (Linux, Documentation/arch/x86/xstate.rst).
bool has_amx() {
  const char* assumed = std::getenv("SPANBERT_FAST_ASSUME_AMX");
  if (assumed != nullptr && std::string_view(assumed) == "1") return true;
#if defined(__x86_64__) && defined(__linux__)
  unsigned a = 0, b = 0, c = 0, d = 0;
  constexpr unsigned kBfloat16 = 1u << 22, kTile = 1u << 24;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  if ((d & kBfloat16) == 0 || (d & kTile) == 0) return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

IsaLevel detected_level() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  // Every CPU with AVX2 and FMA converts half precision (F16C) too.
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return IsaLevel::baseline;
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512dq")) {
    return IsaLevel::avx2;
  }
  if (!__builtin_cpu_supports("avx512bf16")) return IsaLevel::avx512;
  return has_amx() ? IsaLevel::amx : IsaLevel::avx512_bf16;
#else
  return IsaLevel::baseline;
#endif
}

// As PyTorch does, a value that is none of the known ones is passed over.
IsaLevel allowed_level() {
  const char* value = std::getenv("ATEN_CPU_CAPABILITY");
  const std::string_view name = value == nullptr ? "" : value;
  if (name == "default") return IsaLevel::baseline;
  if (name == "avx2") return IsaLevel::avx2;
  if (name == "avx512") return IsaLevel::avx512;
  return IsaLevel::amx;
}

}  // namespace

IsaLevel cpu_isa_level() {
  static const IsaLevel level = detected_level();
  return level;
}

IsaLevel isa_level() {
  static const IsaLevel level = std::min(cpu_isa_level(), allowed_level());
  return level;
}

const char* name_of(IsaLevel level) { return kNames[static_cast<int>(level)]; }

}  // namespace spanbert_fast
