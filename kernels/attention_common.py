"""What attention's forward and backward share."""

import torch
import triton
import triton.language as tl

from spanbert_fast.kernels.tile_config import Tile, tile_for

LOG2_E = tl.constexpr(1.4426950408889634)  # exp2 and log2 are what the chips compute


def head_block(head_dim: int) -> int:
    """Width of the tiles that hold `head_dim` columns."""
    return max(16, triton.next_power_of_2(head_dim))


def readable(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, float]:
    """q, k, v whose heads are consecutive numbers each, and a positive scale.

    The kernels take the largest score before it is scaled, which needs a positive scale; any other
    goes into q.
    """
    q, k, v = (t if t.stride(2) == 1 or t.shape[2] == 1 else t.contiguous() for t in (q, k, v))
    return (q, k, v, scale) if scale > 0 else (q * scale, k, v, 1.0)


def token_and_head_strides(*tensors: torch.Tensor) -> list[int]:
    """Of each tensor (total, heads, head_dim): elements from token to token, from head to head."""
    return [t.stride(dim) for t in tensors for dim in (0, 1)]


@triton.jit
def locate(cu_seqlens, order, tiles, BLOCK: tl.constexpr):
    """(sequence, its first row for this program, its first token as int64, its length).

    Programs go by sequence and tile of BLOCK rows; sequences as in `order`, or as they come.
    """
    sequence = tl.program_id(0) // tiles
    if order is not None:
        sequence = tl.load(order + sequence)
    start = tl.load(cu_seqlens + sequence).to(tl.int64)
    length = (tl.load(cu_seqlens + sequence + 1) - start).to(tl.int32)
    return sequence, tl.program_id(0) % tiles * BLOCK, start, length


@triton.jit
def load_rows(pointer, token, stride, head_stride, head, inside, BLOCK_D: tl.constexpr):
    """(tokens, BLOCK_D) of one head, zeros outside; token is int64."""
    at = token[:, None] * stride + head * head_stride + tl.arange(0, BLOCK_D)[None, :]
    return tl.load(pointer + at, mask=inside, other=0.0)


@triton.jit(do_not_specialize=["batch"])
def _sequence_order_kernel(cu_seqlens, order, batch, BLOCK: tl.constexpr):
    """order[rank] = sequence, longest first, ties as they come: each counts who goes before it.

    One program ranks BLOCK sequences. Grid: (batch / BLOCK,). Comparisons: batch^2.
    """
    mine = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = mine < batch
    length = tl.load(cu_seqlens + mine + 1, mask=inside, other=0)
    length -= tl.load(cu_seqlens + mine, mask=inside, other=0)
    rank = tl.zeros((BLOCK,), tl.int32)
    for first in range(0, batch, BLOCK):
        other = first + tl.arange(0, BLOCK)
        others = tl.load(cu_seqlens + other + 1, mask=other < batch, other=0)
        others -= tl.load(cu_seqlens + other, mask=other < batch, other=0)
        before = others[None, :] > length[:, None]
        before |= (others[None, :] == length[:, None]) & (other[None, :] < mine[:, None])
        rank += tl.sum((before & (other < batch)[None, :]).to(tl.int32), 1)
    tl.store(order + rank, mine, mask=inside)


def sequence_order(cu_seqlens: torch.Tensor) -> torch.Tensor:
    """int32 (batch,): sequences by falling length, so that the last programs to end are short."""
    batch = len(cu_seqlens) - 1
    order = torch.empty(batch, dtype=torch.int32, device=cu_seqlens.device)
    _sequence_order_kernel[(triton.cdiv(batch, 64),)](cu_seqlens, order, batch, BLOCK=64)
    return order


def attention_tile(kernel: str, q: torch.Tensor, max_seqlen: int) -> Tile:
    """The tile of one of attention's kernels for q (total, heads, head_dim)."""
    return tile_for(
        kernel,
        q.device,
        itemsize=q.element_size(),
        head_block=head_block(q.shape[2]),
        keys=max_seqlen,
    )
