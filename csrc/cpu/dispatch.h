// Which instruction set the CPU kernels run with.
//
// Every source in cpu/kernels/ is compiled once per level, with that level's flags and with
// SPANBERT_FAST_ISA naming it (setup.py has the list). All that it defines is in the namespace
// spanbert_fast::SPANBERT_FAST_ISA, and it exports one constant table of functions. The callers in
// cpu/*.cpp, compiled once for any CPU, use the table of the level that fits.
//
// A kernel source includes no PyTorch header and no standard template: an inline function that two
// levels emit under one name would be merged by the linker, and an old CPU could then be handed
// the code of a new one.
#pragma once

// The levels in rising order; each runs everything that the lower ones run. A build may leave out
// levels that its CPU does not have, and a level may have no kernel of its own for an op. A table
// that does not exist is null, and the next lower one is used.
// clang-format off
#if defined(__x86_64__)
#define SPANBERT_FAST_LEVELS(X, ...)                                          \
  X(baseline, __VA_ARGS__) X(avx2, __VA_ARGS__) X(avx512, __VA_ARGS__)        \
  X(avx512_bf16, __VA_ARGS__) X(amx, __VA_ARGS__)
#elif defined(__aarch64__)
#define SPANBERT_FAST_LEVELS(X, ...) X(baseline, __VA_ARGS__) X(neon_bf16, __VA_ARGS__)
#else
#define SPANBERT_FAST_LEVELS(X, ...) X(baseline, __VA_ARGS__)
#endif

// Declares `const Table name` in the namespace of every level. For kernels/<op>.h.
#define SPANBERT_FAST_DECLARE_KERNELS(Table, name) \
  SPANBERT_FAST_LEVELS(SPANBERT_FAST_DECLARE_TABLE, Table, name)
#define SPANBERT_FAST_DECLARE_TABLE(level, Table, name) \
  namespace spanbert_fast::level { extern const Table name __attribute__((weak)); }

// The table to call. For cpu/<op>.cpp.
#define SPANBERT_FAST_KERNELS(name)                                            \
  ::spanbert_fast::widest_table({SPANBERT_FAST_LEVELS(SPANBERT_FAST_TABLE_OF, name)})
#define SPANBERT_FAST_TABLE_OF(level, name) &::spanbert_fast::level::name,
// clang-format on

namespace spanbert_fast {

#define SPANBERT_FAST_NAME_OF(level, _) level,
enum class IsaLevel : int { SPANBERT_FAST_LEVELS(SPANBERT_FAST_NAME_OF, _) };
#define SPANBERT_FAST_COUNT_ONE(level, _) +1
constexpr int kNumLevels = 0 SPANBERT_FAST_LEVELS(SPANBERT_FAST_COUNT_ONE, _);

// The widest level that this build and this CPU have and that ATEN_CPU_CAPABILITY (default, avx2,
// avx512) allows; read once. Without that variable avx512_bf16 is used if the CPU has it. amx is
// used if the CPU has it and the system lets this process use it, or if SPANBERT_FAST_ASSUME_AMX=1:
// in tests, tests/matrix_unit.cpp executes the instructions that the CPU refuses.
IsaLevel isa_level();

// Whether this build and this CPU have the level, whatever the environment allows.
bool has_level(IsaLevel level);

const char* name_of(IsaLevel level);

// Whether products of bfloat16 are faster than those of float at isa_level().
bool has_bfloat16_products();

template <class Table>
const Table& widest_table(const Table* const (&tables)[kNumLevels]) {
  int level = static_cast<int>(isa_level());
  while (level > 0 && tables[level] == nullptr) --level;
  return *tables[level];
}

}  // namespace spanbert_fast
