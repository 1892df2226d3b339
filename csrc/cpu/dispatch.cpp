#include "cpu/dispatch.h"

#include <algorithm>
#include <cstdlib>
#include <string_view>

namespace spanbert_fast {
namespace {

IsaLevel cpu_level() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  // Every CPU with AVX2 and FMA converts half precision (F16C) too.
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return IsaLevel::baseline;
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512dq")) {
    return IsaLevel::avx2;
  }
  return __builtin_cpu_supports("avx512bf16") ? IsaLevel::avx512_bf16 : IsaLevel::avx512;
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
  return IsaLevel::avx512_bf16;
}

}  // namespace

IsaLevel isa_level() {
  static const IsaLevel level = std::min(cpu_level(), allowed_level());
  return level;
}

const char* isa_level_name(IsaLevel level) {
  switch (level) {
    case IsaLevel::baseline: return "baseline";
    case IsaLevel::avx2: return "avx2";
    case IsaLevel::avx512: return "avx512";
    case IsaLevel::avx512_bf16: return "avx512_bf16";
  }
  return "unknown";
}

}  // namespace spanbert_fast
