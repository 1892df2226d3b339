"""`attn_implementation="spanbert_fast"`: the attention op for any encoder of transformers.

    import spanbert_fast.integrations.attention  # registers the name
    model = AutoModel.from_pretrained("roberta-base", attn_implementation="spanbert_fast")

RoBERTa, ELECTRA and the other encoders that use transformers' attention interface get attention
on packed tokens, with dropout inside the op. Padding attends to nothing and comes out as zero.
A model of transformers that computes its attention itself, such as DeBERTa-v2, would ignore the
name: its constructor raises a ValueError.
"""

import functools
from collections.abc import Callable

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import bidirectional_mask_function

from spanbert_fast.nn.key_masks import packing_of_mask
from spanbert_fast.nn.packing import Packing
from spanbert_fast.ops.dropout import DropoutPlan
from spanbert_fast.ops.varlen_attention import varlen_attention

NAME = "spanbert_fast"
# Arguments that would change the scores, each with the value that does not.
_CHANGES_SCORES = ("softcap", "sliding_window", "position_bias", "s_aux", "cache", "is_causal")


class _MaskOfPadding(Packing):
    """The mask that a model hands to its attention. A model whose attention bypasses transformers'
    interface and adds the mask to its scores gets an error."""

    def __radd__(self, other: object) -> None:
        raise ValueError(
            "the model must use transformers' attention interface with "
            f"attn_implementation={NAME!r}, got one that adds its mask to its scores itself"
        )


def attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | Packing | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """Bidirectional self-attention of one layer, as transformers' attention interface calls it.

    Args:
        module: the attention module; its layer_idx gives the dropout mask's site.
        query, key, value: (batch, num_heads, seqlen, head_dim).
        attention_mask: what `attention_mask_of` made of the model's mask, or a mask of padding.
        dropout: probability of dropping an attention probability.
        scaling: factor of the scores; default 1 / sqrt(head_dim).

    Returns:
        (batch, seqlen, num_heads, head_dim), and None in place of the probabilities.

    Raises:
        ValueError: causal or cross-attention, grouped heads, masks that mark more than padding, or
            other arguments that change the scores.
    """
    if kwargs.get("is_causal", getattr(module, "is_causal", False)):
        raise ValueError(f"is_causal must be False with attn_implementation={NAME!r}")
    for name in _CHANGES_SCORES:
        if kwargs.get(name):
            raise ValueError(f"{name} must be None with attn_implementation={NAME!r}")
    if kwargs.get("output_attentions"):
        raise ValueError(
            f"output_attentions must be False with attn_implementation={NAME!r}: attention "
            'probabilities are not kept; "eager" returns them'
        )
    for name, tensor in (("key", key), ("value", value)):
        if tensor.shape != query.shape:
            raise ValueError(
                f"{name} must have the query's shape {tuple(query.shape)} with "
                f"attn_implementation={NAME!r}, got {tuple(tensor.shape)}"
            )
    batch, _, seqlen, _ = query.shape
    packing = packing_of_mask(attention_mask, (batch, seqlen), query.device)
    if packing is None:
        assert isinstance(attention_mask, torch.Tensor)  # the others are packings, or none
        raise ValueError(
            f"attention_mask must be a mask of padding with attn_implementation={NAME!r}, got "
            f"one of shape {tuple(attention_mask.shape)} that does more"
        )
    q, k, v = (packing.pack(x.transpose(1, 2)) for x in (query, key, value))
    layer = getattr(module, "layer_idx", None) or 0
    context = varlen_attention(
        q,
        k,
        v,
        packing.cu_seqlens,
        packing.max_seqlen,
        softmax_scale=scaling,
        dropout=DropoutPlan.draw(q.device).attention(layer, dropout) if dropout else None,
    )
    return packing.unpack(context), None


def attention_mask_of(
    batch_size: int,
    q_length: int,
    kv_length: int,
    mask_function: Callable,
    attention_mask: torch.Tensor | None = None,
    **kwargs,
) -> Packing | None:
    """The packing of a batch, found once for all layers; called by transformers' mask interface.

    Args:
        batch_size, q_length, kv_length: sizes.
        mask_function: which query sees which key; must be bidirectional attention's.
        attention_mask: (batch, kv_length), nonzero for tokens.

    Raises:
        ValueError: causal, windowed or otherwise patterned attention.
    """
    if mask_function is not bidirectional_mask_function or kwargs.get("local_size") is not None:
        raise ValueError(
            f"attention must be bidirectional with attn_implementation={NAME!r}, got "
            f"{getattr(mask_function, '__qualname__', mask_function)}"
        )
    if q_length != kv_length:
        raise ValueError(
            f"queries and keys must be the same tokens with attn_implementation={NAME!r}, got "
            f"{q_length} and {kv_length} of them"
        )
    if attention_mask is None:
        return None
    packing = packing_of_mask(attention_mask, (batch_size, q_length), attention_mask.device)
    return packing and _MaskOfPadding(**vars(packing))


def _uses_the_interface(kind: type[PreTrainedModel]) -> bool:
    """Whether transformers' part of a model class asks the interface for its attention. A class
    without such a part is its author's business."""
    for base in kind.__mro__:
        if base.__module__.startswith("transformers.models.") and issubclass(base, PreTrainedModel):
            return base._can_set_attn_implementation()
    return True


def _refuse_where_it_is_ignored(theirs: Callable) -> Callable:
    """Of the method by which transformers' models take the name of an attention."""

    @functools.wraps(theirs)
    def checked(self, requested_attention, *others, **named):
        if requested_attention == NAME and not _uses_the_interface(type(self)):
            raise ValueError(
                f"attn_implementation={NAME!r} needs a model that uses transformers' attention "
                f"interface, got {type(self).__name__}, whose attention is its own; load it "
                "without attn_implementation"
            )
        return theirs(self, requested_attention, *others, **named)

    return checked


AttentionInterface.register(NAME, attention_forward)
AttentionMaskInterface.register(NAME, attention_mask_of)
# no registry is asked by a model that ignores the name
PreTrainedModel.get_correct_attn_implementation = _refuse_where_it_is_ignored(  # type: ignore[method-assign]
    PreTrainedModel.get_correct_attn_implementation
)
