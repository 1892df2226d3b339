"""BERT's input: dropout(LayerNorm(word + position + token type))."""

import torch
from torch.nn import functional as F

from spanbert_fast.reference.dropout import dropout_scale, dropout_threshold, hidden_keep_mask


def embedding_layer_norm(
    input_ids: torch.Tensor | None,
    position_ids: torch.Tensor,
    token_type_ids: torch.Tensor,
    word_embeddings: torch.Tensor,
    position_embeddings: torch.Tensor,
    token_type_embeddings: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    *,
    inputs_embeds: torch.Tensor | None = None,
    padding_idx: int = -1,
    dropout_p: float = 0.0,
    dropout_seed: torch.Tensor | None = None,
    dropout_site: int = 0,
    eps: float = 1e-12,
    residual_in_fp32: bool = False,
) -> torch.Tensor:
    """dropout(LN(word[input_ids] + position[position_ids] + type[token_type_ids])), packed."""
    if inputs_embeds is None:
        rows = F.embedding(
            input_ids, word_embeddings, padding_idx=padding_idx if padding_idx >= 0 else None
        )
    else:
        rows = inputs_embeds
    z = rows + position_embeddings[position_ids] + token_type_embeddings[token_type_ids]
    if residual_in_fp32:
        z = z.to(torch.promote_types(z.dtype, torch.float32))
        weight, bias = weight.to(z.dtype), bias.to(z.dtype)
    y = F.layer_norm(z, (z.shape[1],), weight, bias, eps)
    threshold = dropout_threshold(dropout_p)
    if threshold:
        tokens = torch.arange(len(y), device=y.device)
        keep = hidden_keep_mask(dropout_seed, dropout_site, tokens, y.shape[1], threshold)
        y = y * keep * dropout_scale(threshold)
    return y
