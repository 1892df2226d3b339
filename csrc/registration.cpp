// The extension module `spanbert_fast._C`: the one place where op schemas are declared and where
// what is not a tensor op is bound to Python. Implementations live in cpu/<op>.cpp, cuda/<op>.cu.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/library.h>

#include <array>
#include <string>

#include "philox.h"

namespace py = pybind11;

namespace {

// The widest instruction set of this CPU that our kernels may use; the compiler asks the CPU.
std::string isa_level() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl")) {
    return __builtin_cpu_supports("avx512bf16") ? "avx512_bf16" : "avx512";
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return "avx2";
#endif
  return "baseline";
}

py::dict build_info() {
  py::dict info;
  info["torch"] = SPANBERT_FAST_TORCH_VERSION;
  info["compiler"] = __VERSION__;
#ifdef SPANBERT_FAST_WITH_CUDA
  info["cuda"] = true;
#else
  info["cuda"] = false;
#endif
  return info;
}

using Words = std::array<uint32_t, 4>;

// For tests: the generator as the kernels have it.
template <int kRounds>
Words philox(const Words& counter, const std::array<uint32_t, 2>& key) {
  const spanbert_fast::PhiloxWords words = spanbert_fast::philox4x32<kRounds>(
      {{counter[0], counter[1], counter[2], counter[3]}}, key[0], key[1]);
  return {words.x[0], words.x[1], words.x[2], words.x[3]};
}

}  // namespace

// A fragment: Python registers ops of this namespace too.
TORCH_LIBRARY_FRAGMENT(spanbert_fast, m) {
  m.def(
      "sample_spans(Tensor input_ids, Tensor cu_seqlens, Tensor word_starts, "
      "Tensor? special_mask, Tensor? given_spans, Tensor random_token_pool, Tensor sequence_ids, "
      "int seed, int mask_token_id, int budget_numerator, int budget_denominator, "
      "int min_span_words, int[] length_thresholds, int[] scheme_thresholds, "
      "int max_span_targets, bool replace_per_token, bool internal_endpoints, "
      "bool complete_words, bool unbiased_edges, SymInt capacity) -> (Tensor input_ids, "
      "Tensor mlm_positions, Tensor mlm_targets, Tensor span_boundaries, Tensor span_starts, "
      "Tensor span_ends, Tensor cu_span_lengths, Tensor sbo_targets, Tensor span_replacements, "
      "Tensor counts)");
}

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled parts of spanbert_fast.";
  m.def("build_info", &build_info, "What the extension was built with.");
  m.def("philox4x32_7", &philox<7>, "Philox4x32-7 of (counter, key).");
  m.def("philox4x32_10", &philox<10>, "Philox4x32-10 of (counter, key).");
  m.def("isa_level", &isa_level, "The widest CPU instruction set that the kernels may use.");
}
