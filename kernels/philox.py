"""Philox4x32 with 7 rounds (Salmon et al., SC 2011), the generator of every dropout mask."""

import triton
import triton.language as tl


@triton.jit
def philox4x32(c0, c1, c2, c3, seed):
    """The four words (uint32) of the counter (c0, c1, c2, c3), uint32, keyed by an int64 seed."""
    k0 = seed.to(tl.uint32)
    k1 = (seed >> 32).to(tl.uint32)
    for _ in tl.static_range(7):
        # one 64-bit product; umulhi and a 32-bit product would be two instructions
        a = c0.to(tl.uint64) * tl.full((), 0xD2511F53, tl.uint64)
        b = c2.to(tl.uint64) * tl.full((), 0xCD9E8D57, tl.uint64)
        c0 = (b >> 32).to(tl.uint32) ^ c1 ^ k0
        c2 = (a >> 32).to(tl.uint32) ^ c3 ^ k1
        c1 = b.to(tl.uint32)
        c3 = a.to(tl.uint32)
        k0 += tl.full((), 0x9E3779B9, tl.uint32)
        k1 += tl.full((), 0xBB67AE85, tl.uint32)
    return c0, c1, c2, c3
