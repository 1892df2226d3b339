"""Helpers of attention's forward and backward kernels."""

import torch
import triton
import triton.language as tl

from spanbert_fast.kernels.tile_config import Tile, tile_for

LOG2_E = tl.constexpr(1.4426950408889634)  # the chips compute exp2 and log2


def head_block(head_dim: int) -> int:
    """Width of the tiles that hold `head_dim` columns."""
    return max(16, triton.next_power_of_2(head_dim))


def readable(inputs):
    """The op's `AttentionInputs` as the kernels read them: contiguous heads, a positive scale.

    The kernels take the maximum of the scores before they scale them, which needs a positive scale;
    q is multiplied by any other. A tensor with a token stride of 2^22 or more is copied, since
    offsets in a short sequence are computed in 32 bits.
    """
    q, k, v = (
        t if (t.stride(2) == 1 or t.shape[2] == 1) and t.stride(0) < 1 << 22 else t.contiguous()
        for t in (inputs.q, inputs.k, inputs.v)
    )
    scale = inputs.scale
    q, scale = (q, scale) if scale > 0 else (q * scale, 1.0)
    return inputs._replace(q=q, k=k, v=v, scale=scale)


def token_and_head_strides(*tensors: torch.Tensor) -> list[int]:
    """The token stride and the head stride of each tensor (total, heads, head_dim), in elements."""
    return [t.stride(dim) for t in tensors for dim in (0, 1)]


def launch_options(q: torch.Tensor, threshold: int, tile: Tile) -> dict[str, int | bool]:
    """The keyword arguments of a launch with this tile."""
    return {
        "HEAD_DIM": q.shape[2],
        "THRESHOLD": threshold,
        **tile.blocks,
        "BLOCK_D": head_block(q.shape[2]),
        "WIDEN": q.device.type == "cpu",
        "num_warps": tile.num_warps,
        "num_stages": tile.num_stages,
    }


@triton.jit
def locate(cu_seqlens, order, tiles, BLOCK: tl.constexpr):
    """(head, sequence, its first row for this program, its first token, its length).

    Grid axis 0 numbers tiles of BLOCK rows, sequence by sequence in the order of `order` (None: as
    they come); axis 1 numbers heads. Head and token are int64: heads may lie 2^31 elements apart.
    """
    head = tl.program_id(1).to(tl.int64)
    sequence = tl.program_id(0) // tiles
    if order is not None:
        sequence = tl.load(order + sequence)
    start = tl.load(cu_seqlens + sequence).to(tl.int64)
    length = (tl.load(cu_seqlens + sequence + 1) - start).to(tl.int32)
    return head, sequence, tl.program_id(0) % tiles * BLOCK, start, length


@triton.jit
def load_rows(pointer, token, stride, head_stride, head, inside, BLOCK_D: tl.constexpr):
    """(tokens, BLOCK_D) of one head, zeros outside; token and head are int64."""
    at = token[:, None] * stride + head * head_stride + tl.arange(0, BLOCK_D)[None, :]
    return tl.load(pointer + at, mask=inside, other=0.0)


@triton.jit(do_not_specialize=["batch"])
def _sequence_order_kernel(cu_seqlens, order, batch, BLOCK: tl.constexpr):
    """order[rank] = sequence, longest first, ties as they come.

    The rank of a sequence is the number of sequences that go before it. One program ranks BLOCK
    sequences. Grid: (batch / BLOCK,). Comparisons: batch^2.
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
    """int32 (batch,): sequences from long to short, so that short programs run last."""
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
