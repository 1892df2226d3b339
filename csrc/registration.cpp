// The functions of the extension module `spanbert_fast._C` that are not ops on tensors. The ops
// register themselves with PyTorch when the module is loaded: cpu/<op>.cpp,
// sample_spans/sample_spans.cpp.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/large_memory.h"
#include "cpu/products.h"
#include "philox.h"
#include "tensor.h"

namespace py = pybind11;

namespace {

using namespace spanbert_fast;

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

std::vector<std::string> isa_levels() {
  std::vector<std::string> names;
  for (int level = 0; level < kNumLevels; ++level) {
    const auto isa = static_cast<IsaLevel>(level);
    if (has_level(isa)) names.push_back(name_of(isa));
  }
  return names;
}

using Words = std::array<uint32_t, 4>;

// For tests: the kernels' generator.
template <int kRounds>
Words philox(const Words& counter, const std::array<uint32_t, 2>& key) {
  const PhiloxWords words =
      philox4x32<kRounds>({{counter[0], counter[1], counter[2], counter[3]}}, key[0], key[1]);
  return {words.x[0], words.x[1], words.x[2], words.x[3]};
}

// For tests: out[i] = a b as the i-th thread of run_product_tasks computes it. a, b and out are
// addresses of contiguous float matrices.
void products_of_threads(
    uintptr_t a, uintptr_t b, uintptr_t out, int64_t rows, int64_t inner, int64_t columns) {
  const auto matrix = [](uintptr_t address, int64_t rows, int64_t columns) {
    return Matrix::at(reinterpret_cast<void*>(address), rows, columns, columns, kFloat);
  };
  std::atomic<int64_t> arrived{0};
  const int64_t threads = num_threads();
  run_product_tasks(threads, [&](Buffers&, int64_t i) {
    // no thread may take a second task before every thread has one
    for (arrived.fetch_add(1); arrived.load() < threads;) {
    }
    const uintptr_t offset = i * rows * columns * sizeof(float);
    multiply(
        matrix(a, rows, inner), matrix(b, inner, columns), matrix(out + offset, rows, columns));
  });
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled parts of spanbert_fast.";
  m.def("build_info", &build_info, "What the extension was built with.");
  m.def("philox4x32_7", &philox<7>, "Philox4x32-7 of (counter, key).");
  m.def("philox4x32_10", &philox<10>, "Philox4x32-10 of (counter, key).");
  m.def(
      "isa_level", [] { return name_of(isa_level()); },
      "The CPU instruction set that the kernels run with.");
  m.def(
      "isa_levels", &isa_levels,
      "All that this build and this CPU have, in rising order, whatever ATEN_CPU_CAPABILITY "
      "allows.");
  m.def(
      "has_bfloat16_products", &has_bfloat16_products,
      "Whether products of bfloat16 are faster than those of float32 at isa_level().");
  m.def("products_of_threads", &products_of_threads, py::call_guard<py::gil_scoped_release>());
  m.def(
      "last_value_error", [] { return last_value_error; },
      "The message of this thread's last ValueError.");
  m.def("release_memory", &release_memory, "See spanbert_fast.release_memory.");
}
