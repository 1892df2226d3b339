"""varlen_attention of packed tokens beside every attention that PyTorch and the libraries have.

Peers get the layout that they want, contiguous (batch, heads, seqlen, head_dim), padded and masked
if lengths differ; copies to it are not timed. Ours reads views of one packed (tokens, 3, heads,
head_dim). Peers without dropout run without it, under a name that says so. A forward is 4, a
backward 10 tokens x seqlen x head_dim x heads operations.
"""

import contextlib

import torch
from op_case import COMPILED, DTYPES, OURS, PYTORCH, OpCase, Provider, compiled, installed
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from spanbert_fast.ops.dropout import Dropout
from spanbert_fast.ops.varlen_attention import varlen_attention

# dtype, sequence length ("ragged": up to 512, 256 on average), dropout
VARIANTS = (
    "bf16, 512, p=.1",
    "bf16, 128, p=.1",
    "bf16, 512, p=0",
    "bf16, 128, p=0",
    "fp32, 512, p=.1",
)
CUDA_VARIANTS = tuple(
    f"bf16, {n}, p={p}" for p in (".1", "0") for n in (512, 128, 256, 2048, "ragged")
)
CUDA_VARIANTS += ("fp32, 512, p=.1",)
CUDA_SLOW_IN = ("bf16, 512, p=.1", "bf16, 512, p=0", "bf16, 128, p=0")
# on a GPU sequences of 210: two tiles, the last one cut
SIZES = {
    "tiny": (64, 2, 32),
    "tiny, cuda": (420, 2, 32),
    "cpu": (2048, 12, 64),
    "cuda": (16_384, 16, 64),
}
NO_DROPOUT = ", no dropout"
BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}


def eager(p: float, mask: torch.Tensor | None):
    """Softmax and two products, with the scores in memory."""

    def function(q, k, v):
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        return F.dropout(scores.softmax(-1), p) @ v

    return function


def sdpa(p: float, mask: torch.Tensor | None, backend: SDPBackend | None = None):
    """scaled_dot_product_attention, with a given backend or with the one that PyTorch picks."""

    def function(q, k, v):
        with contextlib.nullcontext() if backend is None else sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v, mask, dropout_p=p)

    return function


def dense_peers(
    p: float, mask: torch.Tensor | None, device: str, layout: dict
) -> dict[str, Provider]:
    """The peers on (batch, heads, seqlen, head_dim); `layout` has their leaves."""
    forms = {PYTORCH: eager(p, mask), "sdpa": sdpa(p, mask)}
    plain = {PYTORCH: eager(0.0, mask), "sdpa": sdpa(0.0, mask)}
    if device == "cuda":
        for name, backend in BACKENDS.items():
            forms[f"sdpa {name}"] = sdpa(p, mask, backend)
            plain[f"sdpa {name}"] = sdpa(0.0, mask, backend)
    peers = {name: Provider(forms[name], plain[name], **layout) for name in forms}
    peers[COMPILED] = compiled(forms[PYTORCH], plain[PYTORCH], **layout)
    if p:
        peers["sdpa" + NO_DROPOUT] = Provider(plain["sdpa"], **layout)
    if device == "cuda" and mask is None:
        from torch.nn.attention.flex_attention import flex_attention

        peers["FlexAttention" + NO_DROPOUT] = compiled(flex_attention, **layout)
    return peers


def packed_peers(
    bounds: torch.Tensor, seqlen: int, p: float, device: str
) -> tuple[dict[str, Provider], list[str]]:
    """(peers on packed tokens, the names of those that are not installed)."""
    peers, missing = {}, []
    if device == "cuda" and installed("torch.nn.attention.varlen"):
        from torch.nn.attention.varlen import varlen_attn

        peers["torch varlen" + NO_DROPOUT] = Provider(
            lambda q, k, v: varlen_attn(q, k, v, bounds, bounds, seqlen, seqlen)
        )
    if not installed("flash_attn.flash_attn_interface"):
        missing.append("flash-attn-2")
    elif device == "cuda":
        from flash_attn import flash_attn_varlen_func as flash2

        def second(p: float):
            return lambda q, k, v: flash2(q, k, v, bounds, bounds, seqlen, seqlen, dropout_p=p)

        peers["flash-attn-2"] = Provider(second(p), second(0.0))
    if not installed("flash_attn.cute"):
        missing.append("flash-attn-4")
    elif device == "cuda":
        from flash_attn.cute import flash_attn_varlen_func as flash4

        def fourth(q, k, v):
            out = flash4(q, k, v, cu_seqlens_q=bounds, cu_seqlens_k=bounds)
            return out[0] if isinstance(out, tuple) else out

        peers["flash-attn-4" + NO_DROPOUT] = Provider(fourth)
    return peers, missing


def sequence_lengths(length: str, tokens: int) -> list[int]:
    """One length, or six in turn; each at most half of the tokens, and together all of them."""
    longest = min(512 if length == "ragged" else int(length), tokens // 2)
    eighths = (8, 6, 4, 3, 2, 1) if length == "ragged" else (8,)
    found: list[int] = []
    while sum(found) < tokens:
        turn = longest * eighths[len(found) % len(eighths)] // 8
        found.append(min(turn, tokens - sum(found)))
    return found


def case(variant: str, device: str, size: str) -> OpCase:
    """q, k and v (tokens, heads, head_dim), packed."""
    tokens, heads, head_dim = SIZES.get(f"{size}, {device}", SIZES[size])
    name, length, p = variant.split(", ")
    p = float(p.removeprefix("p="))
    lengths = torch.tensor(sequence_lengths(length, tokens), device=device)
    seqlen = int(lengths.max())
    real = torch.arange(seqlen, device=device) < lengths[:, None]
    mask = None if real.all() else real[:, None, None, :]
    dtype, seed = DTYPES[name], torch.tensor(2019, device=device)
    qkv = torch.randn(tokens, 3, heads, head_dim, device=device).to(dtype)
    dout = torch.randn(tokens, heads, head_dim, device=device).to(dtype)
    bounds = F.pad(lengths.cumsum(0), (1, 0)).int()
    leaves = [t.detach().requires_grad_() for t in qkv.unbind(1)]

    def dense(t):
        padded = t.new_zeros(len(lengths), seqlen, heads, head_dim)
        padded[real] = t.detach()
        return padded.transpose(1, 2).contiguous()

    layout = {
        "leaves": [dense(t).requires_grad_() for t in leaves],
        "dy": dense(dout),
        "to_ours": lambda results: tuple(t.transpose(1, 2)[real] for t in results),
    }

    def ours(bounds: torch.Tensor):
        def attention(p: float):
            dropout = Dropout(p, seed) if p else None
            return lambda q, k, v: varlen_attention(q, k, v, bounds, seqlen, dropout=dropout)

        return Provider(attention(p), attention(0.0) if p else None)

    others, missing = packed_peers(bounds, seqlen, p, device)
    operations = int(lengths.square().sum()) * heads * head_dim
    return OpCase(
        op="varlen_attention",
        variant=variant,
        shape={"tokens": tokens, "seqlen": seqlen, "heads": heads, "head_dim": head_dim},
        dtype=name,
        leaves=leaves,
        dy=dout,
        providers={OURS: ours(bounds), **dense_peers(p, mask, device, layout), **others},
        bytes_moved=(4 * dout.nbytes, 12 * dout.nbytes),
        flops=(4 * operations, 14 * operations),
        not_installed=missing,
        head=(int(lengths[0]), ours(bounds[:2])),
        floor=seqlen**0.5 * torch.finfo(torch.float32).eps,  # terms of a sum, in another order
    )
