"""Small inputs of every registered function, and how to call its backward and its reference."""

from collections.abc import Callable
from typing import NamedTuple

import torch

from spanbert_fast._extension import _C
from spanbert_fast.ops import antecedent_loss as antecedents
from spanbert_fast.ops._attention_composite import AttentionInputs
from spanbert_fast.ops._precision import product_dtype
from spanbert_fast.ops._register import KERNELS
from spanbert_fast.ops.antecedent_top_k import TopKInputs
from spanbert_fast.ops.bias_gelu import BiasGeluInputs
from spanbert_fast.ops.dropout import of_flat
from spanbert_fast.ops.dropout_add_layer_norm import NormInputs
from spanbert_fast.ops.embedding_layer_norm import EmbeddingInputs
from spanbert_fast.ops.linear_cross_entropy import LossInputs
from spanbert_fast.ops.padding import pad, unpad  # noqa: F401  (registers their functions)
from spanbert_fast.ops.sample_spans import SpanText, span_capacity
from spanbert_fast.ops.span_boundary_gather import GatherInputs
from spanbert_fast.ops.span_options import SpanOptions
from spanbert_fast.ops.span_representation import SpanInputs
from spanbert_fast.ops.varlen_attention import varlen_attention  # noqa: F401  (registers it)
from spanbert_fast.reference.antecedent_loss import antecedent_loss
from spanbert_fast.reference.antecedent_top_k import antecedent_top_k
from spanbert_fast.reference.bias_gelu import bias_gelu
from spanbert_fast.reference.dropout_add_layer_norm import dropout_add_layer_norm
from spanbert_fast.reference.embedding_layer_norm import embedding_layer_norm
from spanbert_fast.reference.linear_cross_entropy import linear_cross_entropy
from spanbert_fast.reference.span_boundary_gather import span_boundary_gather
from spanbert_fast.reference.span_representation import span_representation
from spanbert_fast.reference.varlen_attention import varlen_attention as reference_attention

SEED = torch.tensor(-7_123_456_789_012_345)
EPS = 1e-5


class Case(NamedTuple):
    """One call of an op.

    Attributes:
        op: its name; the registered functions are op_fwd and op_bwd, or op alone.
        inputs: inputs of the given dtype.
        fixed: inputs whose values are not free: prefix sums, distinct indices.
    """

    op: str
    inputs: tuple
    fixed: tuple[str, ...] = ()

    @property
    def forward(self):
        return KERNELS.get(f"{self.op}_fwd") or KERNELS[self.op]

    @property
    def backward(self):
        return KERNELS.get(f"{self.op}_bwd")

    def outputs(self, inputs: tuple | None = None) -> tuple[torch.Tensor, ...]:
        """The forward's outputs, always as a tuple."""
        outputs = self.forward(*(self.inputs if inputs is None else inputs))
        return outputs if isinstance(outputs, tuple) else (outputs,)

    def saved(self, outputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """The outputs of the forward that the backward takes."""
        whole = {"varlen_attention": 0, "span_representation": 0, "linear_cross_entropy": 2}
        return outputs[whole.get(self.op, 1) :]


class IndexInputs(NamedTuple):
    """The arguments of unpad_fwd."""

    x: torch.Tensor
    indices: torch.Tensor


class PadInputs(NamedTuple):
    """The arguments of pad_fwd."""

    x: torch.Tensor
    indices: torch.Tensor
    rows: int


def _ints(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def _span_case() -> Case:
    law = SpanOptions(scheme={"given": 0.3, "geometric": 0.7}).law()
    text = SpanText(
        torch.randint(5, 900, (60,)),
        _ints(0, 40, 60),
        torch.rand(60) < 0.7,
        torch.arange(60) % 20 == 0,
        torch.tensor([[3, 5], [45, 45]]),
        torch.tensor([1000, 1001, 1002]),
        torch.tensor([7, 9]),
    )
    flat = (*text, 11, 4, *law, span_capacity(law, 60, 2))
    # the fields behind the tensors have no names here
    fields = (*SpanText._fields, *(f"number{i}" for i in range(len(flat) - len(text))))
    inputs = NamedTuple("SpanInputs", [(name, object) for name in fields])(*flat)
    return Case("sample_spans", inputs, ("cu_seqlens", "given_spans", "special_mask"))


def cases(dtype: torch.dtype) -> dict[str, Case]:
    """Every registered function at least once, with and without optional arguments."""

    def floats(*shape: int) -> torch.Tensor:
        return torch.randn(shape).to(dtype)

    def ids(high: int, count: int) -> torch.Tensor:
        return torch.randint(high, (count,))

    norm = NormInputs(
        floats(5, 12), floats(5, 12), floats(12), floats(12), floats(12), SEED, ids(90, 5), 64, 3,
        EPS,
    )  # fmt: skip
    embedding = EmbeddingInputs(
        floats(11, 12), ids(11, 7), floats(6, 12), ids(6, 7), floats(2, 12), ids(2, 7), floats(12),
        floats(12), SEED, 64, 3, 4, EPS, dtype,
    )  # fmt: skip
    attention = AttentionInputs(
        floats(9, 2, 16), floats(9, 2, 16), floats(9, 2, 16), _ints(0, 5, 5, 9), 5, 0.3, None, 0, 0
    )
    wide = product_dtype(dtype, torch.device("cpu"))  # as the op casts it
    kept = 0 if _C is None or dtype == torch.float64 else 256  # compiled code only
    loss = LossInputs(
        floats(7, 8).to(wide), floats(300, 8), floats(2, 300), ids(300, 7), [4, 3], True, kept
    )
    gather = GatherInputs(
        floats(3, 12), floats(4, 12), _ints(0, 2, 2, 6), 6, floats(12), floats(12), EPS
    )
    pairs = (floats(9, 8).to(wide), floats(9, 8).to(wide), floats(9), floats(9, 10))
    gold = antecedents.LossInputs(*pairs, ids(3, 9) - 1, _ints(0, 4, 4, 9))
    best = TopKInputs(*pairs, _ints(0, 4, 4, 9), 3)
    starts, ends = torch.tensor([4, 0, 2, 2]), torch.tensor([6, 0, 5, 3])
    spans = SpanInputs(floats(7, 5), floats(7, 4), floats(7, 6), floats(7), starts, ends)
    plain_norm = norm._replace(x_bias=None, seed=None, rows=None, threshold=0)
    embeds = embedding._replace(
        words=floats(7, 12), input_ids=None, token_types=None, token_type_ids=None, padding_idx=-1
    )
    dropped = attention._replace(seed=SEED, threshold=64, site=3)
    return {
        "bias_gelu": Case("bias_gelu", BiasGeluInputs(floats(3, 4, 6), floats(6))),
        "norm": Case("dropout_add_layer_norm", norm),
        "norm of the least": Case("dropout_add_layer_norm", plain_norm),
        "embedding": Case("embedding_layer_norm", embedding),
        "embedding of rows": Case("embedding_layer_norm", embeds),
        "attention": Case("varlen_attention", attention, ("cu_seqlens",)),
        "attention with dropout": Case("varlen_attention", dropped, ("cu_seqlens",)),
        "loss": Case("linear_cross_entropy", loss),
        "loss that keeps nothing": Case(
            "linear_cross_entropy", loss._replace(saved_columns=0, with_predictions=False)
        ),
        "loss that keeps all": Case(
            "linear_cross_entropy", loss._replace(saved_columns=300 if kept else 0)
        ),
        "gather": Case("span_boundary_gather", gather, ("cu_span_lengths",)),
        "antecedents": Case("antecedent_loss", gold, ("cu_mentions", "clusters")),
        "best antecedents": Case("antecedent_top_k", best, ("cu_mentions",)),
        "spans": Case("span_representation", spans, ("starts", "ends")),
        "spans of boundaries": Case(
            "span_representation", spans._replace(inner=None, logits=None), ("starts", "ends")
        ),
        "unpad": Case("unpad", IndexInputs(floats(6, 3), torch.tensor([5, 0, 3])), ("indices",)),
        "pad": Case("pad", PadInputs(floats(3, 3), torch.tensor([5, 0, 3]), 6), ("indices",)),
        "sample_spans": _span_case(),
    }


NAMES = tuple(cases(torch.float32))


def _loss(i: LossInputs) -> torch.Tensor:
    weight = i.weight.to(i.hidden.dtype)
    return linear_cross_entropy(i.hidden, weight, i.bias, i.targets, group_sizes=i.group_sizes)[0]


def _norm(i: NormInputs) -> torch.Tensor:
    dropout = of_flat(i.seed, i.threshold, i.site, i.rows)
    return dropout_add_layer_norm(
        i.x, i.residual, i.weight, i.bias, x_bias=i.x_bias, dropout=dropout, eps=i.eps
    )


def _embedding(i: EmbeddingInputs) -> torch.Tensor:
    given = i.words if i.input_ids is None else None
    return embedding_layer_norm(
        i.input_ids, i.position_ids, i.token_type_ids, i.words, i.positions, i.token_types,
        i.weight, i.bias, inputs_embeds=given, padding_idx=i.padding_idx,
        dropout=of_flat(i.seed, i.threshold, i.site), eps=i.eps,
    )  # fmt: skip


def _attention(i: AttentionInputs) -> torch.Tensor:
    return reference_attention(
        i.q, i.k, i.v, i.cu_seqlens, i.max_seqlen, softmax_scale=i.scale,
        dropout=of_flat(i.seed, i.threshold, i.site),
    )  # fmt: skip


def _gather(i: GatherInputs) -> torch.Tensor:
    return span_boundary_gather(
        i.spans, i.places, i.cu_span_lengths, i.num_targets, i.weight, i.bias, eps=i.eps
    )


# the first output out of the inputs, differentiable
REFERENCES: dict[str, Callable[[tuple], torch.Tensor]] = {
    "bias_gelu": lambda i: bias_gelu(i.x, i.bias),
    "dropout_add_layer_norm": _norm,
    "embedding_layer_norm": _embedding,
    "varlen_attention": _attention,
    "linear_cross_entropy": _loss,
    "span_boundary_gather": _gather,
    "antecedent_loss": lambda i: antecedent_loss(*i),
    "antecedent_top_k": lambda i: antecedent_top_k(*i)[0],
    "span_representation": lambda i: span_representation(
        i.firsts, i.lasts, i.starts, i.ends, inner=i.inner, logits=i.logits
    ),
    "unpad": lambda i: i.x[i.indices],
    "pad": lambda i: i.x.new_zeros((i.rows, *i.x.shape[1:])).index_put((i.indices,), i.x),
}
# the inputs whose gradients the backward gives, in its order
GRADIENTS: dict[str, tuple[str, ...]] = {
    "bias_gelu": ("x", "bias"),
    "dropout_add_layer_norm": ("x", "residual", "weight", "bias", "x_bias"),
    "embedding_layer_norm": ("words", "positions", "token_types", "weight", "bias"),
    "varlen_attention": ("q", "k", "v"),
    "linear_cross_entropy": ("hidden", "weight", "bias"),
    "span_boundary_gather": ("spans", "places", "weight", "bias"),
    "antecedent_loss": ("queries", "keys", "mention_scores", "distance_scores"),
    "span_representation": ("firsts", "lasts", "inner", "logits"),
}
