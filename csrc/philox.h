// Philox4x32, the counter-based generator (Salmon et al., SC 2011, section 4.3), for host and
// device. Checked against Random123's known answers and against spanbert_fast/reference/philox.py.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define SPANBERT_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define SPANBERT_HOST_DEVICE inline __attribute__((always_inline))
#endif

namespace spanbert_fast {

struct PhiloxWords {
  uint32_t x[4];
};

// Four uniform words from a counter and a key; 10 rounds for sampling, 7 for dropout.
template <int kRounds>
SPANBERT_HOST_DEVICE PhiloxWords philox4x32(PhiloxWords counter, uint32_t key0, uint32_t key1) {
  uint32_t c0 = counter.x[0], c1 = counter.x[1], c2 = counter.x[2], c3 = counter.x[3];
#ifdef __CUDACC__
#pragma unroll
#endif
  for (int round = 0; round < kRounds; ++round) {
    const uint64_t product0 = uint64_t{0xD2511F53u} * c0;
    const uint64_t product1 = uint64_t{0xCD9E8D57u} * c2;
    c0 = static_cast<uint32_t>(product1 >> 32) ^ c1 ^ key0;
    c1 = static_cast<uint32_t>(product1);
    c2 = static_cast<uint32_t>(product0 >> 32) ^ c3 ^ key1;
    c3 = static_cast<uint32_t>(product0);
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

}  // namespace spanbert_fast
