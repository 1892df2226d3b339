#include "cpu/dispatch.h"

#include <cstdlib>
#include <string_view>

#include "cpu/kernels/varlen_attention.h"

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__)
#include <sys/auxv.h>
#endif
#endif

namespace spanbert_fast {
namespace {

std::string_view environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

#if defined(__x86_64__)

// Whether there is a matrix unit for bfloat16 and the system lets this process use it. Its state is
// large, so each process has to ask (Linux, Documentation/arch/x86/xstate.rst).
bool has_matrix_unit() {
  if (environment("SPANBERT_FAST_ASSUME_AMX") == "1") return true;
#if defined(__linux__)
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

// Every CPU with AVX2 and FMA converts half precision (F16C) too.
bool cpu_has(IsaLevel level) {
  __builtin_cpu_init();
  switch (level) {
    case IsaLevel::baseline: return true;
    case IsaLevel::avx2: return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    case IsaLevel::avx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    case IsaLevel::avx512_bf16: return __builtin_cpu_supports("avx512bf16");
    case IsaLevel::amx: return has_matrix_unit();
  }
  return false;
}

// As in PyTorch, an unknown value is ignored.
bool is_allowed(IsaLevel level) {
  const std::string_view capability = environment("ATEN_CPU_CAPABILITY");
  if (capability == "default") return level <= IsaLevel::baseline;
  if (capability == "avx2") return level <= IsaLevel::avx2;
  if (capability == "avx512") return level <= IsaLevel::avx512;
  return true;
}

#elif defined(__aarch64__)

bool cpu_has(IsaLevel level) {
  constexpr unsigned long kBfloat16 = 1ul << 14;  // HWCAP2_BF16
  return level == IsaLevel::baseline || (getauxval(AT_HWCAP2) & kBfloat16) != 0;
}

bool is_allowed(IsaLevel level) {
  return level == IsaLevel::baseline || environment("ATEN_CPU_CAPABILITY") != "default";
}

#else

bool cpu_has(IsaLevel) { return true; }
bool is_allowed(IsaLevel) { return true; }

#endif

// Every level has attention kernels of its own.
const VarlenAttentionKernels* const kBuilt[] = {
    SPANBERT_FAST_LEVELS(SPANBERT_FAST_TABLE_OF, varlen_attention_kernels)};

#define SPANBERT_FAST_STRING_OF(level, _) #level,
constexpr const char* kNames[] = {SPANBERT_FAST_LEVELS(SPANBERT_FAST_STRING_OF, _)};

IsaLevel widest_level(bool (*counts)(IsaLevel)) {
  int level = 0;
  while (level + 1 < kNumLevels && counts(static_cast<IsaLevel>(level + 1))) ++level;
  return static_cast<IsaLevel>(level);
}

bool cpu_and_environment_have(IsaLevel level) { return cpu_has(level) && is_allowed(level); }

}  // namespace

IsaLevel isa_level() {
  static const IsaLevel found = [] {
    int level = static_cast<int>(widest_level(&cpu_and_environment_have));
    while (level > 0 && kBuilt[level] == nullptr) --level;
    return static_cast<IsaLevel>(level);
  }();
  return found;
}

bool has_level(IsaLevel level) {
  return level <= widest_level(&cpu_has) && kBuilt[static_cast<int>(level)] != nullptr;
}

const char* name_of(IsaLevel level) { return kNames[static_cast<int>(level)]; }

bool has_bfloat16_products() {
#if defined(__x86_64__)
  return isa_level() >= IsaLevel::avx512_bf16;
#elif defined(__aarch64__)
  return isa_level() >= IsaLevel::neon_bf16;
#else
  return false;
#endif
}

}  // namespace spanbert_fast
