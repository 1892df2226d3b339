"""Which elements of a row hidden-state dropout keeps (contract C4)."""

import triton
import triton.language as tl


@triton.jit
def _words(seed, site, call):
    """The four words of each Philox4x32-7 call, of the counter (call low, call high, stream, 0)."""
    c0 = call.to(tl.uint32)
    c1 = (call >> 32).to(tl.uint32)
    c2 = tl.zeros_like(c0) + ((site << 16) | 0xFFFF).to(tl.uint32)
    c3 = tl.zeros_like(c0)
    k0 = seed.to(tl.uint32)
    k1 = (seed >> 32).to(tl.uint32)
    for _ in tl.static_range(7):
        # one wide product: umulhi and a product would be two instructions
        a = c0.to(tl.uint64) * tl.full((), 0xD2511F53, tl.uint64)
        b = c2.to(tl.uint64) * tl.full((), 0xCD9E8D57, tl.uint64)
        c0 = (b >> 32).to(tl.uint32) ^ c1 ^ k0
        c2 = (a >> 32).to(tl.uint32) ^ c3 ^ k1
        c1 = b.to(tl.uint32)
        c3 = a.to(tl.uint32)
        k0 += tl.full((), 0x9E3779B9, tl.uint32)
        k1 += tl.full((), 0xBB67AE85, tl.uint32)
    return c0, c1, c2, c3


@triton.jit
def keep_row(seed, site, row, width, threshold, BLOCK: tl.constexpr, WHOLE: tl.constexpr):
    """bool (BLOCK,): which columns of row number `row` (int64) are kept.

    Element e = row width + column owns byte e % 4 of word (e % 256) // 64 of call
    16 (e // 256) + (e % 64) // 4.

    WHOLE: the width is a multiple of 256, so that a row is whole calls: each is made once, for its
        16 elements, and handed to their threads; else each element makes its own.
    """
    column = tl.arange(0, BLOCK)
    if WHOLE:
        call = row * (width // 16) + tl.arange(0, BLOCK // 16)  # 16 calls to 256 elements
        w0, w1, w2, w3 = _words(seed, site, call)
        words = tl.join(tl.join(w0, w2), tl.join(w1, w3))  # (calls, 2, 2): words 0 1 2 3 in order
        words = tl.permute(tl.reshape(words, (BLOCK // 256, 16, 4)), (0, 2, 1))
        words = tl.broadcast_to(tl.reshape(words, (BLOCK // 4, 1)), (BLOCK // 4, 4))
        word = tl.reshape(words, (BLOCK,))
    else:
        element = row * width + column
        w0, w1, w2, w3 = _words(seed, site, 16 * (element // 256) + element % 64 // 4)
        which = element % 256 // 64
        low = tl.where(which == 0, w0, w1)
        word = tl.where(which < 2, low, tl.where(which == 2, w2, w3))
        column = element
    return ((word >> (8 * (column % 4)).to(tl.uint32)) & 0xFF) >= threshold
