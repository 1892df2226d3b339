"""Checks of the span sampler's arguments: first shapes and dtypes, then values."""

import torch

from spanbert_fast.ops import _checks

_ID_LIMIT = 2**31


def check_tensors(
    input_ids, cu_seqlens, word_starts, sequence_ids, given, uses_given, pool, special
) -> None:
    """Check shapes, dtypes and devices, which needs no value of a tensor."""
    _checks.check_shape("input_ids", input_ids, ("total_tokens",))
    _checks.check_integer("input_ids", input_ids, (torch.int64,))
    _checks.check_cu_seqlens("cu_seqlens", cu_seqlens)
    tokens, batch = input_ids.shape[0], cu_seqlens.shape[0] - 1
    if (given is not None) != uses_given:
        rule = "must be given" if uses_given else "must be None"
        with_scheme = "with" if uses_given else "without"
        came = "None" if given is None else f"a tensor of shape {tuple(given.shape)}"
        raise ValueError(f'given_spans {rule} {with_scheme} the scheme "given", got {came}')
    expected = (
        ("word_starts", word_starts, (tokens,), torch.bool),
        ("sequence_ids", sequence_ids, (batch,), torch.int64),
        ("special_mask", special, (tokens,), torch.bool),
        ("given_spans", given, ("num_given", 2), torch.int64),
        ("random_token_pool", pool, ("pool",), torch.int64),
    )
    for name, tensor, shape, dtype in expected:
        if tensor is not None:
            _checks.check_shape(name, tensor, shape)
            _checks.check_integer(name, tensor, (dtype,))
            _checks.check_same_device(name, tensor, input_ids, "input_ids")
    _checks.check_same_device("cu_seqlens", cu_seqlens, input_ids, "input_ids")
    if pool.shape[0] == 0:
        raise ValueError("random_token_pool must hold at least one token id, got shape (0,)")


def _check_ids(name: str, ids: torch.Tensor) -> None:
    if ids.numel() == 0:
        return
    low, high = (value.item() for value in ids.aminmax())
    if low < 0 or high >= _ID_LIMIT:
        raise ValueError(f"{name} must be in [0, 2**31), got {low if low < 0 else high}")


def check_values(input_ids, cu_seqlens, given, pool, special) -> None:
    """Check the values. Compiled code makes the same checks while it reads; on a failure it calls
    this function for the error message."""
    bounds = cu_seqlens.tolist()
    _checks.check_cu_values("cu_seqlens", bounds, input_ids.shape[0])
    for i, (begin, end) in enumerate(zip(bounds, bounds[1:], strict=False)):
        if begin == end:
            raise ValueError(f"cu_seqlens must have no empty sequence, got one at index {i}")
        if special is not None and special[begin:end].all():
            raise ValueError(
                "special_mask must leave a maskable token in every sequence, got none in "
                f"sequence {i}"
            )
    _check_ids("input_ids", input_ids)
    _check_ids("random_token_pool", pool)
    if given is None:
        return
    previous, sequence = 0, 0
    for i, (first, last) in enumerate(given.tolist()):
        if not 0 <= first <= last < bounds[-1]:
            raise ValueError(
                f"given_spans[{i}] must be 0 <= first <= last < {bounds[-1]}, got ({first}, {last})"
            )
        if first < previous:
            raise ValueError(
                f"given_spans must be in order of their first token, got {previous} then {first} "
                f"at index {i}"
            )
        while bounds[sequence + 1] <= first:
            sequence += 1
        if last >= bounds[sequence + 1]:
            raise ValueError(
                f"given_spans[{i}] must lie in one sequence, got ({first}, {last}) over the end "
                f"of sequence {sequence} at {bounds[sequence + 1]}"
            )
        if special is not None and special[first : last + 1].any():
            raise ValueError(f"given_spans[{i}] must hold no special token, got ({first}, {last})")
        previous = first
