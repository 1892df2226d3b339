// The extension module `spanbert_fast._C`: the one place where compiled functions are bound to
// Python. Schemas, autograd and fake implementations of the ops are in spanbert_fast/ops/<op>.py;
// the implementations in cpu/<op>.cpp, cuda/<op>.cu.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/library.h>

#include <array>
#include <string>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/ops.h"
#include "philox.h"

namespace py = pybind11;

namespace {

py::dict build_info() {
  py::dict info;
  info["torch"] = SPANBERT_FAST_TORCH_VERSION;
  info["compiler"] = __VERSION__;
#ifdef SPANBERT_FAST_WITH_CUDA
  info["cuda"] = true;
#else
  info["cuda"] = false;
#endif
#ifdef _OPENMP
  info["openmp"] = true;  // without it at::parallel_for has one thread
#else
  info["openmp"] = false;
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

// Binds the CPU implementation of the custom op of that name. PyTorch's wrapper turns its errors
// into ValueError and TypeError, and releases the GIL.
template <class Function>
void bind_op(py::module_& m, const char* name, Function* function) {
  m.def(name, torch::wrap_pybind_function_no_gil(function));
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
  m.def(
      "isa_level", [] { return spanbert_fast::name_of(spanbert_fast::isa_level()); },
      "The CPU instruction set that the kernels run with.");
  m.def(
      "isa_levels",
      [] {
        std::vector<std::string> names;
        const int widest = static_cast<int>(spanbert_fast::cpu_isa_level());
        for (int level = 0; level <= widest; ++level) {
          names.push_back(spanbert_fast::name_of(static_cast<spanbert_fast::IsaLevel>(level)));
        }
        return names;
      },
      "All that this CPU has, in rising order, whatever ATEN_CPU_CAPABILITY allows.");

  bind_op(m, "bias_gelu_fwd", &spanbert_fast::bias_gelu_fwd);
  bind_op(m, "bias_gelu_bwd", &spanbert_fast::bias_gelu_bwd);
  bind_op(m, "dropout_add_layer_norm_fwd", &spanbert_fast::dropout_add_layer_norm_fwd);
  bind_op(m, "dropout_add_layer_norm_bwd", &spanbert_fast::dropout_add_layer_norm_bwd);
  bind_op(m, "varlen_attention_fwd", &spanbert_fast::varlen_attention_fwd);
  bind_op(m, "varlen_attention_bwd", &spanbert_fast::varlen_attention_bwd);
  bind_op(m, "embedding_layer_norm_fwd", &spanbert_fast::embedding_layer_norm_fwd);
  bind_op(m, "embedding_layer_norm_bwd", &spanbert_fast::embedding_layer_norm_bwd);
  bind_op(m, "linear_cross_entropy_fwd", &spanbert_fast::linear_cross_entropy_fwd);
  bind_op(m, "linear_cross_entropy_bwd", &spanbert_fast::linear_cross_entropy_bwd);
  bind_op(m, "span_boundary_gather_fwd", &spanbert_fast::span_boundary_gather_fwd);
  bind_op(m, "span_boundary_gather_bwd", &spanbert_fast::span_boundary_gather_bwd);
  bind_op(m, "unpad_fwd", &spanbert_fast::unpad_fwd);
  bind_op(m, "pad_fwd", &spanbert_fast::pad_fwd);
}
