"""The public functions of the ops, called with the fields of their registered ones."""

from collections.abc import Callable

import torch

from spanbert_fast.ops.bias_gelu import bias_gelu
from spanbert_fast.ops.dropout import of_flat
from spanbert_fast.ops.dropout_add_layer_norm import dropout_add_layer_norm
from spanbert_fast.ops.embedding_layer_norm import embedding_layer_norm
from spanbert_fast.ops.linear import linear
from spanbert_fast.ops.linear_cross_entropy import linear_cross_entropy
from spanbert_fast.ops.padding import pad, take_tokens, unpad
from spanbert_fast.ops.sample_spans import sample_spans
from spanbert_fast.ops.span_boundary_gather import span_boundary_gather
from spanbert_fast.ops.varlen_attention import varlen_attention


def _attention(i):
    dropout = of_flat(i.seed, i.threshold, i.site)
    return varlen_attention(
        i.q, i.k, i.v, i.cu_seqlens, i.max_seqlen, softmax_scale=i.scale, dropout=dropout
    )


def _norm(i):
    dropout = of_flat(i.seed, i.threshold, i.site, i.rows)
    return dropout_add_layer_norm(
        i.x, i.residual, i.weight, i.bias, x_bias=i.x_bias, dropout=dropout, eps=i.eps
    )


def _embedding(i):
    embeds = i.words if i.input_ids is None else None
    return embedding_layer_norm(
        i.input_ids, i.position_ids, i.token_type_ids, i.words, i.positions, i.token_types,
        i.weight, i.bias, inputs_embeds=embeds, padding_idx=i.padding_idx,
        dropout=of_flat(i.seed, i.threshold, i.site), eps=i.eps,
    )  # fmt: skip


def _loss(i):
    return linear_cross_entropy(
        i.hidden, i.weight, i.bias, i.targets, group_sizes=i.group_sizes,
        return_predictions=i.with_predictions,
    ).losses  # fmt: skip


def _linear(i):  # of the loss's inputs
    return linear(i.hidden, i.weight, i.bias[0])


def _gather(i):
    return span_boundary_gather(
        i.spans, i.places, i.cu_span_lengths, i.num_targets, i.weight, i.bias, eps=i.eps
    )


def _unpad(i):
    return take_tokens(i.x.unsqueeze(0), i.indices)


def _unpad_by_mask(i):  # of pad's inputs
    return unpad(i.x.unsqueeze(0), i.indices.unsqueeze(0)).packed


def _spans(i):
    return sample_spans(
        i.input_ids, i.cu_seqlens, i.word_starts, seed=i.number0, sequence_ids=i.sequence_ids,
        mask_token_id=i.number1, random_token_pool=i.random_token_pool, special_mask=i.special_mask,
    )  # fmt: skip


PUBLIC: dict[str, tuple[Callable, ...]] = {
    "bias_gelu": (lambda i: bias_gelu(i.x, i.bias),),
    "dropout_add_layer_norm": (_norm,),
    "embedding_layer_norm": (_embedding,),
    "linear_cross_entropy": (_loss, _linear),
    "pad": (lambda i: pad(i.x, i.indices, 1, i.rows), _unpad_by_mask),
    "sample_spans": (_spans,),
    "span_boundary_gather": (_gather,),
    "unpad": (_unpad,),
    "varlen_attention": (_attention,),
}


def call(op: str, number: int, inputs: tuple) -> None:
    """Call a public function, and its backward if it has one."""
    functions = PUBLIC[op]
    result = functions[number % len(functions)](inputs)
    if isinstance(result, torch.Tensor) and result.requires_grad:
        result.backward(torch.ones_like(result))
