// Which instruction set the CPU kernels run with.
//
// Every source in cpu/kernels/ is compiled once per level, with that level's flags and with
// SPANBERT_FAST_ISA naming it (see setup.py), and puts all it defines into the namespace
// spanbert_fast::SPANBERT_FAST_ISA. It exports one constant table of functions; the callers in
// cpu/*.cpp, compiled once and for any CPU, take the table of the level that fits.
//
// A kernel source includes no ATen header and no standard template: an inline function that two
// levels emit under one name would be merged by the linker, and an old CPU could then be handed
// the code of a new one.
#pragma once

#include <cstddef>

namespace spanbert_fast {

// In rising order; each level can run everything that the ones before it can.
enum class IsaLevel : int { baseline, avx2, avx512, avx512_bf16, amx };

// The widest level that this CPU has and that ATEN_CPU_CAPABILITY (default, avx2, avx512) allows;
// read once. Without that variable avx512_bf16 is taken where the CPU has it, and amx where it has
// that and the system lets this process use it, or where SPANBERT_FAST_ASSUME_AMX=1: for tests, in
// which something else carries out the instructions that the CPU refuses (tests/matrix_unit.cpp).
IsaLevel isa_level();

// The widest level that this CPU has, whatever the environment allows.
IsaLevel cpu_isa_level();

const char* name_of(IsaLevel level);

}  // namespace spanbert_fast

// Declares `const Table name` in the namespace of every level. For kernels/<op>.h.
// SPANBERT_FAST_KERNELS(name) is the table to call. For cpu/<op>.cpp.
#if defined(__x86_64__)
#define SPANBERT_FAST_DECLARE_KERNELS(Table, name) \
  namespace spanbert_fast::baseline { extern const Table name; }  \
  namespace spanbert_fast::avx2 { extern const Table name; }      \
  namespace spanbert_fast::avx512 { extern const Table name; }    \
  namespace spanbert_fast::avx512_bf16 { extern const Table name; }
#define SPANBERT_FAST_KERNELS(name)                                            \
  (::spanbert_fast::at_isa_level(                                              \
      ::spanbert_fast::baseline::name, ::spanbert_fast::avx2::name,            \
      ::spanbert_fast::avx512::name, ::spanbert_fast::avx512_bf16::name))
// For the kernels that make matrix products of their own: the others have no table of the level amx
// and run that of avx512_bf16.
#define SPANBERT_FAST_DECLARE_AMX_KERNELS(Table, name) \
  namespace spanbert_fast::amx { extern const Table name; }
#define SPANBERT_FAST_KERNELS_AND_AMX(name)                                    \
  (::spanbert_fast::at_isa_level(                                              \
      ::spanbert_fast::baseline::name, ::spanbert_fast::avx2::name,            \
      ::spanbert_fast::avx512::name, ::spanbert_fast::avx512_bf16::name,       \
      ::spanbert_fast::amx::name))
#else
#define SPANBERT_FAST_DECLARE_KERNELS(Table, name) \
  namespace spanbert_fast::baseline { extern const Table name; }
#define SPANBERT_FAST_KERNELS(name) (::spanbert_fast::baseline::name)
#define SPANBERT_FAST_DECLARE_AMX_KERNELS(Table, name)
#define SPANBERT_FAST_KERNELS_AND_AMX(name) SPANBERT_FAST_KERNELS(name)
#endif

namespace spanbert_fast {

template <class Table, class... Tables>
static inline const Table& at_isa_level(const Table& lowest, const Tables&... higher) {
  const Table* tables[] = {&lowest, &higher...};
  constexpr size_t kHighest = sizeof...(Tables);
  const size_t level = static_cast<size_t>(isa_level());
  return *tables[level < kHighest ? level : kHighest];
}

}  // namespace spanbert_fast
