"""Turns the attention masks of Hugging Face models into packings."""

import torch
from torch._subclasses.fake_tensor import FakeTensor

from spanbert_fast.nn.packing import Packing

# -65504 is the lowest number of fp16; exp(-65504) is 0 in every dtype, so a key with it is masked.
_DROPPED = torch.finfo(torch.float16).min


def packing_of_mask(
    attention_mask: "torch.Tensor | Packing | None", shape: tuple[int, int], device: torch.device
) -> Packing | None:
    """The packing of a (batch, seqlen) batch, or None if the mask does more than mark padding.

    On a GPU, reading a mask makes the host wait once, and a 4-D mask twice.

    Args:
        attention_mask: None; a Packing; (batch, seqlen), nonzero for tokens; or the mask that a
            model gives to its attention, (batch or 1, 1, seqlen or 1, seqlen): boolean, True for
            the keys that a query sees, or floating, added to the scores.
        shape: (batch, seqlen).
        device: of the hidden states.
    """
    if attention_mask is None or isinstance(attention_mask, Packing):
        return attention_mask or Packing.of_padded(shape, None, device)
    if attention_mask.dim() == 4:
        attention_mask = _keys_that_all_queries_see(attention_mask, shape)
    if attention_mask is None or tuple(attention_mask.shape) != shape:
        return None
    if _has_no_data(attention_mask):
        return Packing.of_padded(shape, None, device)
    packing = Packing.of_padded(shape, attention_mask.to(device), device)
    if torch.compiler.is_compiling():
        # one graph must serve every mask that has a token
        torch._check(packing.total_tokens > 0)
        return packing
    if packing.total_tokens == shape[0] * shape[1]:
        return Packing.of_padded(shape, None, device)  # nothing to gather
    return packing


def starts_are_tokens(packing: Packing) -> bool:
    """Whether every sequence of a padded batch begins with a token, sequences without tokens
    excepted. Makes the host of a GPU wait."""
    if packing.indices is None or packing.padded_shape is None:
        return True
    if torch.compiler.is_compiling():
        torch._assert_async(
            _are_starts(packing, packing.indices),
            "a compiled model's sequences must be padded behind",
        )
        return True
    if packing.total_tokens == 0:
        return True
    return bool(_are_starts(packing, packing.indices))


def _are_starts(packing: Packing, indices: torch.Tensor) -> torch.Tensor:
    assert packing.padded_shape is not None
    batch, seqlen = packing.padded_shape
    starts = torch.arange(batch, device=indices.device) * seqlen
    is_empty = packing.cu_seqlens.diff() == 0
    return ((indices[packing.first_rows()] == starts) | is_empty).all()


def _has_no_data(mask: torch.Tensor) -> bool:
    """Whether the caller wants shapes only, which do not depend on the mask's values."""
    return mask.device.type == "meta" or isinstance(mask, FakeTensor)


def _keys_that_all_queries_see(mask: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor | None:
    """A 4-D mask as bool (batch, seqlen); None if queries or heads see different keys."""
    batch, seqlen = shape
    sizes = ((1, batch), (1,), (1, seqlen), (seqlen,))
    if any(got not in allowed for got, allowed in zip(mask.shape, sizes, strict=True)):
        return None
    first = mask[:, 0, 0]
    if mask.dtype == torch.bool:
        kept, clear = first, None
    elif mask.is_floating_point() and not mask.requires_grad:
        kept = first == 0
        clear = (kept | (first <= _DROPPED)).all()
    else:
        return None
    same = (mask == mask[:, :, :1]).all() if mask.shape[2] > 1 else None
    if not all(bool(check) for check in (clear, same) if check is not None):
        return None
    return kept.expand(batch, -1)
