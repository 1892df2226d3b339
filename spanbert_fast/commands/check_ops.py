"""`spanbert-fast env --check`: every op once on this machine, beside the reference."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

from spanbert_fast.ops._backend import use_backend
from spanbert_fast.ops.antecedent_loss import antecedent_loss
from spanbert_fast.ops.antecedent_top_k import antecedent_top_k
from spanbert_fast.ops.bias_gelu import bias_gelu
from spanbert_fast.ops.dropout import Dropout
from spanbert_fast.ops.dropout_add_layer_norm import dropout_add_layer_norm
from spanbert_fast.ops.embedding_layer_norm import embedding_layer_norm
from spanbert_fast.ops.linear import linear
from spanbert_fast.ops.linear_cross_entropy import linear_cross_entropy
from spanbert_fast.ops.padding import pad, take_tokens
from spanbert_fast.ops.sample_spans import sample_spans
from spanbert_fast.ops.span_boundary_gather import span_boundary_gather
from spanbert_fast.ops.span_representation import span_representation
from spanbert_fast.ops.varlen_attention import varlen_attention

# Odd sizes and an empty sequence test the ends of blocks; they are large enough for every kernel to
# use more than one of its tiles.
LENGTHS = (37, 1, 0, 130, 64)
TOKENS, HIDDEN, HEADS, HEAD_DIM, WORDS = sum(LENGTHS), 96, 3, 64, 300
SPAN_LENGTHS = (1, 10, 0, 3, 7)
# Added to twice the reference's own error, which happens to be tiny for some results.
ULPS = 4


class Checked(NamedTuple):
    """One op on one device in one dtype.

    Attributes:
        error: the largest deviation from the reference in fp64, as a share of what is allowed
            (contract C5): above 1 the op is wrong.
        result: the output or gradient that it belongs to.
    """

    op: str
    device: str
    dtype: str
    error: float
    result: str


class _Inputs:
    """Make an op's inputs: the same numbers for every dtype and device."""

    def __init__(self, dtype: torch.dtype, device: str, rounded_to: torch.dtype):
        self.dtype, self.device, self.rounded_to = dtype, device, rounded_to
        self.generator = torch.Generator().manual_seed(1)
        self.parameters: dict[str, torch.Tensor] = {}

    def values(self, name: str, *shape: int) -> torch.Tensor:
        values = torch.randn(shape, generator=self.generator).to(self.rounded_to)
        values = values.to(self.device, self.dtype).requires_grad_()
        self.parameters[name] = values
        return values

    def integers(self, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(high, shape, generator=self.generator).to(self.device)

    def offsets(self, lengths: tuple[int, ...]) -> torch.Tensor:
        cumulative = torch.tensor((0, *lengths)).cumsum(0)
        return cumulative.to(self.device, torch.int32)

    def dropout(self) -> Dropout:
        return Dropout(0.1, torch.tensor(7, device=self.device), site=3)


def _attention(i: _Inputs) -> torch.Tensor:
    q, k, v = (i.values(name, TOKENS, HEADS, HEAD_DIM) for name in "qkv")
    offsets = i.offsets(LENGTHS)
    return varlen_attention(q, k, v, offsets, max(LENGTHS), dropout=i.dropout())


def _norm(i: _Inputs) -> torch.Tensor:
    x, residual = i.values("x", TOKENS, HIDDEN), i.values("residual", TOKENS, HIDDEN)
    weight, bias, x_bias = (i.values(name, HIDDEN) for name in ("weight", "bias", "x_bias"))
    return dropout_add_layer_norm(x, residual, weight, bias, x_bias=x_bias, dropout=i.dropout())


def _embedding(i: _Inputs) -> torch.Tensor:
    return embedding_layer_norm(
        i.integers(WORDS, TOKENS),
        i.integers(40, TOKENS),
        i.integers(2, TOKENS),
        i.values("word_embeddings", WORDS, HIDDEN),
        i.values("position_embeddings", 40, HIDDEN),
        i.values("token_type_embeddings", 2, HIDDEN),
        i.values("weight", HIDDEN),
        i.values("bias", HIDDEN),
        padding_idx=0,
        dropout=i.dropout(),
    )


def _loss(i: _Inputs) -> torch.Tensor:
    hidden, weight = i.values("hidden", TOKENS, HIDDEN), i.values("weight", WORDS, HIDDEN)
    targets = i.integers(WORDS, TOKENS)
    return linear_cross_entropy(hidden, weight, i.values("bias", WORDS), targets).losses


def _gather(i: _Inputs) -> torch.Tensor:
    spans, places = i.values("spans", len(SPAN_LENGTHS), HIDDEN), i.values("places", 10, HIDDEN)
    weight, bias = i.values("weight", HIDDEN), i.values("bias", HIDDEN)
    offsets, total = i.offsets(SPAN_LENGTHS), sum(SPAN_LENGTHS)
    return span_boundary_gather(spans, places, offsets, total, weight, bias)


def _pairs(i: _Inputs) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    queries, keys = i.values("queries", TOKENS, HIDDEN), i.values("keys", TOKENS, HIDDEN)
    mention_scores = i.values("mention_scores", TOKENS)
    return queries / HIDDEN**0.5, keys, mention_scores, i.values("distance_scores", TOKENS, 10)


def _antecedents(i: _Inputs) -> torch.Tensor:
    return antecedent_loss(*_pairs(i), i.integers(60, TOKENS) - 20, i.offsets(LENGTHS))


def _spans(i: _Inputs) -> torch.Tensor:
    firsts, lasts, inner = (i.values(name, TOKENS, HIDDEN) for name in ("firsts", "lasts", "inner"))
    starts = i.integers(TOKENS - 9, TOKENS)
    ends = starts + i.integers(9, TOKENS)
    logits = i.values("logits", TOKENS)
    return span_representation(firsts, lasts, starts, ends, inner=inner, logits=logits)


def _padding(i: _Inputs) -> torch.Tensor:
    mask = torch.arange(max(LENGTHS))[None] < torch.tensor(LENGTHS)[:, None]
    indices = mask.flatten().nonzero().flatten().to(i.device)
    x = i.values("x", *mask.shape, HIDDEN)
    return pad(2 * take_tokens(x, indices), indices, *mask.shape)


CASES: Mapping[str, Callable[[_Inputs], torch.Tensor]] = {
    "antecedent_loss": _antecedents,
    "bias_gelu": lambda i: bias_gelu(i.values("x", TOKENS, HIDDEN), i.values("bias", HIDDEN)),
    "dropout_add_layer_norm": _norm,
    "embedding_layer_norm": _embedding,
    "linear": lambda i: linear(
        i.values("x", TOKENS, HIDDEN), i.values("weight", WORDS, HIDDEN), i.values("bias", WORDS)
    ),
    "linear_cross_entropy": _loss,
    "padding": _padding,
    "span_boundary_gather": _gather,
    "span_representation": _spans,
    "varlen_attention": _attention,
}


def _run(
    op: str, dtype: torch.dtype, device: str, rounded_to: torch.dtype
) -> dict[str, torch.Tensor]:
    """The output and the gradients, in fp64 on the CPU."""
    inputs = _Inputs(dtype, device, rounded_to)
    output = CASES[op](inputs)
    upstream = torch.randn(output.shape, generator=torch.Generator().manual_seed(2))
    output.backward(upstream.to(rounded_to).to(output))
    results = {"output": output.detach()}
    for name, x in inputs.parameters.items():
        assert x.grad is not None, f"the op gave no gradient of {name}"
        results[f"gradient of {name}"] = x.grad
    return {name: value.to("cpu", torch.float64) for name, value in results.items()}


def _checked(op: str, device: str, dtype: torch.dtype) -> Checked:
    ours = _run(op, dtype, device, dtype)
    with use_backend("reference"):
        peer, truth = _run(op, dtype, device, dtype), _run(op, torch.float64, "cpu", dtype)
    worst, where = 0.0, "output"
    for name, exact in truth.items():
        floor = ULPS * torch.finfo(dtype).eps * exact.abs().max().item()
        allowed = 2 * (peer[name] - exact).abs().max().item() + floor
        error = (ours[name] - exact).abs().max().item() / allowed
        if not error <= worst:  # also true of NaN
            worst, where = error, name
    return Checked(op, device, str(dtype).removeprefix("torch."), worst, where)


def _sampler(device: str) -> Checked:
    """Check the span sampler, whose implementations are equal bit for bit."""

    lengths = [length for length in LENGTHS if length]  # the sampler takes no empty sequence

    def sample(device: str):
        generator = torch.Generator().manual_seed(1)
        ids = torch.randint(5, WORDS, (TOKENS,), generator=generator)
        starts = torch.rand(TOKENS, generator=generator) < 0.7
        return sample_spans(
            ids.to(device),
            torch.tensor((0, *lengths)).cumsum(0).to(device, torch.int32),
            starts.to(device),
            seed=11,
            sequence_ids=torch.arange(len(lengths), device=device),
            mask_token_id=4,
            random_token_pool=torch.arange(5, WORDS, device=device),
        )

    ours = sample(device)
    with use_backend("reference"):
        expected = sample("cpu")
    different = [
        name
        for name, value in expected._asdict().items()
        if not torch.equal(getattr(ours, name).cpu(), value)
    ]
    error = float("inf") if different else 0.0
    return Checked("sample_spans", device, "int64", error, (different or ["output"])[0])


def _best_antecedents(device: str) -> Checked:
    """Check antecedent_top_k on whole numbers, whose sums are exact: equal bit for bit, ties
    included."""

    def best(device: str):
        inputs = _Inputs(torch.float32, device, torch.float32)
        pairs = (i.round() for i in (inputs.values("", TOKENS, s) for s in (4, 4, 1, 10)))
        queries, keys, mentions, distances = pairs
        offsets = inputs.offsets(LENGTHS)
        return antecedent_top_k(queries, keys, mentions[:, 0], distances, offsets, 5)

    ours = best(device)
    with use_backend("reference"):
        expected = best("cpu")
    same = [torch.equal(a.cpu(), b) for a, b in zip(ours, expected, strict=True)]
    error = 0.0 if all(same) else float("inf")
    return Checked("antecedent_top_k", device, "float32", error, "output")


def check_ops(device: str) -> list[Checked]:
    """Check every op on `device`, forward and backward, in each dtype that it takes there."""
    dtypes = [torch.float32, torch.bfloat16] + ([torch.float16] if device == "cuda" else [])
    checked = [_checked(op, device, dtype) for op in CASES for dtype in dtypes]
    return [*checked, _best_antecedents(device), _sampler(device)]
