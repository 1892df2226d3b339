// PyTorch's parallel loops for the extension alone, on threads that the thread sanitizer can
// follow: OpenMP's runtime is built without it, so that it takes the end of every loop for a race.
// Preloaded, it takes the place of the two functions through which the extension asks for threads.
#include <algorithm>
#include <cstdint>
#include <thread>
#include <vector>

namespace {
constexpr uint32_t kThreads = 4;
thread_local bool inside = false;
}  // namespace

using Body = void (*)(int64_t, int64_t, void*);

extern "C" int32_t torch_get_num_threads(uint32_t* count) {
  *count = kThreads;
  return 0;
}

// The least work of a thread is passed over: the more threads, the more may be seen.
extern "C" int32_t torch_parallel_for(
    int64_t begin, int64_t end, int64_t, Body body, void* context) {
  if (begin >= end) return 0;
  const int64_t threads = inside ? 1 : std::min<int64_t>(kThreads, end - begin);
  const int64_t size = (end - begin + threads - 1) / threads;
  const auto run = [&](int64_t first) {
    const bool before = inside;
    inside = true;
    if (first < end) body(first, std::min(end, first + size), context);
    inside = before;
  };
  std::vector<std::thread> started;
  for (int64_t i = 1; i < threads; ++i) started.emplace_back(run, begin + i * size);
  run(begin);
  for (std::thread& thread : started) thread.join();
  return 0;
}
