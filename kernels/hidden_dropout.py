"""Dropout of hidden states: which elements of a row are kept (contract C4)."""

import triton
import triton.language as tl

from spanbert_fast.kernels.philox import philox4x32


def keep_scale(threshold: int) -> float:
    """The factor of the elements that are kept."""
    return 256 / (256 - threshold)


@triton.jit
def _words(seed, site, call):
    """The four words of each Philox4x32-7 call; the counter is (call low, call high, stream, 0)."""
    c0 = call.to(tl.uint32)
    c1 = (call >> 32).to(tl.uint32)
    c2 = tl.zeros_like(c0) + ((site << 16) | 0xFFFF).to(tl.uint32)
    c3 = tl.zeros_like(c0)
    return philox4x32(c0, c1, c2, c3, seed)


@triton.jit
def keep_row(seed, site, row, width, threshold, BLOCK: tl.constexpr, WHOLE: tl.constexpr):
    """bool (BLOCK,): which columns of row number `row` (int64) are kept.

    Element e = row width + column owns byte e % 4 of word (e % 256) // 64 of call
    16 (e // 256) + (e % 64) // 4.

    WHOLE: the width is a multiple of 256, so that a row consists of whole calls. Each call is then
        made once and shared by its 16 elements; otherwise each element makes its own.
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
