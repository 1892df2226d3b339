"""The span boundary head with its loss, beside the released SpanBERT's padded form.

Ours computes W1's products once per span, and only places that have a target. The released code
(Joshi et al. 2020, arXiv 1907.10529, section 3.2) joins [x_l; x_r; p_k] for all 20 places of every
span, runs both layers on all of them, scores each over the whole vocabulary, and gives the places
past a span's end, four of five, weight 0 in the loss. It is written here from that description,
with the same parameters, and must give the same loss and gradients.
"""

import torch
from bench_span_boundary_gather import span_lengths
from op_case import DTYPES, OURS, OpCase, Provider, compiled
from torch.func import functional_call
from torch.nn import functional as F

from spanbert_fast.nn import SpanBoundaryHead
from spanbert_fast.ops.linear_cross_entropy import linear_cross_entropy

VARIANTS = ("bf16", "fp32")
SIZES = {"tiny": (5, 32, 200), "cpu": (60, 768, 28_996), "cuda": (1200, 1024, 28_996)}
PLACES = 20
RELEASED, RELEASED_COMPILED = "released, padded", "released, padded, compiled"


def case(variant: str, device: str, size: str) -> OpCase:
    """Hidden states of tokens, the word embeddings, and the head's parameters."""
    spans, hidden_size, vocab = SIZES[size]
    dtype = DTYPES[variant]
    head = SpanBoundaryHead(hidden_size, vocab).to(device, dtype)
    with torch.no_grad():
        for name, parameter in head.named_parameters():
            parameter.normal_(std=0.06).add_("norm" in name and name.endswith("weight"))
    names = [name for name, _ in head.named_parameters()]
    tokens = 8 * spans
    hidden = torch.randn(tokens, hidden_size, device=device).to(dtype)
    words = (0.06 * torch.randn(vocab, hidden_size, device=device)).to(dtype)
    leaves = [hidden.requires_grad_(), words.requires_grad_(), *head.parameters()]
    left = torch.arange(spans, device=device) * 8
    boundaries = torch.stack([left, left + 7], 1)
    cu_span_lengths, count = span_lengths(spans, device)
    targets = torch.randint(vocab, (count,), device=device)
    has_target = torch.arange(PLACES, device=device) < cu_span_lengths.diff()[:, None]
    labels = torch.full((spans, PLACES), -100, device=device)
    labels[has_target] = targets

    def ours(hidden, words, *parameters):
        state = dict(zip(names, parameters, strict=True))
        rows = functional_call(head, state, (hidden, boundaries, cu_span_lengths, count))
        return linear_cross_entropy(rows, words, state["bias"], targets).losses.mean()

    def released(hidden, words, *parameters):
        p = dict(zip(names, parameters, strict=True))
        pairs = hidden[boundaries].flatten(1).unsqueeze(1).expand(-1, PLACES, -1)
        places = p["position_embeddings.weight"].expand(spans, -1, -1)
        x = torch.cat([pairs, places], -1)
        for layer in ("1", "2"):
            x = F.gelu(F.linear(x, p[f"linear{layer}.weight"], p[f"linear{layer}.bias"]))
            norm = p[f"layer_norm{layer}.weight"], p[f"layer_norm{layer}.bias"]
            x = F.layer_norm(x, (hidden_size,), *norm, 1e-12)
        scores = F.linear(x, words, p["bias"])
        return F.cross_entropy(scores.flatten(0, 1), labels.flatten())

    products = 2 * count * hidden_size * (vocab + hidden_size) + 4 * spans * hidden_size**2
    moved = sum(t.nbytes for t in leaves)
    return OpCase(
        op="span_loss",
        variant=variant,
        shape={"spans": spans, "targets": count, "hidden_size": hidden_size, "vocab_size": vocab},
        dtype=variant,
        leaves=leaves,
        dy=torch.ones((), device=device),
        providers={
            OURS: Provider(ours),
            RELEASED: Provider(released),
            RELEASED_COMPILED: compiled(released),
        },
        bytes_moved=(moved, 3 * moved),
        flops=(products, 3 * products),
        baseline=RELEASED,
    )
