"""Dropout in a tile of attention probabilities: bit-sliced random bytes (contract C4).

Word (i // 16, i % 8, j // 64, (j % 8) // 2) holds one bit for each pair of the queries {i, i + 8}
and 16 keys: the elements of a 16 x 64 tile that one thread owns in a tensor core's accumulator. So
8 Philox words of a thread decide its 32 elements, all compared with the threshold at once, and no
bit moves between threads. A tile's words have the shape (X, 8, T, 4): X is i // 16, T is j // 64.
"""

import triton
import triton.language as tl

from spanbert_fast.kernels.philox import philox4x32


@triton.jit
def _at_least(keep, word, threshold_bit: tl.constexpr):
    """`byte >= threshold` up to the bits of `word`; `keep` says it of the bits below."""
    if threshold_bit:
        return word & keep
    else:
        return word | keep


@triton.jit
def _keep_words(i16, g, j64, r, stream, THRESHOLD: tl.constexpr):
    """uint32 words whose bits say which elements are kept.

    The first four arguments broadcast to the words' shape. stream is (seed int64, site, head,
    sequence).
    """
    seed, site, head, sequence = stream
    c0 = 8 * i16.to(tl.uint32) + g.to(tl.uint32)
    c1 = 8 * j64.to(tl.uint32) + 2 * r.to(tl.uint32)
    c0, c1 = tl.broadcast(c0, c1)
    c2 = tl.zeros_like(c0) + ((site << 16) | head).to(tl.uint32)
    c3 = tl.zeros_like(c0) + sequence.to(tl.uint32)
    w7, w6, w5, w0 = philox4x32(c0, c1, c2, c3, seed)
    w4, w3, w2, w1 = philox4x32(c0, c1 + 1, c2, c3, seed)
    keep = tl.full(c0.shape, 0xFFFFFFFF, tl.uint32)
    keep = _at_least(keep, w0, THRESHOLD & 1)
    keep = _at_least(keep, w1, THRESHOLD >> 1 & 1)
    keep = _at_least(keep, w2, THRESHOLD >> 2 & 1)
    keep = _at_least(keep, w3, THRESHOLD >> 3 & 1)
    keep = _at_least(keep, w4, THRESHOLD >> 4 & 1)
    keep = _at_least(keep, w5, THRESHOLD >> 5 & 1)
    keep = _at_least(keep, w6, THRESHOLD >> 6 & 1)
    return _at_least(keep, w7, THRESHOLD >> 7 & 1)


@triton.jit
def keep_words(
    first_query,
    first_key,
    stream,
    THRESHOLD: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Words (BLOCK_M / 16, 8, BLOCK_N / 64, 4) of a tile, each made in the thread that needs it.

    first_query is a multiple of 16, first_key of 64.
    """
    i16 = (first_query // 16 + tl.arange(0, BLOCK_M // 16))[:, None, None, None]
    g = tl.arange(0, 8)[None, :, None, None]
    j64 = (first_key // 64 + tl.arange(0, BLOCK_N // 64))[None, None, :, None]
    r = tl.arange(0, 4)[None, None, None, :]
    return _keep_words(i16, g, j64, r, stream, THRESHOLD)


@triton.jit
def keep_words_once(
    first_query,
    first_key,
    stream,
    THRESHOLD: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The words of `keep_words` for transposed scores: one thread makes each word for several.

    With transposed scores a thread owns 2 keys x 16 queries, which no single word covers. The
    gather is the identity; without it the compiler would make a word in each of its 8 readers.
    """
    T: tl.constexpr = BLOCK_N // 64
    x = tl.arange(0, BLOCK_M * BLOCK_N // 32)
    i16 = first_query // 16 + x // (32 * T)
    j64 = first_key // 64 + x // 4 % T
    words = _keep_words(i16, x // (4 * T) % 8, j64, x % 4, stream, THRESHOLD)
    return tl.reshape(tl.gather(words, x, 0), (BLOCK_M // 16, 8, T, 4))


@triton.jit
def _spread(per_bit, TRANSPOSED: tl.constexpr):
    """Reshape (X, 8, T, 4, 32), one value per bit, into the tile (16 X, 64 T) or (64 T, 16 X).

    The 32 bits are (query half, key octet, key parity); the queries are (X, half, 8), the keys
    (T, octet, 4, parity).
    """
    X: tl.constexpr = per_bit.shape[0]
    T: tl.constexpr = per_bit.shape[2]
    bits = tl.reshape(per_bit, (X, 8, T, 4, 2, 8, 2))
    if TRANSPOSED:
        return tl.reshape(tl.permute(bits, (2, 5, 3, 6, 0, 4, 1)), (64 * T, 16 * X))
    else:
        return tl.reshape(tl.permute(bits, (0, 4, 1, 2, 5, 3, 6)), (16 * X, 64 * T))


@triton.jit
def drop(p, words, TRANSPOSED: tl.constexpr):
    """p (BLOCK_M, BLOCK_N), or its transpose, with zeros where the words' bits are 0."""
    n = tl.arange(0, 32)[None, None, None, None, :]
    bit = 8 * (n // 16 * 2 + n % 2) + 7 - n // 2 % 8
    one = tl.full((), 1, tl.uint32) << bit.to(tl.uint32)
    return tl.where(_spread(words[:, :, :, :, None] & one, TRANSPOSED) != 0, p, 0.0)


@triton.jit
def drop_pairs(p, words):
    """`drop` of 16-bit p: one AND decides two elements.

    A word that is shifted left by its key octet has the bit of (query half, key parity) as the sign
    of byte 2 half + parity; PRMT copies that sign to the 16 bits of the element.
    """
    X: tl.constexpr = words.shape[0]
    T: tl.constexpr = words.shape[2]
    n = tl.arange(0, 32)[None, None, None, None, :]
    octet = tl.broadcast_to(n // 2 % 8, (X, 8, T, 4, 32))
    byte = tl.broadcast_to(n // 16 * 2 + n % 2, (X, 8, T, 4, 32))
    return tl.inline_asm_elementwise(
        """{ .reg .b32 even, odd, select, mask;
        shl.b32 even, $2, $4;
        shl.b32 odd, $3, $5;
        mad.lo.u32 select, $7, 0x1100, 0xcc88;
        mad.lo.u32 select, $6, 0x11, select;
        prmt.b32 mask, even, odd, select;
        and.b32 $0, $1, mask; }""",
        "=r,r,r,r,r,r,r,r",
        [
            p,
            _spread(tl.broadcast_to(words[:, :, :, :, None], (X, 8, T, 4, 32)), False),
            _spread(octet, False),
            _spread(byte, False),
        ],
        dtype=p.dtype,
        is_pure=True,
        pack=2,
    )
