// The extension module `spanbert_fast._C`: the one place where compiled functions are bound to
// Python. Schemas, autograd and fake implementations of the ops are in spanbert_fast/ops/<op>.py;
// the implementations in cpu/<op>.cpp, cuda/<op>.cu.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/utils/pybind.h>

#include "cpu/dispatch.h"
#include "cpu/ops.h"

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

// Binds the CPU implementation of the custom op of that name. PyTorch's wrapper turns its errors
// into ValueError and TypeError, and releases the GIL.
template <class Function>
void bind_op(py::module_& m, const char* name, Function* function) {
  m.def(name, torch::wrap_pybind_function_no_gil(function));
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled parts of spanbert_fast.";
  m.def("build_info", &build_info, "What the extension was built with.");
  m.def(
      "isa_level", [] { return spanbert_fast::isa_level_name(spanbert_fast::isa_level()); },
      "The CPU instruction set that the kernels run with.");

  bind_op(m, "bias_gelu_fwd", &spanbert_fast::bias_gelu_fwd);
  bind_op(m, "bias_gelu_bwd", &spanbert_fast::bias_gelu_bwd);
  bind_op(m, "dropout_add_layer_norm_fwd", &spanbert_fast::dropout_add_layer_norm_fwd);
  bind_op(m, "dropout_add_layer_norm_bwd", &spanbert_fast::dropout_add_layer_norm_bwd);
  bind_op(m, "varlen_attention_fwd", &spanbert_fast::varlen_attention_fwd);
  bind_op(m, "varlen_attention_bwd", &spanbert_fast::varlen_attention_bwd);
  bind_op(m, "embedding_layer_norm_fwd", &spanbert_fast::embedding_layer_norm_fwd);
  bind_op(m, "embedding_layer_norm_bwd", &spanbert_fast::embedding_layer_norm_bwd);
}
