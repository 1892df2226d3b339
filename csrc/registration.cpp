// The extension module `spanbert_fast._C`: the one place where op schemas are declared and where
// what is not a tensor op is bound to Python. Implementations live in cpu/<op>.cpp, cuda/<op>.cu.

#include <pybind11/pybind11.h>
#include <torch/library.h>

#include <string>

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

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled parts of spanbert_fast.";
  m.def("build_info", &build_info, "What the extension was built with.");
  m.def("isa_level", &isa_level, "The widest CPU instruction set that the kernels may use.");
}
