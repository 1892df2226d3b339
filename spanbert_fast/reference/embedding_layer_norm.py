"""BERT's input: dropout(LayerNorm(word + position + token type))."""

import torch
from torch.nn import functional as F

from spanbert_fast.reference.dropout import Dropout, dropped


def embedding_layer_norm(
    input_ids: torch.Tensor | None,
    position_ids: torch.Tensor,
    token_type_ids: torch.Tensor | None,
    word_embeddings: torch.Tensor,
    position_embeddings: torch.Tensor,
    token_type_embeddings: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor,
    *,
    inputs_embeds: torch.Tensor | None = None,
    padding_idx: int = -1,
    dropout: Dropout | None = None,
    eps: float = 1e-12,
    residual_in_fp32: bool = False,
) -> torch.Tensor:
    """dropout(LN(word[input_ids] + position[position_ids] + type[token_type_ids])), packed."""
    if input_ids is not None:
        rows = F.embedding(
            input_ids, word_embeddings, padding_idx=padding_idx if padding_idx >= 0 else None
        )
    else:
        assert inputs_embeds is not None, "exactly one of the two is given"
        rows = inputs_embeds
    z = rows + position_embeddings[position_ids]
    if token_type_embeddings is not None:
        z = z + token_type_embeddings[token_type_ids]
    if residual_in_fp32:
        z = z.to(torch.promote_types(z.dtype, torch.float32))
        weight, bias = weight.to(z.dtype), bias.to(z.dtype)
    return dropped(F.layer_norm(z, (z.shape[1],), weight, bias, eps), dropout)
