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

namespace spanbert_fast {

// In rising order; each level can run everything that the ones before it can.
enum class IsaLevel : int { baseline, avx2, avx512, avx512_bf16 };

// The widest level that this CPU has and that ATEN_CPU_CAPABILITY (default, avx2, avx512) allows;
// read once. Without that variable avx512_bf16 is taken where the CPU has it.
IsaLevel isa_level();

const char* isa_level_name(IsaLevel level);

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
#else
#define SPANBERT_FAST_DECLARE_KERNELS(Table, name) \
  namespace spanbert_fast::baseline { extern const Table name; }
#define SPANBERT_FAST_KERNELS(name) (::spanbert_fast::baseline::name)
#endif

namespace spanbert_fast {

template <class Table, class... Tables>
static inline const Table& at_isa_level(const Table& lowest, const Tables&... higher) {
  const Table* tables[] = {&lowest, &higher...};
  return *tables[static_cast<int>(isa_level())];
}

}  // namespace spanbert_fast
